"""What tests share: a model store of their own, and engines that end with the test."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from adapter.triton.engine import Engine
from adapter.triton.installation import Installation, ensure


@pytest.fixture(scope="session", autouse=True)
def adapter_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model store that no other test run, and no person, uses."""
    home = tmp_path_factory.mktemp("adapter-home")
    before = os.environ.get("ADAPTER_HOME")
    os.environ["ADAPTER_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["ADAPTER_HOME"]
    else:
        os.environ["ADAPTER_HOME"] = before


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The tritonserver that tests talk to."""
    return ensure(os.environ)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The name of a bucket on a server that speaks S3, which the environment names."""
    import fsspec  # not in the environments of tests/frameworks, which read this file too
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        # what servers of before in this process were given is still there
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "bucket"
    server.stop()


@pytest.fixture(scope="module")
def engine_of(installation: Installation) -> Iterator[Callable[[Path, Sequence[str]], Engine]]:
    """Start tritonserver on entries of a repository and wait until they are ready; it ends with the module's tests."""
    with contextlib.ExitStack() as stack:

        def start(repository: Path, entries: Sequence[str]) -> Engine:
            engine = Engine(installation, repository, entries, env=os.environ)
            stack.callback(engine.stop)
            engine.wait_ready()
            return engine

        yield start

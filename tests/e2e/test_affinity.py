"""Whether `adapter serve` keeps a worker with plain functions on one CPU, as the kernel tells of its event loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve, wait_until
from tests.e2e.load import load

SERVICE = """
import adapter
from adapter.io import Text

svc = adapter.Service("plain")


@svc.api(input=Text(), output=Text())
def echo(text: str) -> str:
    return text
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "plain.py").write_text(SERVICE)
    return tmp_path


def on_one_cpu(front: int) -> Callable[[], bool]:
    return lambda: len(os.sched_getaffinity(front)) == 1


def test_worker_with_many_short_functions_is_on_one_cpu(serve: Serve, service: Path) -> None:
    served = serve("plain:svc", "--api-workers", "1", working_dir=service)
    (front,) = served.children("adapter.server.front")
    with load(served.url, {"/echo": 8}) as found:
        wait_until(on_one_cpu(front), 30)  # about a second, on a machine with nothing else to do
    assert found.failed("/echo") == []
    wait_until(lambda: not on_one_cpu(front)(), 10)


def test_worker_is_left_alone_where_a_setting_says_so(serve: Serve, service: Path) -> None:
    (service / "adapter.yaml").write_text("api_server: {affinity: none}")
    served = serve("plain:svc", "--api-workers", "1", working_dir=service)
    (front,) = served.children("adapter.server.front")
    with load(served.url, {"/echo": 8}):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert not on_one_cpu(front)()
            time.sleep(0.01)

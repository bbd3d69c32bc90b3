"""The programs in the chart's containers: which entries a Triton gets, its probes, and copies of the repository."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from adapter.triton.engine import METADATA_KEY, RESTRICTED, Ports
from adapter.triton.environment import environment
from adapter.triton.installation import Installation
from adapter.triton.plain_paths import PlainPaths
from tests.deploy.chart import CHART

SCRIPTS = CHART / "files"
SERVICE = """
import adapter
from adapter.io import JSON, Text

class Echo(adapter.Runnable):
    @adapter.Runnable.method(batchable=False)
    def say(self, text: str) -> str:
        return text

one = adapter.Runner(Echo, name="one")
two = adapter.Runner(Echo, name="two")
svc = adapter.Service("pair", runners=[one, two])

@svc.api(input=Text(), output=JSON())
async def say(text: str) -> str:
    return await one.say.async_run(text)
"""
MANIFEST = {
    "services": {
        "shop": {"runners": {"a": {"predict": "a.predict", "score": "a.score"}, "b": {"__call__": "b"}}},
        "lab": {"runners": {"c": {"run": "lab.c"}}},
    }
}


def run(script: str, *words: str, env: Mapping[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *words],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with entries that the manifest names, and one of before."""
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    for name in ("a.predict", "a.score", "b", "lab.c", "of_before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").touch()
    (tmp_path / "lost+found").mkdir()  # which Triton would take for an entry
    return tmp_path


@pytest.fixture
def printing(tmp_path: Path) -> Path:
    """A folder whose tritonserver prints its words, a line each."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "tritonserver"
    program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, ["a.predict", "a.score", "b", "lab.c", "of_before"]),
        ({"OTHER_RUNNERS": "a c"}, ["b", "of_before"]),
        ({"RUNNERS": "a"}, ["a.predict", "a.score"]),
        ({"RUNNERS": "c", "ENTRIES": "part.of.it"}, ["lab.c", "part.of.it"]),
        ({"OTHER_RUNNERS": "a b c"}, ["of_before"]),
    ],
)
def test_each_triton_loads_the_entries_of_its_group(
    models: Path, printing: Path, variables: dict[str, str], loaded: list[str]
) -> None:
    env = {"MODELS": str(models), "PATH": f"{printing}:{os.environ['PATH']}", **variables}
    words = run("start.py", "--exit-timeout-secs=3", env=env).stdout.splitlines()
    assert [w.removeprefix("--load-model=") for w in words if w.startswith("--load-model=")] == loaded
    assert words[-1] == "--exit-timeout-secs=3"
    assert "--model-control-mode=explicit" in words


def test_key_of_triton_is_the_one_given_else_one_that_nobody_knows(models: Path, printing: Path) -> None:
    env = {"MODELS": str(models), "PATH": f"{printing}:{os.environ['PATH']}"}

    def key(**more: str) -> str:
        words = run("start.py", env={**env, **more}).stdout.splitlines()
        (word,) = [w for w in words if w.startswith("--grpc-restricted-protocol=")]
        groups, _, given = word.partition("=")[2].partition(":")
        assert set(groups.split(",")) == set(RESTRICTED)
        return given.removeprefix("adapter-key=")

    assert key(TRITON_KEY="of the secret") == "of the secret"
    first, second = key(), key(TRITON_KEY="")
    assert first != second
    assert min(len(first), len(second)) > 30


def test_runner_that_the_manifest_does_not_have_is_named(models: Path) -> None:
    done = run("start.py", env={"MODELS": str(models), "RUNNERS": "iris"})
    assert done.returncode == 1
    assert "has no runner iris, which `runners` of the chart's values names (it has: a, b, c)" in done.stderr


# ---- with a real Triton ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A tritonserver that start.py has become."""

    process: subprocess.Popen[bytes]
    env: Mapping[str, str]
    grpc: str

    def probe(self, which: str) -> subprocess.CompletedProcess[str]:
        return run("probe.py", which, env=self.env)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    (folder / "service.py").write_text(SERVICE)
    return folder


def export(service: Path, repository: str) -> None:
    words = ("-m", "adapter", "export", "service:svc", "--repository", repository)
    subprocess.run([sys.executable, *words], cwd=service, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def repository(service: Path) -> Path:
    export(service, "models")
    return service / "models"


@pytest.fixture(scope="module")
def start(installation: Installation, repository: Path) -> Iterator[Callable[..., Started]]:
    with contextlib.ExitStack() as stack:

        def begin(**variables: str) -> Started:
            ports, http = Ports.free(), Ports.free()
            paths = PlainPaths(os.environ)
            stack.callback(paths.remove)
            env = dict(environment(installation, os.environ, plain=paths.of))
            env |= {"MODELS": str(repository), "TRITON_HTTP": f"http://127.0.0.1:{http.grpc}", "TRITON_KEY": "open"}
            env |= {"PATH": f"{installation.tritonserver.parent}:{env['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
            env |= variables
            backends = installation.backends()
            words = [
                *([f"--backend-directory={paths.of(backends)}"] if backends else []),
                # beside other tests, and for this machine alone: the last of a flag counts
                *(f"--http-port={http.grpc}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"),
                *("--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--allow-gpu-metrics=false"),
            ]
            process = subprocess.Popen(
                [sys.executable, str(SCRIPTS / "start.py"), *words],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            return Started(process, env, f"127.0.0.1:{ports.grpc}")

        yield begin


def test_probes_of_a_real_triton(start: Callable[..., Started]) -> None:
    begun = start()
    assert begun.probe("all").returncode == 1
    deadline = time.monotonic() + 90
    while begun.probe("all").returncode:
        assert begun.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert begun.probe("any").returncode == 0

    with contextlib.closing(grpc.InferenceServerClient(begun.grpc)) as client:
        for act in (client.get_model_repository_index, lambda: client.load_model("pair.one")):
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                act()
        index = client.get_model_repository_index(headers={METADATA_KEY: "open"}).models
        assert {m.name: m.state for m in index} == {"pair.one": "READY", "pair.two": "READY"}
        client.unload_model("pair.two", headers={METADATA_KEY: "open"})
        deadline = time.monotonic() + 30
        while begun.probe("all").returncode == 0:
            assert time.monotonic() < deadline
        assert begun.probe("all").stdout == "Not ready: pair.two.\n"
        assert begun.probe("any").returncode == 0
        # of a group that the manifest gives pair.one alone
        assert run("probe.py", "all", env={**begun.env, "RUNNERS": "one"}).returncode == 0
        assert run("probe.py", "any", env={**begun.env, "RUNNERS": "two"}).returncode == 1
    begun.process.terminate()
    begun.process.wait(30)
    assert begun.probe("any").stdout == "Triton does not answer.\n"


# ---- copies of the repository ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(s3: str, service: Path) -> str:
    """A repository in object storage, as `adapter export` writes it."""
    export(service, f"s3://{s3}/shop")
    return f"s3://{s3}"


@pytest.mark.parametrize(("what", "entries"), [("all", ["pair.one", "pair.two"]), ("manifest", [])])
def test_repository_is_copied_from_a_bucket(
    repository: Path, bucket: str, tmp_path: Path, what: str, entries: list[str]
) -> None:
    done = run("fetch.py", f"{bucket}/shop", str(tmp_path), what, env={})
    assert done.returncode == 0, done.stderr
    assert sorted(p.parent.name for p in tmp_path.glob("*/config.pbtxt")) == entries
    # what Triton finds is what a folder would have had
    for entry in entries:
        files = {p.relative_to(repository) for p in (repository / entry).rglob("*") if p.is_file()}
        compiled = {f for f in files if f.parent.name == "__pycache__"}  # by the Triton that served it
        assert {p.relative_to(tmp_path) for p in (tmp_path / entry).rglob("*") if p.is_file()} >= files - compiled
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["services"]["pair"]["runners"]) == ["one", "two"]


def test_copy_from_where_nothing_is_fails(bucket: str, tmp_path: Path) -> None:
    done = run("fetch.py", f"{bucket}/none", str(tmp_path), "all", env={})
    assert done.returncode == 1
    assert "none/manifest.json" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_image_that_lacks_a_library_for_object_storage_says_how_to_get_it(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['fsspec'] = None\n"
    program += "import fetch; from pathlib import Path; fetch.fetch('s3://models', Path('.'))"
    words = [sys.executable, "-B", "-c", program, str(SCRIPTS)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "build that of the front with --build-arg EXTRAS=[s3] or [gcs]." in done.stderr
    assert "Traceback" not in done.stderr

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter.exceptions import EngineError
from adapter.triton.engine import HOST, RESTRICTED, Engine, Ports, command
from adapter.triton.installation import Installation
from adapter.triton.plain_paths import PlainPaths
from adapter.triton.stub_memory import SHM_FOLDER
from adapter.triton.stubs import mapped_regions, session

GOOD = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        import numpy, sys
        pb_utils.Logger.log_info("numpy of " + numpy.__file__.encode("ascii", "replace").decode())
        print("printed by a model", flush=True)
    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("it answers")) for _ in requests]
    def finalize(self):
        print("the model ends", flush=True)
"""
BAD = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("the weights are missing")
    def execute(self, requests):
        return []
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


def _write(folder: Path, **codes: str) -> Path:
    for name, code in codes.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _write(tmp_path_factory.mktemp("models"), good=GOOD, second=GOOD, bad=BAD)
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "config.pbtxt").write_text("name: 3")
    return folder


@pytest.fixture
def engine(installation: Installation, repository: Path) -> Iterator[Engine]:
    with Engine(installation, repository, ["good", "second"], env=os.environ) as made:
        made.wait_ready(60)
        yield made


def _call(engine: Engine, method: str, request: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
    with grpc.insecure_channel(engine.url, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        return call(request, metadata=metadata, timeout=10)


def _gone(pid: int, regions: set[str], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not session(pid) and not _runs(pid) and not any((SHM_FOLDER / name).exists() for name in regions):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_command_when_installation_is_a_containers(tmp_path: Path) -> None:
    made = command(
        Installation(tmp_path / "bin" / "tritonserver", "PATH"),
        Path("/models"),
        ["a.predict", "b"],
        backends=tmp_path / "backends",
        ports=Ports(1, 2),
        server_id="i",
        key="k",
        exit_timeout_s=7,
    )
    assert made[0] == str(tmp_path / "bin" / "tritonserver")
    for option in (
        "--model-repository=/models",
        f"--backend-directory={tmp_path / 'backends'}",
        "--load-model=a.predict",
        "--load-model=b",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        "--grpc-port=1",
        "--metrics-address=127.0.0.1",
        "--metrics-port=2",
        "--exit-timeout-secs=7",
        "--grpc-restricted-protocol=shared-memory,model-repository,statistics,trace,logging:adapter-key=k",
    ):
        assert option in made


def test_start_when_repository_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="gone is not a folder"):
        Engine(Installation(Path("/bin/true"), "PATH"), tmp_path / "gone", [], env=os.environ)


@pytest.mark.parametrize("name", ["", "a b", "$(touch x)", "a/../../b", "ünï", "*", "a\n"])
def test_start_when_an_entry_has_no_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match="cannot be the name of an entry"):
        Engine(Installation(Path("/bin/true"), "PATH"), tmp_path, ["good", name], env=os.environ)


def test_plain_paths_when_a_path_is_not_plain(tmp_path: Path) -> None:
    odd = tmp_path / "sp ace$(x)"
    (odd / "models").mkdir(parents=True)
    paths = PlainPaths({"TMPDIR": str(tmp_path)})
    assert paths.of(tmp_path) == tmp_path
    assert not list(tmp_path.glob("adapter-engine-*"))
    link = paths.of(odd / "models")
    assert link.is_relative_to(tmp_path)
    assert link.resolve() == odd / "models"
    assert paths.told(f"in {link}/good/1/model.py") == f"in {odd}/models/good/1/model.py"
    (tmp_path / "plain").symlink_to(odd)
    assert paths.of(tmp_path / "plain") == tmp_path / "plain"
    (odd / "back").symlink_to(tmp_path)
    assert paths.of(odd / "back") == tmp_path
    paths.remove()
    assert not list(tmp_path.glob("adapter-engine-*"))
    assert (odd / "models").is_dir()


def test_plain_paths_when_the_temporary_folder_is_not_plain(tmp_path: Path) -> None:
    odd = tmp_path / "sp ace"
    odd.mkdir()
    paths = PlainPaths({"TMPDIR": str(odd)})
    link = paths.of(odd)
    assert link.resolve() == odd
    assert link.is_relative_to("/tmp")
    paths.remove()
    assert not link.is_symlink()


def test_wait_ready_when_program_ends(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text('#!/bin/sh\necho "no such library"\nexit 127\n')
    program.chmod(0o755)
    with Engine(Installation(program, "PATH"), tmp_path, [], env=os.environ) as made:
        with pytest.raises(EngineError, match=r"ended with status 127 at its start\. It said last:\n  no such library"):
            made.wait_ready(20)
        assert made.poll() == 127


def test_wait_ready_when_program_never_is(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with Engine(Installation(program, "PATH"), tmp_path, [], env=os.environ) as made:
        with pytest.raises(EngineError, match=r"not ready within 0\.3 seconds, and said nothing"):
            made.wait_ready(0.3)
        pid = made.pid
    assert made.poll() == -signal.SIGTERM
    assert not _runs(pid)


def test_engine_when_ready(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert engine.poll() is None
    assert sorted((stub.entry, stub.version) for stub in engine.stubs()) == [("good", "1"), ("second", "1")]
    assert {stub.region for stub in engine.stubs()} == mapped_regions(engine.pid)
    assert os.getsid(engine.pid) == engine.pid
    assert _call(engine, "ModelReady", service_pb2.ModelReadyRequest(name="good")).ready
    assert _counted(engine, 0)
    request = service_pb2.ModelInferRequest(model_name="good", raw_input_contents=[b"\0\0\0\0"])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(grpc.RpcError, match="it answers"):
        _call(engine, "ModelInfer", request)
    assert _counted(engine, 1)


def _counted(engine: Engine, number: int) -> bool:
    """Whether Triton has counted so many requests, which it does after it has answered."""
    line = f'nv_inference_count{{model="good",version="1"}} {number}\n'.encode()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with urllib.request.urlopen(engine.metrics_url, timeout=10) as response:
            if line in response.read():
                return True
        time.sleep(0.05)
    return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.mark.parametrize("name", ["sp ace", "quo'te\"", "$(touch PWNED)x", "ünï"])
def test_engine_when_a_shell_would_misread_its_paths(installation: Installation, tmp_path: Path, name: str) -> None:
    repository, temporary = _write(tmp_path / name, good=GOOD, bad=BAD), tmp_path / "temporary"
    temporary.mkdir()
    here = installation
    if installation.bundled:  # as with ADAPTER_CACHE, or a home, of such a name
        whole = installation.prefix.parent.parent
        shutil.copytree(whole, tmp_path / f"{name} engine", symlinks=True, copy_function=_link)
        moved = tmp_path / f"{name} engine" / installation.tritonserver.relative_to(whole)
        here = replace(installation, tritonserver=moved)
    env = {**os.environ, "TMPDIR": str(temporary)}
    with Engine(here, repository, ["good"], env=env) as made:
        made.wait_ready(60)
        assert _call(made, "ModelReady", service_pb2.ModelReadyRequest(name="good")).ready
        assert len(list(temporary.glob("*/*"))) == (2 if installation.bundled else 1)
    assert not list(temporary.iterdir())
    with Engine(here, repository, ["bad"], env=env) as made, pytest.raises(EngineError) as raised:
        made.wait_ready(60)
    assert f"{repository}/bad/1/model.py(4): initialize" in raised.value.message
    assert not list(Path.cwd().glob("PWNED*"))


def test_engine_when_path_is_empty(installation: Installation, repository: Path) -> None:
    with Engine(installation, repository, ["good"], env={**os.environ, "PATH": ""}) as made:
        made.wait_ready(60)


def _with_stub(installation: Installation, prefix: Path, text: str) -> Installation:
    """The same engine with another program for a stub."""
    backends = installation.backends()
    assert backends is not None
    for file in (backends / "python").iterdir():
        made = prefix / backends.name / "python" / file.name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.symlink_to(file.resolve())
    # where the backend's own library finds the others
    (prefix.parent.parent / "nvidia_pytriton.libs").symlink_to(
        installation.prefix.parent.parent / "nvidia_pytriton.libs"
    )
    (prefix / "bin").symlink_to(installation.prefix / "bin")
    stub = prefix / backends.name / "python" / "triton_python_backend_stub"
    stub.unlink()
    stub.write_text(text)
    stub.chmod(0o755)
    return replace(installation, tritonserver=prefix / "bin" / "tritonserver")


@pytest.mark.parametrize(
    ("stub", "expected", "within_s"),
    [
        (
            "#!/bin/sh\necho \"terminate called after throwing 'x'\" >&2\necho '  what():  stol' >&2\nkill -6 $$\n",
            r"terminate called after throwing 'x'\n    what\(\):  stol",
            3.0,
        ),
        ("#!/bin/sh\necho no luck today\nexit 2\n", "no luck today", 8.0),
    ],
)
def test_wait_ready_when_a_stub_cannot_begin(
    installation: Installation, repository: Path, tmp_path: Path, stub: str, expected: str, within_s: float
) -> None:
    here = _with_stub(installation, tmp_path / "pytriton" / "tritonserver", stub)
    with Engine(here, repository, ["good"], env=os.environ) as made:
        began = time.monotonic()
        with pytest.raises(
            EngineError, match=rf"cannot start its python backend\. It said last:\n(  .*\n)*  {expected}"
        ):
            made.wait_ready(60)
        assert time.monotonic() - began < within_s
        pid = made.pid
    assert _gone(pid, set(), 1)


def test_wait_ready_when_a_stub_is_killed_while_it_loads(installation: Installation, tmp_path: Path) -> None:
    code = GOOD.replace("import numpy, sys", "import numpy, os; os.kill(os.getpid(), 9)")
    with (
        Engine(installation, _write(tmp_path, dying=code, good=GOOD), ["good", "dying"], env=os.environ) as made,
        pytest.raises(
            EngineError, match=r"cannot load 1 of 2 entries\.\ndying: Stub process 'dying_0_0' is not healthy"
        ),
    ):
        made.wait_ready(60)


def test_log_when_starting(installation: Installation, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Engine(installation, repository, ["good"], env=os.environ) as made:
        made.wait_ready(60)
    said = [(r.name, r.levelno, r.getMessage()) for r in caplog.records if r.levelno > logging.DEBUG]
    ours = [record for record in said if record[0].startswith("adapter.")]
    assert {record[:2] for record in ours} == {("adapter.runner", logging.INFO)}
    assert ("adapter.runner", logging.INFO, "printed by a model") in ours
    assert any(text.startswith(f"numpy of {sys.prefix}") for _, _, text in ours)
    quiet = [r.getMessage() for r in caplog.records if r.name == "adapter.engine"]
    assert "successfully loaded 'good'" in quiet


@pytest.mark.parametrize(
    "name",
    # from Python 3.12 on the stub of Triton 2.51 ends where the folder of numpy is not named in ASCII
    ["packages", "sp ace", *(["ünï"] if sys.version_info < (3, 12) else [])],
)
def test_wait_ready_when_numpy_is_only_on_pythonpath(
    installation: Installation, repository: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / name
    elsewhere.mkdir()
    for name in ("numpy", "numpy.libs"):
        if (Path(np.__file__).parent.parent / name).is_dir():
            (elsewhere / name).symlink_to(Path(np.__file__).parent.parent / name)
    python = tmp_path / f"{name} venv" / "bin" / "python"
    venv.create(python.parent.parent, symlinks=True)
    code = f"""
import os, pathlib, sys
import numpy
assert numpy.__file__.startswith({str(elsewhere)!r})
sys.path += {sys.path!r}
from adapter.triton.engine import Engine
from adapter.triton.installation import ensure
with Engine(ensure(os.environ), pathlib.Path({str(repository)!r}), ["good"], env=os.environ) as engine:
    engine.wait_ready(60)
"""
    env = {
        **os.environ,
        "PYTHONPATH": str(elsewhere),
        "ADAPTER_CACHE": str(tmp_path),
        "ADAPTER_TRITONSERVER": str(installation.tritonserver),
    }
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_calls_when_restricted(engine: Engine) -> None:
    requests = {
        "shared-memory": ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()),
        "model-repository": ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
        "statistics": ("ModelStatistics", service_pb2.ModelStatisticsRequest()),
        "trace": ("TraceSetting", service_pb2.TraceSettingRequest()),
        "logging": ("LogSettings", service_pb2.LogSettingsRequest()),
    }
    assert set(requests) == set(RESTRICTED)
    for method, request in requests.values():
        for metadata in ((), (("triton-grpc-protocol-adapter-key", "wrong"),)):
            with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                _call(engine, method, request, metadata)
        _call(engine, method, request, engine.metadata)


def test_calls_when_open(engine: Engine) -> None:
    assert _call(engine, "ServerLive", service_pb2.ServerLiveRequest()).live
    assert _call(engine, "ModelConfig", service_pb2.ModelConfigRequest(name="good")).config.backend == "python"
    assert _call(engine, "ModelMetadata", service_pb2.ModelMetadataRequest(name="good")).platform == "python"
    request = service_pb2.ModelInferRequest(model_name="good", raw_input_contents=[b"\0\0\0\0"])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(grpc.RpcError, match="it answers"):
        _call(engine, "ModelInfer", request)


def test_wait_ready_when_models_cannot_be_loaded(installation: Installation, repository: Path) -> None:
    entries = ["good", "bad", "absent", "unreadable"]
    with (
        Engine(installation, repository, entries, env=os.environ) as made,
        pytest.raises(EngineError) as raised,
    ):
        made.wait_ready(60)
    message = raised.value.message
    assert message.startswith("Triton cannot load 3 of 4 entries.\n")
    assert "\nbad: RuntimeError: the weights are missing\n" in message
    assert f"{repository}/bad/1/model.py(4): initialize" in message
    assert "\nabsent: it is not in the model repository" in message
    assert "Expected string, got: 3" in message


def test_stop_when_running(installation: Installation, repository: Path) -> None:
    made = Engine(installation, repository, ["good"], env=os.environ)
    made.wait_ready(60)
    regions = mapped_regions(made.pid)
    assert len(regions) == 1
    made.stop()
    assert "the model ends" in [line.text for line in made._tail]
    assert _gone(made.pid, regions, 0.5)
    made.stop()


@pytest.mark.parametrize("killed", ["tritonserver", "stub", "both"])
def test_stop_when_something_was_killed(installation: Installation, repository: Path, killed: str) -> None:
    made = Engine(installation, repository, ["good", "second"], env=os.environ)
    made.wait_ready(60)
    pid, regions = made.pid, mapped_regions(made.pid)
    if killed != "tritonserver":
        os.kill(made.stubs()[0].pid, signal.SIGKILL)
    if killed != "stub":
        os.kill(pid, signal.SIGKILL)
        while made.poll() is None:
            time.sleep(0.01)
        assert made.poll() == -signal.SIGKILL
    made.stop()
    assert len(regions) == 2
    assert _gone(pid, regions, 0.5)


def test_engine_when_its_parent_is_killed(installation: Installation, repository: Path) -> None:
    code = f"""
import os, pathlib, time
from adapter.triton.engine import Engine
from adapter.triton.installation import ensure
engine = Engine(ensure(os.environ), pathlib.Path({str(repository)!r}), ["good", "second"], env=os.environ)
engine.wait_ready(60)
print(engine.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        stubs, regions = session(pid), mapped_regions(pid)
        assert (len(stubs), len(regions)) == (2, 2)
        parent.kill()
        parent.wait()
    assert _gone(pid, regions, 30)


@pytest.mark.parametrize("taken", ["grpc", "metrics"])
def test_wait_ready_when_a_port_is_taken(installation: Installation, repository: Path, taken: str) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port, free = other.getsockname()[1], Ports.free()
        ports = Ports(port, free.metrics) if taken == "grpc" else Ports(free.grpc, port)
        with Engine(installation, repository, ["good"], env=os.environ, ports=ports) as made:
            made.wait_ready(60)
            assert made.ports != ports
            assert _call(made, "ModelReady", service_pb2.ModelReadyRequest(name="good")).ready
            with urllib.request.urlopen(made.metrics_url, timeout=10) as response:
                assert response.status == 200

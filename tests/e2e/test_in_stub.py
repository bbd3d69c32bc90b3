"""Runners that are not isolated: what their code sees in Triton's stub, and what its faults cost.

The calls of `test_wire.py` go there as well. Times that are asserted have slack for a busy machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from adapter.triton.stubs import Stub, stubs_of
from tests.e2e.conftest import Serve, Served, wait_until
from tests.e2e.load import load

Run = Callable[..., subprocess.CompletedProcess[str]]

# a file that is called as Triton calls its own, with a name that this one lacks
MODEL = "THRESHOLD = 3\n"
SERVICE = """
import logging
import os
from typing import Any

import adapter
from adapter.io import JSON, Text
from model import THRESHOLD

calls = adapter.metrics.Counter("calls", "Calls.")


class Trusted(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    def __init__(self) -> None:
        import model

        self.threshold = model.THRESHOLD

    @adapter.Runnable.method
    def seen(self) -> dict[str, Any]:
        calls.inc()
        print("a print")
        logging.getLogger("mine").warning("a warning")
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        return {"pid": os.getpid(), "threshold": self.threshold, **{name: os.environ.get(name) for name in names}}

    @adapter.Runnable.method(batchable=True)
    def do(self, words: list[str]) -> list[str]:
        for word in words:
            if word == "value":
                raise ValueError("no such word")
            if word == "exit":
                raise SystemExit(3)
            if word == "missing":
                raise adapter.exceptions.NotFound("There is no tea.")
            if word == "die":
                os._exit(3)
        return [f"{word} {os.getpid()}" for word in words]


here = adapter.Runner(Trusted, name="here", cpu=1, max_batch_size=8, isolated=False)
beside = adapter.Runner(Trusted, name="beside", cpu=1, max_batch_size=8)
svc = adapter.Service("trusted", runners=[here, beside])


@svc.api(input=Text(), output=JSON())
async def seen(text: str) -> Any:
    return await (here if text == "here" else beside).seen.async_run()


@svc.api(input=Text(), output=Text(), name="here")
async def call_here(text: str) -> str:
    return (await here.do.async_run([text]))[0]


@svc.api(input=Text(), output=Text(), name="beside")
async def call_beside(text: str) -> str:
    return (await beside.do.async_run([text]))[0]
"""
HOSTED = """
import os
from pathlib import Path

import adapter


@adapter.service(workers=1)
class Hosted:
    @adapter.on_startup
    async def begin(self) -> None:
        self.pid = os.getpid()

    @adapter.on_shutdown
    async def end(self) -> None:
        Path(os.environ["ENDED"]).write_text(str(self.pid))

    @adapter.api(batchable=True)
    def pids(self, words: list[str]) -> list[int]:
        return [self.pid for _ in words]
"""


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("trusted")
    (folder / "model.py").write_text(MODEL)
    (folder / "trusted.py").write_text(SERVICE)
    return serve("trusted:svc", "--api-workers", "1", "--log-format", "json", working_dir=folder)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client as client:
        yield client


def stub_of(served: Served, entry: str) -> Stub:
    server = max(served.children("/tritonserver "))
    (stub,) = [stub for stub in stubs_of(server) if stub.entry == entry]
    return stub


def test_code_runs_in_the_stub_with_the_environment_of_its_instance(served: Served, client: httpx.Client) -> None:
    here, beside = (client.post("/seen", content=where).json() for where in ("here", "beside"))
    stub = stub_of(served, "trusted.here").pid
    assert here.pop("pid") == stub
    assert beside.pop("pid") != stub_of(served, "trusted.beside").pid
    assert here == beside == {"threshold": 3, "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
    tasks = Path(f"/proc/{stub}/task").iterdir()
    assert [child for task in tasks for child in (task / "children").read_text().split()] == []


def test_prints_logs_and_metrics_are_those_of_a_worker(served: Served, client: httpx.Client) -> None:
    def records(identity: str) -> list[tuple[str, ...]]:
        found = (json.loads(line) for line in list(served.lines) if identity in line)
        names = ("level", "component", "logger", "message", "entry")
        return sorted(
            tuple(str(record.get(name)) for name in names) for record in found if record["component"] == "runner"
        )

    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("calls_total"))

    before = counted()
    for where in ("here", "beside"):
        client.post("/seen", content=where, headers={"x-request-id": f"seen-{where}"})
    wait_until(lambda: len(records("seen-here")) == len(records("seen-beside")) == 2, 5)
    assert [record[:4] for record in records("seen-here")] == [record[:4] for record in records("seen-beside")]
    assert {record[4] for record in records("seen-here")} == {"trusted.here"}
    assert {record[3] for record in records("seen-here")} == {"a print", "a warning"}
    wait_until(lambda: counted() == before + 2, 5)


def test_only_its_own_call_of_a_batch_fails(served: Served, client: httpx.Client) -> None:
    stub = stub_of(served, "trusted.here").pid
    words = ["", "value", "", "exit", "", "missing", "", "value"] * 8
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda word: client.post("/here", content=word), words))
    for word, answer in zip(words, answers, strict=True):
        expected = {"": (200, f" {stub}"), "missing": (404, '{"error":"There is no tea."}')}
        assert answer.status_code == expected.get(word, (500, ""))[0], word
        assert answer.text == expected[word][1] if word in expected else "no such word" not in answer.text


def test_traceback_is_in_the_log_only(served: Served, client: httpx.Client) -> None:
    answer = client.post("/here", content="value", headers={"x-request-id": "odd"})
    assert (answer.status_code, "ValueError" in answer.text) == (500, False)
    wait_until(lambda: any("ValueError: no such word" in line and "odd" in line for line in list(served.lines)), 5)


@pytest.mark.parametrize("way", ["die", "kill"])
def test_crash_fails_what_is_under_way_and_is_back_while_others_go_on(served: Served, way: str) -> None:
    wait_until(lambda: served.get("/readyz").status_code == 200, 20)
    stub = stub_of(served, "trusted.here").pid
    with load(served.url, {"/here": 8, "/beside": 4}) as found:
        found.wait_for_answer("/here", time.monotonic(), 5)
        if way == "kill":
            os.kill(stub, signal.SIGKILL)
        else:
            answer = served.post("/here", content="die")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        # about a second and the time to load, where nothing else runs
        found.wait_for_answer("/here", time.monotonic(), 15, other_than=str(stub))
    assert found.failed("/beside") == []
    failed = found.failed("/here")
    assert failed
    assert {(answer.status, answer.retry_after) for answer in failed} == {(503, "1")}
    wait_until(lambda: served.get("/readyz").status_code == 200, 20)
    assert stub_of(served, "trusted.here").pid != stub


def test_hooks_of_a_class_run_and_a_setting_says_where(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "hosting.py").write_text(HOSTED)
    (tmp_path / "adapter.yaml").write_text("runners: {hosted: {isolated: false}}")
    sign = tmp_path / "ended"
    served = serve("hosting:Hosted", "--api-workers", "1", working_dir=tmp_path, env={"ENDED": str(sign)})
    (pid,) = served.post("/pids", json={"words": ["a"]}).json()
    assert pid == stub_of(served, "hosted.hosted").pid
    assert served.stop() == 0
    assert sign.read_text() == str(pid)


def test_code_that_cannot_be_loaded_says_why(run_adapter: Run, tmp_path: Path) -> None:
    text = SERVICE.replace("import model\n", "raise RuntimeError('no such weights')\n")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "trusted.py").write_text(text)
    ended = run_adapter("serve", "trusted:svc", "--port", "0", working_dir=tmp_path)
    assert ended.returncode == 1
    assert "RuntimeError: no such weights" in ended.stderr

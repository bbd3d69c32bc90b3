"""`adapter server run`: what a client of an endpoint sees, and what becomes of it when processes die."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from tests.e2e.conftest import ROOT, Serve, Served

FOLDER = Path(__file__).parent / "endpoints"
_SOON_S = 20.0  # for a machine that is busy
WORKER = "adapter.triton.worker"


def start(start_adapter: Serve, *options: str, env: dict[str, str] | None = None) -> Served:
    return start_adapter("server", "run", "--port", "0", "--drain-timeout", "2", *options, working_dir=FOLDER, env=env)


def state(served: Served) -> str:
    answer = served.get("/healthcheck")
    assert (answer.status_code == 200) == (answer.json()["status"] == "RUNNING")
    return str(answer.json()["status"])


def states_until(served: Served, wanted: str, seconds: float = _SOON_S) -> list[str]:
    """The states that were seen until the wanted one."""
    seen: list[str] = []
    until = time.monotonic() + seconds
    while not seen or seen[-1] != wanted:
        assert time.monotonic() < until, f"no {wanted}, but {seen}:\n{served.log}"
        now = state(served)
        if not seen or seen[-1] != now:
            seen.append(now)
        time.sleep(0.005)
    return seen


def in_background(function: Callable[[], httpx.Response], times: int = 1) -> list[concurrent.futures.Future[Any]]:
    pool = concurrent.futures.ThreadPoolExecutor(times)
    futures = [pool.submit(function) for _ in range(times)]
    pool.shutdown(wait=False)
    return futures


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `setup` waits for: a file, which is there unless a test takes it away."""
    gate = tmp_path_factory.mktemp("gate") / "open"
    gate.touch()
    return gate


@pytest.fixture(scope="module")
def endpoint(start_adapter: Serve, gate: Path) -> Served:
    served = start(start_adapter, env={"ADAPTER_REPLICA_NAME": "replica-7", "GATE": str(gate)})
    states_until(served, "RUNNING")
    return served


@pytest.fixture
def running(endpoint: Served) -> Served:
    states_until(endpoint, "RUNNING")
    return endpoint


# ---- requests -------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_with_its_output_and_true_milliseconds(running: Served) -> None:
    answer = running.post("/infer", json={"name": "Grüße", "seconds": 0.2})
    assert answer.status_code == 200
    body = answer.json()
    assert body["output"] == "Hello, Grüße!"  # what on_server_startup set is there
    assert 200 <= body["analytics"]["inference_time_ms"] <= body["analytics"]["performance_time_ms"] < 10_000
    assert answer.headers["ADAPTER_REPLICA_NAME"] == "replica-7"


def test_public_methods_are_endpoints_and_the_documents_say_so(running: Served) -> None:
    assert running.get("/").json() == {"docs": "/docs", "openapi": "/openapi.json"}
    paths = running.get("/openapi.json").json()["paths"]
    assert list(paths) == [
        "/uploads",
        "/healthcheck",
        "/",
        "/infer",
        "/add-later",
        "/die",
        "/fail",
        "/turn",
        "/unsendable",
        "/whoami",
    ]
    assert paths["/infer"]["post"]["description"] == "Greet somebody, after a while."
    assert running.get("/docs").status_code == 200


def test_an_async_method_is_awaited(running: Served) -> None:
    assert running.post("/add-later", json={"numbers": [1, 2, 3]}).json()["output"] == 6


def test_an_image_goes_in_and_out(running: Served) -> None:
    answer = running.post("/turn", json={"image": {"data": png(4, 2)}}).json()
    turned = PIL.Image.open(io.BytesIO(base64.b64decode(answer["output"]["data"])))
    assert turned.size == (2, 4)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/infer", {"nme": "x"}, 422, "Field required"),
        ("/infer", {"name": 3}, 422, "valid string"),
        ("/infer", [], 422, "dictionary"),
        ("/turn", {"image": {"data": "§§"}}, 422, "not base64"),
        ("/turn", {"image": {}}, 422, "Field required"),
        ("/turn", {"image": {"data": "aGVsbG8="}}, 400, "not an image"),
        ("/turn", {"image": {"data": {"url": "http://127.0.0.1:9/a.png"}}}, 400, "does not read URLs"),
        ("/fail", {"how": "http"}, 418, "a teapot"),
        ("/fail", {"how": "ours"}, 400, "seven is too many"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused(running: Served, path: str, body: Any, status: int, said: str) -> None:
    answer = running.post(path, json=body)
    assert answer.status_code == status
    assert said in str(answer.json()["detail"])
    assert answer.headers.get("x-kind") == ("pot" if status == 418 else None)


@pytest.mark.parametrize("content", [b"", b'{"name', b"\xff\xfe"])
def test_a_body_that_is_no_json_is_422(running: Served, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert running.post("/infer", content=content, headers=headers).status_code == 422


def test_json_needs_no_content_type(running: Served) -> None:
    assert running.post("/infer", content=b'{"name": "you"}').json()["output"] == "Hello, you!"


def test_get_is_405(running: Served) -> None:
    answer = running.get("/infer")
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("how", ["raise", "exit", "text"])
def test_a_method_that_fails_is_500_and_tells_its_client_nothing(running: Served, how: str) -> None:
    answer = running.post("/fail", json={"how": how}, headers={"x-request-id": f"failing-{how}"})
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    running.wait_for(r"a secret of the server" if how == "raise" else rf"failing-{how}|fail\(\) failed")
    assert state(running) == "RUNNING"
    assert running.post("/infer", json={"name": "you"}).status_code == 200


def test_a_result_that_cannot_be_sent_is_500(running: Served) -> None:
    assert running.post("/unsendable", json={"name": "x"}).status_code == 500
    running.wait_for(r"unsendable\(\) returned a lock, which cannot be written as JSON")


@pytest.mark.parametrize("megabytes", [2, 64])
def test_a_large_file_is_uploaded(running: Served, megabytes: int) -> None:
    content = os.urandom(megabytes * 1024 * 1024)
    answer = running.post("/uploads", files={"file": ("größe.bin", content, "x/y")}, data={"label": "grün"})
    assert answer.status_code == 200
    assert answer.json()["output"] == {
        "label": "grün",
        "size": len(content),
        "sum": sum(content[:1000]) + sum(content[-1000:]),
        "name": "größe.bin",
        "type": "x/y",
    }
    assert running.post("/uploads", data={"label": "x"}).status_code == 422


def test_calls_are_answered_one_by_one_and_the_server_answers_meanwhile(running: Served) -> None:
    began = time.monotonic()
    calls = in_background(lambda: running.post("/infer", json={"name": "you", "seconds": 1.5}), 3)
    time.sleep(0.3)
    asked = time.monotonic()
    assert state(running) == "RUNNING"
    assert time.monotonic() - asked < 1.2
    assert [call.result().status_code for call in calls] == [200, 200, 200]
    assert time.monotonic() - began >= 4.5


# ---- processes that die ----------------------------------------------------------------------------------------------


def process(served: Served) -> int:
    return int(served.post("/whoami", json={"name": "you"}).json()["output"])


@pytest.mark.parametrize("which", [WORKER, "backend_stub", "bin/tritonserver"])
def test_it_comes_back_when_a_process_is_killed_while_idle(running: Served, which: str) -> None:
    before = process(running)
    (pid,) = running.children(which)
    os.kill(pid, signal.SIGKILL)
    assert "LAUNCH_PREDICT_LOOP" in states_until(running, "LAUNCH_PREDICT_LOOP")
    states_until(running, "RUNNING")
    assert process(running) != before


def test_the_call_that_kills_the_process_gets_503_and_the_next_is_served(running: Served) -> None:
    answer = running.post("/die", json={"code": 3})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "exit code 3" in answer.json()["detail"]
    states_until(running, "RUNNING")
    assert running.post("/infer", json={"name": "you"}).status_code == 200


def test_calls_that_wait_behind_a_death_are_answered(running: Served) -> None:
    before = process(running)
    calls = in_background(lambda: running.post("/infer", json={"name": "you", "seconds": 0.5}), 4)
    time.sleep(0.2)
    os.kill(before, signal.SIGKILL)
    killed = time.monotonic()
    statuses = sorted(call.result().status_code for call in calls)
    assert time.monotonic() - killed < 15  # nobody hangs
    assert set(statuses) <= {200, 503}
    assert 503 in statuses  # the one that ran
    states_until(running, "RUNNING")


def test_calls_do_not_wait_for_a_slow_setup_after_a_death(running: Served, gate: Path) -> None:
    pid = process(running)
    gate.unlink()
    try:
        calls = in_background(lambda: running.post("/infer", json={"name": "you", "seconds": 1.0}), 3)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        assert [call.result().status_code for call in calls] == [503, 503, 503]
        assert time.monotonic() - killed < 10
        states_until(running, "SETUP_SERVICE")
        refused = running.post("/infer", json={"name": "you"})
        assert (refused.status_code, refused.json()) == (503, {"status": "SETUP_SERVICE"})
    finally:
        gate.touch()
    states_until(running, "RUNNING")
    assert running.post("/infer", json={"name": "you"}).status_code == 200


# ---- starting and ending --------------------------------------------------------------------------------------------


def test_the_states_of_a_slow_start_are_seen_and_sigterm_ends_it(start_adapter: Serve, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    served = start(start_adapter, env={"GATE": str(gate)})
    assert states_until(served, "SETUP_SERVICE") == ["LAUNCH_PREDICT_LOOP", "SETUP_SERVICE"]
    assert served.post("/infer", json={"nme": "you"}).status_code == 422
    assert served.post("/infer", json={"name": "you"}).json() == {"status": "SETUP_SERVICE"}
    assert served.stop() == 0
    served.wait_for(r"status: UNINITIALIZED -> LAUNCH_PREDICT_LOOP")
    served.wait_for(r"status: SHUTTING_DOWN -> STOPPED")


def test_sigterm_lets_a_call_end_and_waits_for_nothing_that_hangs(start_adapter: Serve) -> None:
    served = start(start_adapter)
    states_until(served, "RUNNING")
    (call,) = in_background(lambda: served.post("/infer", json={"name": "you", "seconds": 1.5}))
    time.sleep(0.3)
    (hung,) = in_background(lambda: served.post("/infer", json={"name": "you", "seconds": 600}))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.5)
        assert served.stop() == 0
    assert call.result().json()["output"] == "Hello, you!"
    assert hung.result().status_code == 503
    pid = served.process.pid
    assert f"shut down in {pid}, made in {pid}, locked: False" in served.log


def test_a_setup_that_fails_ends_the_server_with_1(start_adapter: Serve) -> None:
    served = start(start_adapter, env={"BROKEN": "1"})
    assert served.process.wait(60) == 1
    assert "no weights here" in served.log
    assert "shut down in" in served.log


def test_nothing_outlives_a_server_that_is_killed(start_adapter: Serve) -> None:
    served = start(start_adapter)
    states_until(served, "RUNNING")
    children = [*served.children(WORKER), *served.children("backend_stub"), *served.children("bin/tritonserver")]
    assert len(children) == 3
    served.process.kill()
    until = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < until, "something was left behind"
        time.sleep(0.05)


def test_without_async_it_runs_in_one_process(start_adapter: Serve) -> None:
    served = start(start_adapter, "--async-enable", "false")
    assert served.get("/healthcheck").json() == {"status": "RUNNING", "async_enable": False}
    assert process(served) == served.process.pid
    (call,) = in_background(lambda: served.post("/infer", json={"name": "you", "seconds": 1.0}))
    time.sleep(0.2)
    assert state(served) == "RUNNING"
    body = call.result().json()
    assert 1000 <= body["analytics"]["inference_time_ms"] <= body["analytics"]["performance_time_ms"]
    assert served.post("/fail", json={"how": "raise"}).text == "Internal Server Error"
    (hung,) = in_background(lambda: served.post("/infer", json={"name": "you", "seconds": 600}))
    time.sleep(0.2)
    assert served.stop() == 0
    assert hung.result().status_code == 503


# ---- examples of calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["curl", "python"])
def test_examples_of_calls_run_as_they_are_printed(running: Served, run_adapter: Any, format_name: str) -> None:
    made = run_adapter("server", "generate-usage-examples", "--format", format_name, working_dir=FOLDER)
    text = made.stdout.replace("http://localhost:8080", running.url)
    command = ["bash", "-c", text] if format_name == "curl" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "Hello, text!" in done.stdout


def test_the_example_reduces_the_colors_of_an_image(start_adapter: Serve) -> None:
    served = start_adapter(
        "server", "run", "--port", "0", "--async-enable", "false", working_dir=ROOT / "examples" / "endpoint"
    )
    answer = served.post("/infer", json={"image": {"data": png(3, 3)}, "bits": 1}).json()
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(answer["output"]["data"])))
    assert (picture.format, picture.size, picture.getpixel((0, 0))) == ("PNG", (3, 3), (128, 0, 0))


# ---- services in other places ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
import threading

import iniconfig  # one beside the program, not the one that is installed
from adapter.endpoint import Server, Service


class Mine(Service):
    def __init__(self) -> None:
        self.begun = 0

    def on_server_startup(self) -> None:
        self.begun += 1

    def setup(self) -> None:
        self.mine = iniconfig.MINE

    def infer(self, n: int) -> int:
        return n + self.begun


async def main() -> None:
    server = Server(Mine())
    for _ in range(2):
        async with server.prepare_for_serving():
            while not server.is_running:
                await asyncio.sleep(0.01)
            print(server.state.name)
        print(server.state.name)


if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_server_in_a_program_of_ones_own_can_stop_and_start_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "iniconfig.py").write_text("MINE = True")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["RUNNING", "STOPPED", "RUNNING", "STOPPED"]


def test_a_service_that_cannot_be_handed_over_is_told(start_adapter: Serve, tmp_path: Path) -> None:
    made = PROGRAM.replace("self.begun = 0", "self.begun, self.lock = 0, threading.Lock()")
    (tmp_path / "service.py").write_text(made)
    (tmp_path / "iniconfig.py").write_text("MINE = True")
    served = start_adapter("server", "run", "--port", "0", working_dir=tmp_path)
    assert served.process.wait(30) == 1
    served.wait_for(r"cannot pickle '_thread.lock' object. Make such an object in setup\(\)")

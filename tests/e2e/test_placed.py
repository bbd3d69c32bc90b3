"""Where runners run, and that they are warm: instances and their environment, deadlines, embedded runners."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve, Served

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("tests.e2e.services.placed:svc", "--api-workers", "2")


def environments(served: Served, runner: str) -> dict[int, dict[str, str]]:
    answer = served.post("/environments", json={"runner": runner, "calls": 24})
    assert answer.status_code == 200, answer.text
    return {found.pop("pid"): found for found in answer.json()}


# ---- instances ------------------------------------------------------------------------------------------------------


def test_strategy_of_ones_own_makes_the_workers(served: Served) -> None:
    found = environments(served, "spread")
    assert sorted((e["CHIP"], e["CUDA_VISIBLE_DEVICES"]) for e in found.values()) == [
        ("a", "-1"),
        ("b", "0,1"),
        ("c", "0,1"),
    ]


def test_library_with_threads_has_one_worker_for_all_its_cpus(served: Served) -> None:
    (found,) = environments(served, "threads").values()
    assert (found["OMP_NUM_THREADS"], found["ADAPTER_NUM_THREAD"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "2", "-1")


def test_library_without_threads_has_a_worker_for_each_cpu(served: Served) -> None:
    found = environments(served, "single")
    assert len(found) == 2
    assert {e["OMP_NUM_THREADS"] for e in found.values()} == {"1"}


# ---- warm-up --------------------------------------------------------------------------------------------------------

WARM = [["first", 2, 7], ["first", 1, 7], ["second", 2, 3]]


def test_worker_is_warm_before_its_first_call_and_so_is_the_one_after_it(served: Served) -> None:
    pid, seen = served.post("/warmed", json=0).json()
    assert seen == WARM
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while (answer := served.post("/warmed", json=0)).status_code == 503 and time.monotonic() < until:
        time.sleep(0.05)
    other, seen = answer.json()
    assert other != pid
    assert seen == WARM


FAILING = """
import adapter
class Cold(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def f(self, x):
        {body}
svc = adapter.Service("cold", runners=[adapter.Runner(Cold, warmup=[1, 2]{more})])
"""


@pytest.mark.parametrize(
    ("more", "body", "reason"),
    [
        ("", "raise ValueError('too cold')", "ValueError: too cold"),
        (", embedded=True", "return x[:1]", "f() returned 1 items on axis 0 for a batch of 2."),
    ],
)
def test_warm_up_that_fails_keeps_the_service_from_starting(
    run_adapter: Run, tmp_path: Path, body: str, reason: str, more: str
) -> None:
    (tmp_path / "cold.py").write_text(FAILING.format(body=body, more=more))
    done = run_adapter("serve", "cold.py:svc", "--port", "0", "--api-workers", "1", working_dir=tmp_path)
    assert done.returncode == 1
    assert f"The warm-up call of f() failed: {reason}" in done.stdout + done.stderr


# ---- deadlines ------------------------------------------------------------------------------------------------------


def test_call_that_waits_longer_than_its_limit_gets_503_and_may_come_again(served: Served) -> None:
    assert served.post("/wait", json=0.01).json() == 0.01
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: served.post("/wait", json=0.2), range(4)))
    late = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(late) <= 3
    for answer in late:
        assert answer.status_code == 503
        assert float(answer.headers["retry-after"]) >= 1
        assert "could not answer within its max_latency_ms of 300" in answer.json()["error"]
    until = time.monotonic() + 20
    while (again := served.post("/wait", json=0.01)).status_code == 503 and time.monotonic() < until:
        time.sleep(float(again.headers["retry-after"]))
    assert again.json() == 0.01


# ---- embedded runners -----------------------------------------------------------------------------------------------


def test_embedded_runner_has_a_state_in_each_front(served: Served) -> None:
    def called(path: str) -> tuple[int, int]:
        pid, number = served.post(path, json=0.01).json()  # over a connection of its own
        return pid, number

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(called, ["/count", "/count_in_thread"] * 20))
    numbers: dict[int, list[int]] = {}
    for pid, number in found:
        numbers.setdefault(pid, []).append(number)
    assert set(numbers) <= set(served.children("adapter.server.front"))
    for counted in numbers.values():
        assert sorted(counted) == list(range(1, len(counted) + 1))


def pinged(served: Served) -> int:
    """The process that answers over a new connection, asked without the costly start of a client."""
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    try:
        connection.request("POST", "/ping", "0", {"content-type": "application/json"})
        return int(connection.getresponse().read())
    finally:
        connection.close()


def test_embedded_runner_does_not_keep_its_front_from_other_requests(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        slow = threads.submit(served.post, "/count", json=3)
        time.sleep(0.3)
        pids = [pinged(served) for _ in range(20)]
        # both answer meanwhile, for a connection goes to either
        assert not slow.done()
        assert slow.result().json()[0] in pids


def test_embedded_runner_awaits_async_methods_and_passes_errors_on(served: Served) -> None:
    assert served.post("/later", json={"a": [1]}).json() == {"a": [1]}
    refused = served.post("/later", json="fail")
    assert (refused.status_code, refused.json()) == (400, {"error": "not this one"})
    blocked = served.post("/blocking", json=0)
    assert blocked.status_code == 500
    assert "await runner.count.async_run" in blocked.json()["error"]


def test_embedded_runner_has_no_entry(served: Served) -> None:
    assert "placed.here" not in served.log
    assert served.get("/readyz").status_code == 200


# ---- scripts --------------------------------------------------------------------------------------------------------

SCRIPT = """
import adapter
from adapter.io import JSON

FACTOR = 2

class Doubler(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def double(self, x):
        return [helper(item) for item in x]

def helper(item):
    return FACTOR * item

runner = adapter.Runner(Doubler, cpu=1)
svc = adapter.Service("script", runners=[runner])

@svc.api(input=JSON(), output=JSON())
async def double(numbers):
    return await runner.double.async_run(numbers)

if __name__ == "__main__":
    with adapter.HTTPServer(svc, port=0, api_workers=1).start() as client:
        print("answer", client.double([1, 2]))
"""


def test_script_serves_the_runnable_that_it_defines(tmp_path: Path) -> None:
    (tmp_path / "a_script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "a_script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "answer [2, 4]" in done.stdout

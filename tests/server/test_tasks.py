from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import adapter
from adapter.client import AsyncHTTPClient
from adapter.exceptions import AdapterError, DeadlineExceeded, InvalidArgument, NotFound
from adapter.server.tasks import MOST_ATTEMPTS, Task, TaskFile, Tasks
from adapter.testing import TestClient

GATE = threading.Event()


@adapter.service
class Jobs:
    @adapter.task
    def double(self, n: int) -> dict[str, int]:
        return {"doubled": 2 * n}

    @adapter.task
    def wait(self) -> str:
        assert GATE.wait(10)
        return "waited"

    @adapter.task
    async def sleep(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @adapter.task
    def fail(self, ctx: adapter.Context) -> str:
        raise InvalidArgument("not today")

    @adapter.task(route="/v1/text")
    def echo(self, text: str, /) -> str:
        return text

    @adapter.api
    def quick(self) -> str:
        return "quick"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Jobs) as running:
        yield running


def test_task_is_submitted_asked_about_and_answered(client: TestClient) -> None:
    begun = client.post("/double/submit", json={"n": 4}).json()
    assert (set(begun), begun["status"], len(begun["task_id"])) == ({"task_id", "status"}, "in_progress", 32)
    assert client.double.task(begun["task_id"]).wait(10) == {"doubled": 8}
    status = client.get(f"/double/status?task_id={begun['task_id']}").json()
    assert status["status"] == "completed"
    assert status["created_at"] <= status["executed_at"]
    answer = client.get(f"/double/get?task_id={begun['task_id']}")
    assert (answer.json(), answer.headers["content-type"]) == ({"doubled": 8}, "application/json")
    # the API itself answers as any does
    assert client.double(3) == {"doubled": 6}


def test_body_is_checked_when_it_is_submitted(client: TestClient) -> None:
    answer = client.post("/double/submit", json={"n": "x"})
    assert answer.status_code == 400
    assert "n: Input should be a valid integer" in answer.json()["error"]


def test_body_and_answer_are_those_of_the_api(client: TestClient) -> None:
    assert client.echo.submit("hällo").wait(10) == "hällo"
    assert client.post("/v1/text/submit", content="x").status_code == 200


def test_requests_are_answered_while_a_plain_task_runs(client: TestClient) -> None:
    GATE.clear()
    task = client.wait.submit()
    assert client.quick() == "quick"
    assert task.status() == "in_progress"
    with pytest.raises(InvalidArgument, match=f"task {task.id} is not completed yet"):
        task.get()
    with pytest.raises(DeadlineExceeded):
        task.wait(0.1)
    GATE.set()
    assert task.wait(10) == "waited"


def test_task_that_is_cancelled_ends_at_once(client: TestClient) -> None:
    task = client.sleep.submit(60)
    while client.get(f"/sleep/status?task_id={task.id}").json()["executed_at"] is None:
        time.sleep(0.01)
    task.cancel()
    assert task.status() == "cancelled"
    with pytest.raises(InvalidArgument, match="is cancelled"):
        task.get()
    with pytest.raises(InvalidArgument, match="is cancelled already"):
        task.cancel()


def test_tasks_that_are_cancelled_before_their_first_step_leave_their_room(tmp_path: Path) -> None:
    async def run() -> dict[str, str]:
        tasks = Tasks({"x": never}, {"x": typing.cast(Any, Jobs).apis["double"]}, 1)
        await tasks.start(tmp_path)
        for _ in range(3):
            tasks._begin(Task("a", "x", "{}", b""))
            tasks._running["a"].cancel()
            await asyncio.sleep(0.01)
        left = dict(tasks._apis_running)
        await tasks.stop()
        return left

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    assert asyncio.run(run()) == {}


def test_answer_is_kept_when_the_file_can_be_used_again(tmp_path: Path) -> None:
    async def run() -> Any:
        tasks = Tasks({"x": answer}, {"x": typing.cast(Any, Jobs).apis["double"]}, 1)
        await tasks.start(tmp_path)
        await tasks._act(lambda: tasks._open._db.execute("PRAGMA busy_timeout = 10"))
        identity = await tasks._act(lambda: tasks._open.add("x", '{"headers": [], "query": ""}', b""))
        tasks._woken.set()
        while (await tasks.find("x", identity))["state"] != "completed":
            await asyncio.sleep(0.05)
        await tasks.stop()
        return holder.in_transaction

    holder = sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        holder.execute("BEGIN IMMEDIATE")  # nobody else can write for a while
        asyncio.get_running_loop().call_later(0.5, lambda: holder.execute("COMMIT"))
        await Response("done")(scope, receive, send)

    assert asyncio.run(asyncio.wait_for(run(), 20)) is False
    holder.close()


def test_many_async_tasks_run_together(client: TestClient) -> None:
    tasks = [client.sleep.submit(0.2) for _ in range(20)]
    assert [task.wait(10) for task in tasks] == [0.2] * 20


def test_task_that_fails_gives_the_error_of_the_api_and_can_be_retried(client: TestClient) -> None:
    task = client.fail.submit()
    with pytest.raises(InvalidArgument, match="not today"):
        task.wait(10)
    assert task.status() == "failed"
    again = task.retry()
    assert again.id != task.id
    with pytest.raises(InvalidArgument, match="not today"):
        again.wait(10)
    assert client.double.submit(1).retry().wait(10) == {"doubled": 2}


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/double/status", 400, "task_id is required"),
        ("GET", "/double/get?task_id=", 400, "task_id is required"),
        ("GET", "/double/get?task_id=nobody", 404, "There is no task 'nobody' of double."),
        ("PUT", "/double/cancel?task_id=nobody", 404, "There is no task"),
        ("POST", "/double/retry?task_id=nobody", 404, "There is no task"),
        ("GET", "/double/submit", 405, "send it a POST"),
        ("POST", "/double/cancel?task_id=nobody", 405, "send it a PUT"),
    ],
)
def test_wrong_question_is_refused_with_a_sentence(
    client: TestClient, method: str, path: str, status: int, words: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_task_of_one_api_is_none_of_another(client: TestClient) -> None:
    task = client.double.submit(1)
    with pytest.raises(NotFound):
        client.sleep.task(task.id).get()


def test_openapi_has_the_routes_of_tasks(client: TestClient) -> None:
    paths = client.get("/docs.json").json()["paths"]
    assert {(path, method) for path in paths for method in paths[path] if path.startswith("/double")} == {
        ("/double", "post"),
        ("/double/submit", "post"),
        ("/double/status", "get"),
        ("/double/get", "get"),
        ("/double/cancel", "put"),
        ("/double/retry", "post"),
    }


def test_tasks_count_in_the_metrics_by_their_route(client: TestClient) -> None:
    client.double.submit(1).wait(10)
    page = client.get("/metrics").text
    assert 'endpoint="/double/submit"' in page


def test_async_client_has_tasks(client: TestClient) -> None:
    async def use() -> None:
        async with AsyncHTTPClient.from_url(client.server_url) as asynchronous:
            task = await asynchronous.double.submit(n=2)
            assert await task.wait(10) == {"doubled": 4}
            assert await task.status() == "completed"
            again = await task.retry()
            assert await again.wait(10) == {"doubled": 4}
            slow = await asynchronous.sleep.submit(60)
            await slow.cancel()
            assert await slow.status() == "cancelled"

    asyncio.run(use())


def test_task_is_no_stream_and_no_batch() -> None:
    with pytest.raises(InvalidArgument, match="is a task and streams"):

        @adapter.service
        class Streams:
            @adapter.task
            def words(self) -> Iterator[str]:
                yield ""


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[TaskFile]:
    found = TaskFile(tmp_path)
    yield found
    found.close()


def killed(folder: Path) -> None:
    """A worker that takes a task and dies."""
    program = "import os, sys, pathlib; from adapter.server.tasks import TaskFile; "
    program += "TaskFile(pathlib.Path(sys.argv[1])).take(['x']); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)


def test_tasks_are_taken_once_the_oldest_first(file: TaskFile, tmp_path: Path) -> None:
    other = TaskFile(tmp_path)
    names = [file.add("x", "{}", bytes([i])) for i in range(4)]
    taken = [taken for by in (file, other, file, other) if (taken := by.take(["x"])) is not None]
    assert [task.id for task in taken] == names
    assert file.take(["x"]) is None
    assert other.take(["y"]) is None
    other.close()


def test_task_of_a_worker_that_died_is_taken_again_and_fails_in_the_end(file: TaskFile, tmp_path: Path) -> None:
    identity = file.add("x", "{}", b"body")
    for _ in range(MOST_ATTEMPTS - 1):
        killed(tmp_path)
        file.tidy()
        found = file.find(identity, "x", ("state", "owner"))
        assert found is not None
        assert (found["state"], found["owner"]) == ("queued", None)
    killed(tmp_path)
    file.tidy()
    found = file.find(identity, "x", ("state", "status", "answer"))
    assert found is not None
    assert (found["state"], found["status"]) == ("failed", 500)
    assert b"The worker of this task died 3 times" in found["answer"]


def test_task_of_a_worker_that_lives_is_left_to_it(file: TaskFile, tmp_path: Path) -> None:
    other = TaskFile(tmp_path)
    identity = file.add("x", "{}", b"")
    assert other.take(["x"]) is not None
    file.tidy()
    assert file.take(["x"]) is None
    other.give_back(identity)
    other.close()
    assert file.take(["x"]) is not None


def test_answer_of_a_task_that_was_cancelled_meanwhile_is_dropped(file: TaskFile) -> None:
    identity = file.add("x", "{}", b"")
    assert file.take(["x"]) is not None
    assert file.cancel(identity)
    assert file.cancelled() == {identity}
    file.finish(identity, 200, "[]", b"late")
    found = file.find(identity, "x", ("state", "answer"))
    assert found is not None
    assert (found["state"], found["answer"]) == ("cancelled", None)


def test_nothing_is_left_of_a_worker_that_ended(tmp_path: Path) -> None:
    TaskFile(tmp_path).close()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".worker")] == []


def test_client_of_a_service_without_tasks_says_so(client: TestClient) -> None:
    with pytest.raises(AdapterError, match="is no task"):
        client.quick.submit()

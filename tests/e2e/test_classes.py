"""Class-based services as a person runs them: hooks, both hosts, tasks, reload."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import PIL.Image
import pytest

from adapter.client import SyncHTTPClient
from adapter.exceptions import ServiceUnavailable
from tests.e2e.conftest import Serve, Served, wait_until

SERVICES = Path(__file__).parent / "services"
Run = Callable[..., CompletedProcess[str]]


def printed(served: Served) -> list[str]:
    """What the service itself printed: no line of a log."""
    return [line for line in served.lines if not re.match(r"\d{4}-\d\d-\d\dT", line)]


# ---- hooks ----------------------------------------------------------------------------------------------------------


def test_output_of_hooks_is_in_the_order_and_number_of_the_documentation(serve: Serve) -> None:
    served = serve("hooks:HookService", working_dir=SERVICES)
    assert served.post("/predict", json={"text": "a"}).text == "A"
    init = "This runs on Service startup, once for each worker, so it runs 4 times."
    begun = [
        "Do some preparation work, running only once.",
        "Do more preparation work if needed, also running only once.",
        init,
        init,
        init,
        init,
    ]
    wait_until(lambda: len(printed(served)) >= len(begun))
    assert printed(served) == begun
    started = next(i for i, line in enumerate(served.lines) if 'HTTP server from "hooks:HookService"' in line)
    assert served.lines.index(begun[1]) < started < served.lines.index(init)
    assert served.stop() == 0
    ends = ["Async cleanup actions on Service shutdown.", "Cleanup actions on Service shutdown."]
    wait_until(lambda: len(printed(served)) >= 14)
    assert sorted(printed(served)[6:]) == sorted(ends * 4)
    first = [i for i, line in enumerate(printed(served)) if line == ends[1]]
    second = [i for i, line in enumerate(printed(served)) if line == ends[0]]
    assert all(a < b for a, b in zip(first, second, strict=True))


def test_startup_hooks_run_in_each_worker_and_make_what_apis_use(serve: Serve) -> None:
    served = serve("hooks:StartupService", working_dir=SERVICES)
    assert served.post("/predict", json={"text": "ab"}).text == "AB"
    wait_until(lambda: len(printed(served)) >= 9)
    lines = printed(served)
    assert lines[0] == "Global preparation, runs once before workers start."
    one, two = "Initializing resources for worker.", "Async resource initialization for worker."
    assert sorted(lines[1:]) == sorted([one, two] * 4)
    first, second = ([i for i, line in enumerate(lines) if line == text] for text in (one, two))
    assert all(a < b for a, b in zip(first, second, strict=True))


def test_worker_that_dies_is_replaced_by_one_that_runs_its_startup_hooks_again(serve: Serve) -> None:
    served = serve("hooks:StartupService", "--api-workers", "1", working_dir=SERVICES)
    (worker,) = served.children("adapter.server.front")
    os.kill(worker, signal.SIGKILL)
    served.wait_for("a new one starts")
    wait_until(lambda: printed(served).count("Async resource initialization for worker.") == 2)
    assert served.post("/predict", json={"text": "ab"}).text == "AB"
    assert printed(served).count("Global preparation, runs once before workers start.") == 1


def test_deployment_hook_that_fails_ends_serve_before_any_worker(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import adapter\n"
        "@adapter.service\n"
        "class Broken:\n"
        "    @adapter.on_deployment\n"
        "    async def fetch(): raise OSError('no disk')\n"
        "    def __init__(self): print('never')\n"
    )
    done = run_adapter("serve", "broken", "--working-dir", str(tmp_path), "--port", "0")
    assert (done.returncode, "never" in done.stdout) == (1, False)
    assert "The deployment hook fetch failed: OSError: no disk" in done.stderr


def test_startup_hook_that_fails_is_tried_three_times_more_then_serve_ends(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import adapter\n"
        "@adapter.service\n"
        "class Broken:\n"
        "    def __init__(self): print('made')\n"
        "    @adapter.on_startup\n"
        "    def connect(self): raise OSError('no database')\n"
        "    @adapter.on_shutdown\n"
        "    def end(self): print('ended')\n"
    )
    done = run_adapter("serve", "broken:Broken", "--working-dir", str(tmp_path), "--port", "0", "--log-format", "text")
    assert (done.returncode, done.stdout.count("made"), done.stdout.count("ended")) == (1, 4, 4)
    assert re.findall(r"tries again in ([\d.]+) s", done.stderr) == ["0.5", "1", "2"]
    assert "OSError: no database" in done.stderr


def test_startup_hook_that_succeeds_when_it_is_tried_again_lets_serve_go_on(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shaky.py").write_text(
        "import pathlib, adapter\n"
        "FILE = pathlib.Path(__file__).with_name('tried')\n"
        "@adapter.service\n"
        "class Shaky:\n"
        "    @adapter.on_startup\n"
        "    def connect(self):\n"
        "        if not FILE.exists():\n"
        "            FILE.touch()\n"
        "            raise OSError('not yet')\n"
        "    @adapter.api\n"
        "    def hello(self) -> str: return 'hello'\n"
    )
    served = serve("shaky", working_dir=tmp_path)
    assert served.post("/hello").text == "hello"


def test_settings_of_the_class_and_of_the_file_by_its_name_count(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "tuned.py").write_text(
        "import os, time, adapter\n"
        "@adapter.service(workers=3, traffic={'timeout': 0.3}, envs=[{'name': 'WORD', 'value': 'set'}],\n"
        "                 labels={'owner': 'me'}, metrics={'namespace': 'mine'})\n"
        "class Tuned:\n"
        "    @adapter.api\n"
        "    def word(self) -> str: return os.environ['WORD']\n"
        "    @adapter.api\n"
        "    async def sleep(self) -> None:\n"
        "        import asyncio\n"
        "        await asyncio.sleep(5)\n"
    )
    (tmp_path / "adapter.yaml").write_text("services:\n  Tuned:\n    workers: 2\n")
    served = serve("tuned", working_dir=tmp_path)
    assert len(served.children("adapter.server.front")) == 2
    assert served.post("/word").text == "set"
    assert served.post("/sleep").status_code == 504
    until = time.monotonic() + 10
    while "mine_request_total" not in served.get("/metrics").text:  # another worker's are seen half a second later
        assert time.monotonic() < until
    assert served.get("/docs.json").json()["info"]["x-adapter-labels"] == {"owner": "me"}


# ---- both hosts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes") / "notes"


@pytest.fixture(scope="module")
def in_front(serve: Serve, iris: str) -> Served:
    return serve("hosts:InFront", working_dir=SERVICES)


@pytest.fixture(scope="module")
def on_triton(serve: Serve, iris: str, notes: Path) -> Served:
    return serve("hosts:OnTriton", "--api-workers", "1", working_dir=SERVICES, env={"NOTES": str(notes)})


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


IRIS = [[5.9, 3, 5.1, 1.8]]
TABLE: list[tuple[str, dict[str, Any], int, str]] = [
    ("/greet", {"json": {"text": "you"}}, 200, "hello! you"),
    ("/greet", {"json": {}}, 400, "text: Field required"),
    ("/item", {"json": {"item": {"name": "a", "count": 4}}}, 200, '{"name":"a?","count":8}'),
    ("/item", {"json": {"item": {"name": "a", "count": "x"}}}, 400, "item.count: Input should be a valid integer"),
    ("/counted", {}, 200, ""),
    ("/root", {"content": "hä"}, 200, "HÄ"),
    ("/fitted", {"json": {"rows": [1, 2, 3, 4]}}, 200, "[[3.0,6.0],[9.0,12.0]]"),
    ("/fitted", {"json": {"rows": [1, 2, 3]}}, 400, "rows: It has the shape (3,)"),
    ("/classify", {"json": {"rows": IRIS}}, 200, "[2]"),
    ("/tag", {}, 200, "iris_clf"),
    ("/frame", {"json": {"frame": [{"a": 1}, {"a": 2}]}}, 200, '[{"a":1,"n":2},{"a":2,"n":2}]'),
    ("/image", {"files": {"image": png()}}, 200, "[2,3]"),
    ("/image", {"files": {"image": b"no"}}, 400, "In the part 'image'"),
    ("/file", {"files": {"file": ("a.txt", b"abc")}}, 200, "cba"),
    ("/context", {"headers": {"x-in": "y"}, "params": {"q": "z"}}, 201, "z"),
    ("/words", {"json": {"n": 2}}, 200, "hello!0 hello!1 "),
    ("/values", {"json": {"n": 2}}, 200, 'data: {"i":0}\n\ndata: {"i":1}\n\n'),
    ("/refuse", {"json": {"text": "a"}}, 404, '{"error":"There is no a."}'),
    ("/due", {"json": {"day": "2024-02-28"}}, 200, '["2024-02-29","red"]'),
    ("/due", {"json": {"day": "2024-02-28", "colour": "blue"}}, 200, '"blue"]'),
    ("/several", {"json": {"first": 1, "more": [2, 3]}}, 200, "[1,2,3]"),
    ("/sizes", {"files": [("files", b"a"), ("files", b"bc")]}, 200, "[1,2]"),
    ("/named", {"json": {"function": "f", "b": 1}}, 200, "fb"),
    ("/named", {"json": {"function": "f", "self": 1}}, 400, "cannot take an argument that is called 'self'"),
    ("/state", {}, 200, "state"),
    ("/served", {"json": {"a": 1, "more": [2]}}, 200, "3"),
    ("/leave", {}, 500, "The code of this service failed on the request"),
    ("/fail", {}, 500, "The code of this service failed on the request"),
    ("/unfit", {}, 500, "The result does not fit int"),
    ("/job", {"json": {"n": 4}}, 200, "8"),
    ("/batch", {"json": {"texts": ["a", "bcd"]}}, 200, "[1,3]"),
    ("/batch", {"json": {"texts": "a"}}, 400, "texts: Input should be a valid"),
    ("/nothing", {}, 404, "There is nothing at /nothing"),
]


@pytest.mark.parametrize(("path", "options", "status", "words"), TABLE)
def test_answers_are_the_same_in_the_front_and_on_triton(
    in_front: Served, on_triton: Served, path: str, options: dict[str, Any], status: int, words: str
) -> None:
    near, far = (served.post(path, **options) for served in (in_front, on_triton))
    assert (near.status_code, words in near.text) == (status, True), near.text
    assert (far.status_code, words in far.text) == (status, True), far.text
    same = [(a.headers.get("content-type"), a.headers.get("x-seen"), a.headers.get("set-cookie")) for a in (near, far)]
    assert same[0] == same[1]


def test_methods_of_a_hosted_class_share_one_object(on_triton: Served) -> None:
    before = on_triton.post("/counted").json()
    on_triton.post("/item", json={"item": {"name": "a"}})
    assert on_triton.post("/counted").json() == before + 1


def test_clients_tasks_and_readiness_are_the_same_on_triton(on_triton: Served) -> None:
    with SyncHTTPClient.from_url(on_triton.url) as client:
        assert client.greet("you") == "hello! you"
        assert list(client.words(2)) == ["hello!0 ", "hello!1 "]
        assert list(client.values(2)) == [{"i": 0}, {"i": 1}]
        assert client.job.submit(4).wait(20) == 8
    assert on_triton.get("/readyz").status_code == 200


def test_requests_of_a_batchable_method_that_come_together_are_one_batch(on_triton: Served) -> None:
    def call(n: int) -> None:
        with on_triton.client as client:
            for i in range(20):
                assert client.post("/batch", json={"texts": ["a" * n] * (1 + i % 3)}).json() == [n] * (1 + i % 3)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def test_hosted_class_can_be_used_by_one_in_the_front(serve: Serve, iris: str) -> None:
    served = serve("hosts:User", working_dir=SERVICES)
    for path in ("/lengths", "/async_lengths"):
        assert served.post(path, json={"texts": ["a", "bc"]}).json() == [[1, 2], [1, 2]]
    assert served.post("/words", json={"n": 2}).text == "HELLO!0 HELLO!1 "
    wrong = served.post("/wrong", json={"texts": []})
    assert wrong.status_code == 500
    assert "await …to_async.batch" in wrong.json()["error"]


def test_shutdown_hooks_of_a_hosted_class_run_when_serve_ends(on_triton: Served, notes: Path) -> None:
    assert on_triton.stop() == 0
    # one object for calls, and one for streams
    assert notes.read_text() == "OnTriton ended\n" * 2


# ---- tasks, reload --------------------------------------------------------------------------------------------------


def test_task_whose_worker_is_killed_is_run_again_by_another(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(
        "import os, pathlib, time, adapter\n"
        "RUNS = pathlib.Path(__file__).with_name('runs')\n"
        "@adapter.service(workers=2)\n"
        "class Jobs:\n"
        "    @adapter.task\n"
        "    def work(self) -> int:\n"
        "        with RUNS.open('a') as file: file.write(f'{os.getpid()}\\n')\n"
        "        if len(RUNS.read_text().split()) == 1: time.sleep(60)\n"
        "        return os.getpid()\n"
        "    @adapter.task\n"
        "    def quick(self, n: int) -> int: return n\n"
    )
    served = serve("jobs", working_dir=tmp_path)
    with SyncHTTPClient.from_url(served.url) as client:
        done = client.quick.submit(7)
        assert done.wait(20) == 7
        task = client.work.submit()
        wait_until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text().endswith("\n"))
        os.kill(int((tmp_path / "runs").read_text()), signal.SIGKILL)
        with contextlib.suppress(ServiceUnavailable):  # the client may have been connected with the one that is dead
            task.status()
        assert task.wait(30) == int((tmp_path / "runs").read_text().split()[1])
        # whichever worker is asked, the one that has begun since included
        assert {client.quick.task(done.id).get() for _ in range(10)} == {7}


def test_reload_serves_the_class_as_it_is_now(serve: Serve, tmp_path: Path) -> None:
    text = (
        "import adapter\n"
        "@adapter.service(workers=1)\n"
        "class Words:\n"
        "    def __init__(self): print('made')\n"
        "    @adapter.api\n"
        "    def word(self) -> str: return 'before'\n"
    )
    (tmp_path / "words.py").write_text(text)
    served = serve("words", "--reload", working_dir=tmp_path)
    assert served.post("/word").text == "before"
    (tmp_path / "words.py").write_text(text.replace("before", "after"))

    def renewed() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return served.post("/word").text == "after"
        return False

    wait_until(renewed)
    assert printed(served).count("made") >= 2

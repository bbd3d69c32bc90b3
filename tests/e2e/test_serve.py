"""The life of `adapter serve`: hooks, errors of every kind, deaths, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Serve, Served

SERVICES = Path(__file__).parent / "services"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("life") / "notes"


@pytest.fixture(scope="module")
def served(serve: Serve, notes: Path) -> Served:
    options = ("--api-workers", "2", "--timeout", "3")
    return serve("life:svc", *options, working_dir=SERVICES, env={"NOTES": str(notes)})


def test_hooks_run_in_order_once_before_workers_and_once_in_each(served: Served, notes: Path) -> None:
    lines = notes.read_text().splitlines()
    names, pids = zip(*(line.rsplit(" ", 1) for line in lines), strict=True)
    assert names[:2] == ("deployment 1", "deployment 2")
    assert sorted(names[2:]) == ["startup 1", "startup 1", "startup 2", "startup 2"]
    assert {int(p) for p in pids[:2]} == {served.process.pid}
    for pid in set(pids[2:]):
        assert [n for n, p in zip(names, pids, strict=True) if p == pid] == ["startup 1", "startup 2"]


def test_context_reads_the_request_and_shapes_the_response(served: Served) -> None:
    answer = served.post("/state", content="{}", headers={"user-agent": "a test"})
    assert answer.status_code == 202
    assert answer.headers["x-begun"] == "sync,async"
    assert answer.json() == {"begun": ["sync", "async"], "agent": "a test"}


ERRORS: list[tuple[str, str, int, str]] = [
    ("do", "raise", 500, "The code of this service failed"),
    ("do_async", "raise", 500, "The code of this service failed"),
    ("own_code_fails", "x", 500, "The code of this service failed"),
    ("blocking", "x", 500, "await runner.do.async_run"),
    ("not_listed", "x", 500, "runners=[…]"),
    ("refuse", "bread", 404, "there is no bread"),
    ("unsendable", "x", 500, "builtins.object"),
    ("leave", "x", 500, "The code of this service failed"),
    ("nap", "3.5", 504, "/nap did not answer within 3 seconds"),
    ("slow", "10", 504, "/slow did not answer within 3 seconds"),
    ("slow_sync", "4", 504, "/slow_sync did not answer within 3 seconds"),
]


@pytest.mark.parametrize(("api", "body", "status", "text"), ERRORS)
def test_error_in_user_code_gets_its_status_and_a_sentence(
    served: Served, api: str, body: str, status: int, text: str
) -> None:
    answer = served.post(f"/{api}", content=body)
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert "secret" not in answer.text


def test_model_that_was_not_asked_for_at_import_is_found(served: Served) -> None:
    assert served.post("/saved", content="later").json() == 4


def test_traceback_is_in_the_log_under_the_request_id(served: Served) -> None:
    served.post("/do", content="raise", headers={"x-request-id": "look-for-me"})
    served.wait_for("request look-for-me to do failed")
    served.wait_for("ValueError: a secret of the server")


def test_runner_that_raises_for_one_request_answers_the_others(served: Served) -> None:
    bodies = [[-1.0] if n == 7 else [float(n)] for n in range(20)]
    answers: list[httpx.Response | None] = [None] * 20

    def post(n: int) -> None:
        answers[n] = served.post("/positive", json=bodies[n])

    threads = [threading.Thread(target=post, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(a.status_code, a.json()) for a in answers if a is not None]
    assert found[7][0] == 500
    assert found[:7] + found[8:] == [(200, body) for body in bodies[:7] + bodies[8:]]


def test_user_code_that_dies_comes_back(served: Served) -> None:
    answer = served.post("/do", content="exit")
    assert answer.status_code == 503
    assert "exit code 3" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) >= 1
    assert served.post("/do", content="again").text.startswith("did again")


def test_user_code_killed_while_idle_comes_back(served: Served) -> None:
    (before,) = served.children("adapter.triton.worker")
    os.kill(before, signal.SIGKILL)
    served.wait_for("the worker of life.fragile died \\(killed by signal 9\\)")
    answer = served.post("/do", content="again")
    assert answer.status_code == 200
    assert str(before) not in answer.text


def test_methods_whose_calls_cannot_be_packed_are_hinted_at_once(served: Served) -> None:
    (hint,) = [line for line in served.lines if "Hint:" in line]
    assert "every call of fragile.do, fragile.nap goes" in hint
    assert "batchable" in hint


def test_front_process_killed_is_replaced(served: Served) -> None:
    before = set(served.children("adapter.server.front"))
    os.kill(min(before), signal.SIGKILL)
    served.wait_for("front process . died")
    until = time.monotonic() + 20
    while len(served.children("adapter.server.front")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(10):
        assert served.post("/do", content="work").status_code == 200


def test_sigterm_answers_what_was_accepted_then_runs_shutdown_hooks(serve: Serve, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    served = serve("life:svc", "--api-workers", "2", working_dir=SERVICES, env={"NOTES": str(notes)})
    answers: list[int] = []
    refused: list[str] = []
    stopping = threading.Event()

    def keep_asking() -> None:
        while not stopping.is_set():
            try:
                answers.append(served.post("/do_async", content="sleep").status_code)
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                refused.append(repr(error))

    threads = [threading.Thread(target=keep_asking) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1.2)
    assert served.stop() == 0
    stopping.set()
    for thread in threads:
        thread.join()
    assert refused == []
    assert len(answers) >= 8
    assert set(answers) == {200}
    ends = [line for line in notes.read_text().splitlines() if line.startswith("shutdown")]
    assert len(ends) == 2
    assert "['sync', 'async']" in ends[0]


def test_kill_9_of_the_launcher_ends_everything(serve: Serve) -> None:
    served = serve("life:svc", "--api-workers", "1", working_dir=SERVICES)
    left = [*served.children("tritonserver"), *served.children("stub"), *served.children("adapter")]
    assert len(left) >= 4
    served.process.kill()
    served.process.wait()
    until = time.monotonic() + 20
    while left and time.monotonic() < until:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        time.sleep(0.05)
    assert left == []


def test_second_signal_waits_for_no_request(serve: Serve) -> None:
    served = serve("life:svc", "--api-workers", "1", working_dir=SERVICES)
    failed: list[str] = []

    def ask() -> None:
        try:
            served.post("/slow", content="20")
        except httpx.HTTPError as error:
            failed.append(type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    served.process.send_signal(signal.SIGINT)
    served.wait_for("Shutting down")
    time.sleep(0.5)
    assert served.process.poll() is None  # it waits for the request
    served.process.send_signal(signal.SIGHUP)
    assert served.process.wait(10) == 0
    asking.join()
    assert failed


def test_temporary_repository_of_a_killed_launcher_is_removed_by_the_next(serve: Serve, tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path)}
    killed = serve("life:svc", "--api-workers", "1", working_dir=SERVICES, env=env)
    (left,) = tmp_path.glob("adapter-repository-*")
    killed.process.kill()
    killed.process.wait()
    until = time.monotonic() + 20
    while killed.children("adapter") and time.monotonic() < until:
        time.sleep(0.05)
    served = serve("life:svc", "--api-workers", "1", working_dir=SERVICES, env=env)
    assert not left.exists()
    assert len(list(tmp_path.glob("adapter-repository-*"))) == 1
    assert served.stop() == 0
    assert list(tmp_path.glob("adapter-repository-*")) == []


def test_development_serves_without_an_engine(serve: Serve) -> None:
    served = serve("life:svc", "--development", working_dir=SERVICES)
    assert served.children("tritonserver") == []
    assert served.post("/do", content="work").text.startswith("did work")
    assert "await runner.do.async_run" in served.post("/blocking", content="x").json()["error"]


def test_port_in_use_is_one_sentence(run_adapter: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_adapter("serve", "life:svc", "--working-dir", str(SERVICES), "--port", port)
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: 127\.0\.0\.1:{port} cannot be listened on: .* --port\.\n", done.stderr)


BAD_SERVICES: list[tuple[str, str, str]] = [
    ("nowhere:svc", "", "There is no module 'nowhere'"),
    ("life:nothing", "", "has no 'nothing'"),
    ("life:note", "", "is not an adapter.Service"),
    ("broken:svc", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    ("broken:svc", "import not_installed_at_all", "imports 'not_installed_at_all', which is not installed"),
    (
        "broken:svc",
        "import adapter; svc = adapter.Service('s', runners=[adapter.sklearn.get('no_such_model:latest').to_runner()])",
        "no_such_model",
    ),
    ("broken:svc", "import adapter; svc = adapter.Service('Not valid!')", "'Not valid!' cannot be a service name"),
    (
        "broken:svc",
        "import adapter, threading\n"
        "class R(adapter.Runnable):\n"
        "    def __init__(self, lock): self.lock = lock\n"
        "    @adapter.Runnable.method\n"
        "    def go(self): pass\n"
        "svc = adapter.Service('s', runners=[adapter.Runner(R, runnable_init_params={'lock': threading.Lock()})])",
        "The Runnable R cannot be written down",
    ),
]


@pytest.mark.parametrize(("target", "source", "text"), BAD_SERVICES, ids=[b[2][:30] for b in BAD_SERVICES])
def test_service_that_cannot_start_is_one_sentence(
    run_adapter: Run, tmp_path: Path, target: str, source: str, text: str
) -> None:
    folder = SERVICES
    if source:
        folder = tmp_path
        (tmp_path / "broken.py").write_text(source)
    done = run_adapter("serve", target, "--working-dir", str(folder), "--port", "0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_model_that_cannot_load_is_reported_with_its_traceback(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import adapter\n"
        "class R(adapter.Runnable):\n"
        "    def __init__(self): raise RuntimeError('the weights are gone')\n"
        "    @adapter.Runnable.method\n"
        "    def go(self): pass\n"
        "svc = adapter.Service('s', runners=[adapter.Runner(R)])\n"
    )
    done = run_adapter("serve", "broken:svc", "--working-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "s.r" in done.stderr
    assert "RuntimeError: the weights are gone" in done.stderr
    assert "broken.py" in done.stderr


def test_file_that_does_not_travel_is_told_how_it_would(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a b")
    (tmp_path / "broken.py").write_text(
        "import adapter\n"
        "class R(adapter.Runnable):\n"
        "    def __init__(self): self.labels = open('labels.txt').read()\n"
        "    @adapter.Runnable.method\n"
        "    def go(self): pass\n"
        "svc = adapter.Service('s', runners=[adapter.Runner(R)])\n"
    )
    done = run_adapter("serve", "broken:svc", "--working-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
    assert 'runnable_init_params={"labels": "./labels.txt"}' in done.stderr


def test_options_come_from_the_environment_and_a_repository_is_kept(serve: Serve, tmp_path: Path) -> None:
    env = {"ADAPTER_API_WORKERS": "1", "ADAPTER_REPOSITORY": str(tmp_path / "kept")}
    served = serve("life:svc", working_dir=SERVICES, env=env)
    assert len(served.children("adapter.server.front")) == 1
    assert served.stop() == 0
    assert (tmp_path / "kept" / "life.fragile" / "1" / "runnable.pkl").exists()


def test_deployment_hook_that_raises_ends_serve(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import adapter\nsvc = adapter.Service('s')\n@svc.on_deployment\ndef fetch(): raise SystemExit('no disk')\n"
    )
    done = run_adapter("serve", "broken:svc", "--working-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert done.stderr.endswith("Error: The deployment hook fetch failed: SystemExit: no disk.\n")


BAD_OPTIONS: list[tuple[list[str], int, str]] = [
    (["export", "life:svc", "--prefix", "../up"], 1, "'../up' cannot be a prefix"),
    (["export", "life:svc", "--repository", "/dev/null/x"], 1, "cannot be written"),
    (["serve", "life:svc", "--repository", "/dev/null/x"], 1, "cannot be written"),
    (["serve", "life:svc", "--manifest", "manifest.json"], 1, "(--manifest) goes with triton.url (--triton)"),
    (["serve", "life:svc", "--triton", "grpc://127.0.0.1:1"], 1, "write one with `adapter export`"),
    (["serve", "life:svc", "--triton", "grpc://127.0.0.1:1", "--development"], 1, "cannot be used with --triton"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), BAD_OPTIONS)
def test_option_that_cannot_be_used_is_one_sentence(
    run_adapter: Run, arguments: list[str], code: int, text: str
) -> None:
    done = run_adapter(*arguments, "--working-dir", str(SERVICES))
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_startup_hook_that_raises_ends_serve(run_adapter: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import adapter\n"
        "svc = adapter.Service('s')\n"
        "@svc.on_startup\n"
        "def begin(context): raise RuntimeError('no database')\n"
    )
    done = run_adapter("serve", "broken:svc", "--working-dir", str(tmp_path), "--port", "0", "--api-workers", "1")
    assert done.returncode == 1
    assert "RuntimeError: no database" in done.stderr

"""`adapter serve --reload`: files change while requests go on."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from adapter import picklable_model
from tests.e2e.conftest import Serve, Served

SERVICE = """
import adapter
from adapter.io import JSON, Text
from words import greeting


class Shouter(adapter.Runnable):
    def __init__(self, file: str) -> None:
        with open(file) as text:
            self.mark = text.read().strip()

    @adapter.Runnable.method(batchable=True)
    def shout(self, texts: list[str]) -> list[str]:
        return [text.upper() + self.mark for text in texts]


runner = adapter.Runner(Shouter, runnable_init_params={"file": "mark.txt"}, max_batch_size=32)
saved = adapter.picklable_model.get("reloaded:latest").to_runner()
svc = adapter.Service("shouting", runners=[runner, saved])


@svc.on_deployment
def deploy():
    print("DEPLOYED", flush=True)


@svc.api(input=Text(), output=JSON())
async def shout(text: str) -> list[str]:
    return [greeting(), *(await runner.shout.async_run([text])), await saved.async_run(text)]
"""
Folder = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shouting")
    (folder / "service.py").write_text(SERVICE)
    (folder / "words.py").write_text("def greeting(): return 'hello'\n")
    (folder / "mark.txt").write_text("!")
    save("one")
    return folder


def save(word: str) -> None:
    picklable_model.save_model("reloaded", _Word(word), external_modules=[__import__(__name__, fromlist=["_"])])


class _Word:
    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, text: str) -> str:
        return f"{self.word} {text}"


@pytest.fixture(scope="module")
def served(serve: Serve, folder: Path) -> Served:
    quiet = {"ADAPTER_CONFIG_OPTIONS": "api_server.logging.access.enabled=false"}
    served = serve("service:svc", "--reload", working_dir=folder, env=quiet)
    assert wait_for_line(served, "DEPLOYED")
    return served


class Traffic:
    """Requests over one connection, and over a new one each, one after the other; `failed` is what went wrong."""

    def __init__(self, url: str) -> None:
        self.failed: list[str] = []
        self.answered = 0
        self._ended = threading.Event()
        self._url = f"{url}/shout"
        self._threads = [threading.Thread(target=self._ask, args=(keep,)) for keep in (True, False)]
        for thread in self._threads:
            thread.start()

    def _ask(self, keep: bool) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(self._url, content="x") if keep else httpx.post(self._url, content="x")
                    if answer.status_code != 200:
                        self.failed.append(answer.text)
                    self.answered += 1
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                time.sleep(0.02)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def traffic(served: Served) -> Iterator[Traffic]:
    found = Traffic(served.url)
    yield found
    found.stop()


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def wait_for_answer(served: Served, wanted: list[str]) -> None:
    until = time.monotonic() + 30
    while (answer := served.post("/shout", content="x").json()) != wanted:
        assert time.monotonic() < until, f"{answer} instead of {wanted}:\n{served.log}"
        time.sleep(0.05)


def settle(served: Served) -> None:
    """Wait until the service is served as it is now, by fronts of now alone."""
    wait_for_line(served, "is served as it is now")
    until = time.monotonic() + 30
    while len(served.children("adapter.server.front")) > 1:
        assert time.monotonic() < until, served.log
        time.sleep(0.05)


def wait_for_line(served: Served, pattern: str) -> re.Match[str]:
    """Wait for a line that nobody has waited for."""
    found = served.wait_for(pattern)
    del served.lines[: served.lines.index(found.string) + 1]
    return found


def test_what_changes_is_served_while_requests_go_on(served: Served, folder: Path, traffic: Traffic) -> None:
    wait_for_answer(served, ["hello", "X!", "one x"])
    (engine,), (front,) = served.children("tritonserver --id"), served.children("adapter.server.front")
    change(folder / "words.py", "hello", "hi")
    wait_for_line(served, r"is served as it is now\.$")
    wait_for_answer(served, ["hi", "X!", "one x"])
    change(folder / "service.py", "text.upper()", "2 * text.upper()")
    wait_for_line(served, r"is served as it is now\. Loaded anew: shouting\.shouter\.$")
    wait_for_answer(served, ["hi", "XX!", "one x"])
    (folder / "mark.txt").write_text("?")
    wait_for_line(served, r"Loaded anew: shouting\.shouter\.$")
    wait_for_answer(served, ["hi", "XX?", "one x"])
    save("two")
    wait_for_line(served, r"Loaded anew: reloaded\.__call__\.$")
    wait_for_answer(served, ["hi", "XX?", "two x"])
    # another interface is another entry; the one before goes when nobody calls it any more
    change(folder / "service.py", "max_batch_size=32", "max_batch_size=16")
    loaded = wait_for_line(served, r"Loaded anew: (shouting\.shouter\.\w{8})\.$")[1]
    wait_for_line(served, r"Unloaded: shouting\.shouter\.$")
    wait_for_answer(served, ["hi", "XX?", "two x"])
    (folder / "adapter.yaml").write_text("runners: {shouter: {batching: {max_batch_size: 32}}}\n")
    wait_for_line(served, r"Loaded anew: shouting\.shouter\.$")
    wait_for_line(served, rf"Unloaded: {loaded}\.$")
    traffic.stop()
    assert traffic.failed == []
    assert traffic.answered > 20
    assert served.children("tritonserver --id") == [engine]
    assert front not in served.children("adapter.server.front")
    assert "DEPLOYED" not in served.log


BROKEN = [
    ("syntax", "def greeting()", "def greeting(", r"SyntaxError.*words\.py, line 1\)\. The service goes on as it was"),
    ("import", "def greeting", "from os import nowhere\ndef greeting", r"ImportError: cannot import name 'nowhere'"),
]


@pytest.mark.parametrize(("old", "new", "line"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_file_is_one_sentence_and_mended_at_the_next_save(
    served: Served, folder: Path, traffic: Traffic, old: str, new: str, line: str
) -> None:
    before = served.post("/shout", content="x").json()
    text = (folder / "words.py").read_text()
    (folder / "words.py").write_text(text.replace(old, new))
    wait_for_line(served, line)
    assert served.post("/shout", content="x").json() == before
    (folder / "words.py").write_text(f"def greeting(): return '{old} {len(new)}'\n")
    settle(served)
    assert served.post("/shout", content="x").json() == [f"{old} {len(new)}", *before[1:]]
    (folder / "words.py").write_text(text)
    settle(served)
    assert served.post("/shout", content="x").json() == before
    assert traffic.failed == []


def test_runnable_that_cannot_start_leaves_the_one_before(served: Served, folder: Path, traffic: Traffic) -> None:
    before = served.post("/shout", content="x").json()
    text = (folder / "service.py").read_text()
    change(folder / "service.py", "with open(file)", "raise RuntimeError('no weights')\n        with open(file)")
    wait_for_line(served, "RuntimeError: no weights")
    wait_for_line(served, "^The service goes on as it was before")
    assert served.post("/shout", content="x").json() == before
    (folder / "service.py").write_text(text.replace("2 * text.upper()", "3 * text.upper()"))
    settle(served)
    assert served.post("/shout", content="x").json() == [before[0], before[1].replace("XX", "XXX"), before[2]]
    assert traffic.failed == []


def test_front_that_cannot_start_leaves_the_one_before(served: Served, folder: Path, traffic: Traffic) -> None:
    before = served.post("/shout", content="x").json()
    text = (folder / "service.py").read_text()
    hook = "\n\n@svc.on_startup\ndef begin(context): raise RuntimeError('no database')\n"
    (folder / "service.py").write_text(text + hook)
    wait_for_line(served, "A front process could not start; .* The service goes on as it was before")
    assert served.post("/shout", content="x").json() == before
    (folder / "service.py").write_text(text.replace("greeting(), ", "greeting().upper(), "))
    settle(served)
    assert served.post("/shout", content="x").json() == [before[0].upper(), *before[1:]]
    assert traffic.failed == []


def test_files_that_change_again_and_again_cost_no_request(served: Served, folder: Path, traffic: Traffic) -> None:
    before = served.post("/shout", content="x").json()
    text = (folder / "words.py").read_text()
    for number in range(8):  # now while it is imported, now while a front starts, now while one takes over
        (folder / "words.py").write_text(text.replace("hi", f"hi {number}"))
        time.sleep(0.1 + 0.1 * number)
    wait_for_answer(served, ["HI 7", *before[1:]])
    (folder / "words.py").write_text(text)
    while before[0] != served.post("/shout", content="x").json()[0]:
        time.sleep(0.05)
    settle(served)
    assert traffic.failed == []


def test_import_that_never_ends_is_ended_by_the_next_save(served: Served, folder: Path) -> None:
    before = served.post("/shout", content="x").json()
    text = (folder / "words.py").read_text()
    (folder / "words.py").write_text("print('SLEEPING', flush=True); import time; time.sleep(600)\n")
    wait_for_line(served, "SLEEPING")
    (folder / "words.py").write_text(text.replace("hi", "hey"))
    wait_for_answer(served, ["HEY", *before[1:]])
    assert served.stop() == 0


def test_file_saved_twice_in_one_second_is_served_as_it_was_last(serve: Serve, tmp_path: Path) -> None:
    text = (
        "import adapter\nfrom adapter.io import Text\nsvc = adapter.Service('twice')\n"
        "@svc.api(input=Text(), output=Text())\ndef answer(text: str) -> str: return '0'\n"
    )
    (tmp_path / "service.py").write_text(text)
    served = serve("service", "--reload", "--development", working_dir=tmp_path)
    assert served.post("/answer", content="x").text == "0"
    for number in range(1, 4):
        (tmp_path / "service.py").write_text(text.replace("'0'", f"'{number}'"))
        time.sleep(0.3)
    until = time.monotonic() + 30
    while served.post("/answer", content="x").text != "3":
        assert time.monotonic() < until, served.log
        time.sleep(0.05)
    (tmp_path / "service.py").write_text(text.replace("'0'", "'0', runners=["))
    served.wait_for("The service goes on as it was before")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "words.py").write_text("WORD = 'new'\n")
    (tmp_path / "service.py").write_text(text.replace("'0'", "__import__('folder.words').words.WORD"))
    while served.post("/answer", content="x").text != "new":
        assert time.monotonic() < until, served.log
        time.sleep(0.05)
    (tmp_path / "folder" / "words.py").write_text("WORD = 'newer'\n")  # in a folder that came later
    while served.post("/answer", content="x").text != "newer":
        assert time.monotonic() < until, served.log
        time.sleep(0.05)


def test_first_runner_needs_a_new_start(serve: Serve, tmp_path: Path) -> None:
    text = "import adapter\nsvc = adapter.Service('grows')\n"
    (tmp_path / "service.py").write_text(text)
    served = serve("service", "--reload", working_dir=tmp_path)
    (tmp_path / "service.py").write_text(
        "import adapter\n"
        "class R(adapter.Runnable):\n"
        "    @adapter.Runnable.method\n"
        "    def go(self): pass\n"
        "svc = adapter.Service('grows', runners=[adapter.Runner(R)])\n"
    )
    served.wait_for("has its first runner now: start `adapter serve` again.* The service goes on as it was before")


def test_reload_of_a_remote_triton_is_refused(
    run_adapter: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text("import adapter\nsvc = adapter.Service('s')\n")
    options = ("--reload", "--triton", "grpc://127.0.0.1:1", "--port", "0")
    done = run_adapter("serve", "service:svc", "--working-dir", str(tmp_path), *options)
    assert done.returncode == 1
    assert "so it cannot be used with --triton: run `adapter export` and load the entry there" in done.stderr
    assert "Traceback" not in done.stderr

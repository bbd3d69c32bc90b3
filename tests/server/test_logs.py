from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.server import logs
from adapter.server.logs import AccessLog
from adapter.settings import Access

_SAY = """
import logging, sys, warnings
from adapter.server import logs
from adapter.triton.request import request_id
logs.set_up("api:3", format=sys.argv[1], level=sys.argv[2])
logger = logging.getLogger("adapter.server")
logger.info("made %s", "ready")
logger.debug("quiet")
request_id.set("mine-1")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("two\\nlines \\ud800")
extra = {"component": "runner", "entry": "clf.predict", "request_id": "yours", "exception": "Traceback: …"}
logger.warning("it failed", extra=extra)
logging.getLogger("my.code").warning("by the way")
logging.getLogger("my.code").info("nobody asked")
warnings.warn("old")
"""


def _said(form: str, level: str = "info") -> str:
    done = subprocess.run(
        [sys.executable, "-c", _SAY, form, level], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    return done.stderr


def test_set_up_as_json() -> None:
    ready, failed, runner, other, warning = map(json.loads, _said("json").splitlines())
    assert ready.pop("time").endswith("Z")
    assert ready == {"level": "INFO", "component": "api:3", "logger": "adapter.server", "message": "made ready"}
    assert failed["message"] == "two\nlines \\ud800"
    assert failed["request_id"] == "mine-1"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert (runner["component"], runner["entry"], runner["request_id"]) == ("runner", "clf.predict", "yours")
    assert runner["exception"] == "Traceback: …"
    assert (other["logger"], other["component"], other["message"]) == ("my.code", "api:3", "by the way")
    assert (warning["logger"], warning["level"]) == ("py.warnings", "WARNING")
    assert "UserWarning: old" in warning["message"]


def test_set_up_as_text() -> None:
    lines = _said("text").splitlines()
    assert lines[0].split(" ", 1)[1] == "[INFO] [api:3] made ready"
    assert lines[1].split(" ", 1)[1] == "[ERROR] [api:3] two"
    assert "ZeroDivisionError: division by zero" in lines
    assert lines[lines.index("Traceback: …") - 1].endswith("[WARNING] [runner:clf.predict] it failed")
    assert any(line.endswith("[WARNING] [api:3] by the way") for line in lines)


def test_level_is_the_lowest_that_is_shown() -> None:
    assert "quiet" in _said("text", "debug")
    said = _said("text", "error")
    assert "made ready" not in said
    assert "it failed" not in said
    assert "ZeroDivisionError" in said


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    assert json.loads(_said("auto").splitlines()[0])["message"] == "made ready"
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", _SAY, "auto", "info"], stderr=theirs) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # a terminal whose other side has gone
            while part := os.read(ours, 4096):
                said += part
        assert process.wait(60) == 0
    os.close(ours)
    assert "[INFO] [api:3] made ready" in said.decode()


# ---- the access log -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _shown() -> Iterator[None]:
    logger = logging.getLogger(logs.ACCESS)
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)


SCOPE: dict[str, Any] = {
    "type": "http",
    "scheme": "http",
    "method": "POST",
    "path": "/a b",
    "raw_path": b"/a%20b",
    "client": ("127.0.0.1", 5000),
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"2"), (b"accept", b"*/*")],
}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"17")]


def _written(wanted: logs.Format, scope: dict[str, Any], settings: Access, *, times: int = 1) -> str:
    """What the access log writes of some requests."""
    read, write = os.pipe()

    async def work() -> None:
        log = AccessLog("api:1", wanted, settings, fd=write)
        for _ in range(times):
            log.record(scope, 200, HEADERS, 0.0125, "id-1")
        log.close()

    with open(read, "rb") as file:
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(file.read()))
        reader.start()
        asyncio.run(work())
        os.close(write)
        reader.join()
    return found[0].decode()


def test_access_log_as_text() -> None:
    time, _, line = _written("text", SCOPE, Access()).partition(" ")
    assert time.endswith("+0000")
    assert line == (
        "[INFO] [api:1] 127.0.0.1:5000 (scheme=http,method=POST,path=/a%20b,type=text/plain,length=2) "
        "(status=200,type=application/json,length=17) 12.500ms (id=id-1)\n"
    )


def test_access_log_as_json() -> None:
    line = json.loads(_written("json", SCOPE, Access()))
    assert line.pop("time")[-5] == "."
    assert line == {
        "level": "INFO",
        "component": "api:1",
        "logger": "adapter.access",
        "message": "POST /a%20b 200",
        "request_id": "id-1",
        "client": "127.0.0.1:5000",
        "scheme": "http",
        "method": "POST",
        "path": "/a%20b",
        "status": 200,
        "duration_ms": 12.5,
        "request_content_type": "text/plain",
        "request_content_length": 2,
        "response_content_type": "application/json",
        "response_content_length": 17,
    }


def test_access_log_says_no_more_than_it_is_asked_for() -> None:
    nothing = Access(
        request_content_length=False,
        request_content_type=False,
        response_content_length=False,
        response_content_type=False,
    )
    assert "(scheme=http,method=POST,path=/a%20b) (status=200) " in _written("text", SCOPE, nothing)
    assert not [key for key in json.loads(_written("json", SCOPE, nothing)) if "content" in key]


def test_access_log_without_client_and_headers() -> None:
    scope = {**SCOPE, "client": None, "headers": [], "raw_path": None}
    assert " - (scheme=http,method=POST,path=/a b,type=,length=) " in _written("text", scope, Access())
    line = json.loads(_written("json", scope, Access()))
    assert (line["client"], line["path"], line["request_content_length"]) == (None, "/a b", None)


def test_access_log_is_silent_above_info() -> None:
    logging.getLogger(logs.ACCESS).setLevel(logging.WARNING)
    assert _written("text", SCOPE, Access()) == ""


@given(path=st.binary(max_size=200), kind=st.binary(max_size=50), length=st.binary(max_size=10))
def test_access_log_is_one_line_for_a_request_whatever_it_says(path: bytes, kind: bytes, length: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", length)]
    for raw in (path, None):
        scope = {**SCOPE, "raw_path": raw, "path": path.decode("utf-8", "surrogateescape"), "headers": headers}
        text = _written("text", scope, Access())
        assert text.endswith("\n")
        assert len(text.splitlines()) == 1
        line = _written("json", scope, Access())
        assert line.count("\n") == 1
        assert json.loads(line)["method"] == "POST"


def test_access_log_cuts_a_line_that_a_pipe_would_not_take_whole() -> None:
    line = _written("text", {**SCOPE, "raw_path": b"/" + b"x" * 100_000}, Access())
    assert len(line.encode()) <= 4096
    assert line.endswith("x…\n")


def test_access_log_loses_nothing_when_its_reader_is_slow() -> None:
    """A pipe holds 64 KB; the rest waits on a thread, and the event loop goes on."""
    read, write = os.pipe()
    turns: list[int] = []

    async def work() -> None:
        log = AccessLog("api:1", "text", Access(), fd=write)
        for number in range(50):
            for _ in range(100):
                log.record(SCOPE, 200, HEADERS, 0.0125, str(number))
            await asyncio.sleep(0)
            turns.append(number)
        # nobody has read anything up to here
        reader.start()
        log.close()

    found: list[bytes] = []
    with open(read, "rb") as file:
        reader = threading.Thread(target=lambda: found.append(file.read()))
        asyncio.run(asyncio.wait_for(work(), 30))
        os.close(write)
        reader.join()
    assert turns == list(range(50))
    lines = found[0].decode().splitlines()
    assert [line.rpartition("id=")[2] for line in lines] == [f"{n})" for n in range(50) for _ in range(100)]


def test_access_log_drops_and_counts_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST_WAITING", 100_000)
    read, write = os.pipe()
    lost: list[int] = []

    async def work() -> None:
        log = AccessLog("api:1", "json", Access(), fd=write, on_lost=lost.append)
        for _ in range(2000):
            log.record(SCOPE, 200, HEADERS, 0.0125, "x")
        await asyncio.sleep(0.05)  # the lines are written, or left to the thread, before anybody reads
        reader.start()
        log.close()

    found: list[bytes] = []
    with open(read, "rb") as file:
        reader = threading.Thread(target=lambda: found.append(file.read()))
        asyncio.run(asyncio.wait_for(work(), 30))
        os.close(write)
        reader.join()
    *kept, last = map(json.loads, found[0].decode().splitlines())
    assert (last["level"], last["logger"]) == ("WARNING", "adapter.access")
    assert last["message"] == f"{2000 - len(kept)} lines of the access log were dropped: nobody read them."
    assert len(kept) > 100
    assert sum(lost) == 2000 - len(kept)


def test_access_log_goes_on_when_its_reader_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)

    async def work() -> None:
        log = AccessLog("api:1", "text", Access(), fd=write)
        log.record(SCOPE, 200, HEADERS, 0.0125, "x")
        log.close()

    asyncio.run(work())
    os.close(write)


_END = """
import asyncio, logging
from adapter.server import logs
from adapter.settings import Access
logs.set_up("api:1", format="text")
async def work():
    logs.AccessLog("api:1", "text", Access()).record(
        {"scheme": "http", "method": "GET", "path": "/", "headers": []}, 200, [], 1.0, "last"
    )
asyncio.run(work())
"""


def test_access_log_is_written_at_exit() -> None:
    done = subprocess.run([sys.executable, "-c", _END], check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("(id=last)\n")

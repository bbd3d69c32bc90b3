from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.triton import worker_log
from adapter.triton.worker_log import Said, read

_SAY = """
import logging, sys, threading, warnings
from adapter.triton import worker_log
worker_log.set_up("clf.predict")
print("one", 1)
print("no end", end="")
sys.stdout.flush()
print(", now")
print()
for share in range(0, 101, 50):
    print(f"\\r{share} %", end="", file=sys.stderr)
print(file=sys.stderr)
sys.stdout.write("two\\nlines\\n")
logging.getLogger("my.code").warning("careful\\nnow")
logging.getLogger("my.code").debug("quiet")
worker_log.running.request_id = "mine-1"
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("it failed")
worker_log.running.request_id = ""
logging.getLogger("adapter.runner").error("so did %s", "this", extra={"request_id": "yours", "exception": "Trace"})
logging.getLogger("my.code").info("%d", "no number")
print("\\ud800", sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.encoding)
sys.stdout.buffer.write(b"raw\\n")
sys.stdout.flush()
worker_log.say("clf.predict", "WARNING", "it died")
threads = [threading.Thread(target=lambda: [print("x" * 100) for _ in range(50)]) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("last", end="")
"""


def _run(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-u", "-c", _SAY],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_what_a_worker_says_as_json() -> None:
    lines = _run(**{worker_log.VARIABLE: "json"})
    found = [said for line in lines if (said := read(line)) is not None]
    assert {said.entry for said in found} == {"clf.predict"}
    by_text = {said.message: said for said in found}
    for text in ("one 1", "no end, now", "100 %", "two", "lines", "last", "\ud800 1 2 utf-8"):
        assert by_text[text] == Said(logging.INFO, worker_log.LOGGER, text, "clf.predict", "", "")
    assert by_text["careful\nnow"] == Said(logging.WARNING, "my.code", "careful\nnow", "clf.predict", "", "")
    failed = by_text["it failed"]
    assert (failed.level, failed.request_id) == (logging.ERROR, "mine-1")
    assert failed.exception.endswith("ZeroDivisionError: division by zero")
    assert by_text["so did this"] == Said(
        logging.ERROR, worker_log.LOGGER, "so did this", "clf.predict", "yours", "Trace"
    )
    assert by_text["it died"].level == logging.WARNING
    assert sum(said.message == "x" * 100 for said in found) == 200
    assert not {"quiet", "", "0 %", "50 %"} & set(by_text)
    assert "raw" in lines
    assert {"time", "level", "component", "logger", "message", "entry"} == set(json.loads(lines[0]))


def test_what_a_worker_says_as_text() -> None:
    lines = _run(PYTHONIOENCODING="utf-8:backslashreplace")
    assert lines[0] == "one 1"
    assert "[WARNING] [my.code] careful" in lines
    at = lines.index("[ERROR] [root] it failed:")
    assert lines[at + 1] == "Traceback (most recent call last):"
    assert lines[lines.index("[ERROR] [adapter.runner] so did this:") + 1] == "Trace"
    assert "[WARNING] [adapter.runner] it died" in lines


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "{}",
        '{"time": ',
        '{"time": "x"}',
        '{"time": "x", "component": "api:1", "level": "INFO", "message": "another process"}',
        '{"time": "x", "component": "runner", "message": "no level"}',
        '{"time": "x", "component": "runner", "level": []}',
        '[{"time": "x"}]',
    ],
)
def test_read_leaves_other_lines_alone(line: str) -> None:
    assert read(line) is None


def test_read_a_level_of_the_user() -> None:
    line = '{"time": "x", "component": "runner", "level": "LOUD", "message": "hey"}'
    assert read(line) == Said(logging.INFO, "", "hey", "", "", "")


@given(st.text())
def test_read_never_fails(text: str) -> None:
    read(text)
    read('{"time": "' + text)


def test_what_became_of_a_worker_is_read_as_it_was_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(worker_log.VARIABLE, "json")
    worker_log.say("iris.predict", "WARNING", "it died", exception="a trace", worker={"stub": 7, "state": "died"})
    said = worker_log.read(capfd.readouterr().err.strip())
    assert said is not None
    assert said.worker == {"stub": 7, "state": "died"}
    assert (said.message, said.exception) == ("it died", "a trace")
    for odd in ("[]", '"x"', "7", "null"):
        line = '{"time": "x", "level": "INFO", "component": "runner", "message": "", "worker": ' + odd + "}"
        found = worker_log.read(line)
        assert found is not None
        assert found.worker is None

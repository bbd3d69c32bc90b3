from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.exceptions import BenchmarkError

RESULT = {
    "requests": 1000,
    "microseconds": 2_000_000,
    "p50": 1500.0,
    "p99": 9000.0,
    "wrong": 0,
    "compared": 0,
    "connect": 0,
    "read": 0,
    "write": 0,
    "status": 0,
    "timeout": 0,
}


def printed(**changes: float) -> str:
    return f"Running 2s test @ http://127.0.0.1:1/\n  1000 requests in 2.00s\n{json.dumps({**RESULT, **changes})}\n"


def test_parse_what_wrk_printed() -> None:
    reading = load.parse(printed(compared=7))
    assert reading == load.Reading(requests=1000, seconds=2.0, p50_ms=1.5, p99_ms=9.0, compared=7)
    assert reading.requests_per_s == 500


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (printed(status=3), "Of 1000 requests, some failed: 3 of status."),
        (printed(connect=1, timeout=2), "Of 1000 requests, some failed: 1 of connect, 2 of timeout."),
        (printed(compared=10, wrong=1), "Of 10 answers, 1 were wrong."),
        (printed(requests=0), "No request was answered."),
        ("", "wrk printed no result: nothing."),
        ("unable to connect to 127.0.0.1:1 Connection refused\n", "wrk printed no result: unable to connect"),
    ],
)
def test_parse_fails_when_a_request_did(output: str, sentence: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        load.parse(output)
    assert str(caught.value).startswith(sentence)


def test_command_never_has_more_threads_than_connections() -> None:
    command = load.command("http://x/", Path("r"), mode="measure", connections=2, seconds=0.3, threads=8, wrk="wrk")
    assert command[0] == "wrk"
    assert "--threads=2" in command
    assert "--duration=1s" in command  # wrk takes whole seconds, and 0 is none
    assert command[-4:] == ["http://x/", "--", "r", "measure"]


def test_program_says_how_to_get_wrk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BenchmarkError, match="apt-get install wrk"):
        load.program()

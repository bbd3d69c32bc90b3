"""Load on a server, made by wrk, which is not written in Python and so takes little of the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.exceptions import BenchmarkError

SCRIPT = Path(__file__).with_name("wrk.lua")
_TIMEOUT_S = 60
_GRACE_S = 60
_ERRORS = ("connect", "read", "write", "status", "timeout")


@dataclass(frozen=True)
class Sample:
    """A body to send, and whether an answer to it is right."""

    body: bytes
    right: Callable[[bytes], bool]


@dataclass(frozen=True)
class Reading:
    """What one run of wrk saw; `compared` is the number of answers whose every byte was compared."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    compared: int = 0

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def program() -> str:
    """The path of wrk; BenchmarkError where there is none."""
    found = shutil.which("wrk")
    if found is None:
        raise BenchmarkError(
            "There is no program wrk, which makes the load: install it (on Debian or Ubuntu `apt-get install wrk`)."
        )
    return found


def command(
    url: str, requests: Path, *, mode: str, connections: int, seconds: float, threads: int, wrk: str
) -> list[str]:
    """The command line of wrk: it sends the requests of a folder, as `wrk.lua` reads it."""
    duration = max(1, round(seconds))  # wrk knows whole seconds only
    return [
        wrk,
        f"--connections={connections}",
        f"--threads={min(threads, connections)}",
        f"--duration={duration}s",
        f"--timeout={_TIMEOUT_S}s",
        f"--script={SCRIPT}",
        url,
        "--",
        str(requests),
        mode,
    ]


def parse(output: str) -> Reading:
    """What wrk printed; BenchmarkError where any request failed, or was answered wrongly."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise BenchmarkError(f"wrk printed no result: {output.strip() or 'nothing'}.")
    found = json.loads(line)
    failed = {name: found[name] for name in _ERRORS if found[name]}
    if failed:
        kinds = ", ".join(f"{count} of {name}" for name, count in failed.items())
        raise BenchmarkError(f"Of {found['requests']} requests, some failed: {kinds}.")
    if found["wrong"]:
        raise BenchmarkError(f"Of {found['compared']} answers, {found['wrong']} were wrong.")
    if not found["requests"]:
        raise BenchmarkError("No request was answered.")
    return Reading(
        requests=found["requests"],
        seconds=found["microseconds"] / 1e6,
        p50_ms=found["p50"] / 1e3,
        p99_ms=found["p99"] / 1e3,
        compared=found["compared"],
    )


def prepare(url: str, headers: Mapping[str, str], samples: Sequence[Sample], folder: Path) -> None:
    """Send each sample once, judge the answers, and write the folder that `wrk.lua` reads.

    BenchmarkError where an answer is wrong. What comes later must be the same, byte for byte.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
    with httpx.Client(timeout=_TIMEOUT_S) as client:
        for number, sample in enumerate(samples):
            answer = client.post(url, content=sample.body, headers=headers)
            if answer.status_code != 200 or not sample.right(answer.content):
                shown = answer.content[:300].decode(errors="replace")
                raise BenchmarkError(f"{url} answered sample {number} wrongly, with {answer.status_code}: {shown}")
            (folder / f"body-{number}").write_bytes(sample.body)
            (folder / f"answer-{number}").write_bytes(answer.content)


def run(url: str, requests: Path, *, mode: str, connections: int, seconds: float, threads: int = 1) -> Reading:
    """Load a server for so many seconds; BenchmarkError where a request fails or is answered wrongly."""
    arguments = command(
        url, requests, mode=mode, connections=connections, seconds=seconds, threads=threads, wrk=program()
    )
    try:
        ended = subprocess.run(
            arguments, capture_output=True, text=True, timeout=seconds + _TIMEOUT_S + _GRACE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"wrk on {url} did not end.") from error
    if ended.returncode:
        raise BenchmarkError(f"wrk on {url} ended with {ended.returncode}: {ended.stderr or ended.stdout}")
    try:
        reading = parse(ended.stdout)
        if mode == "check" and not reading.compared:
            raise BenchmarkError("no answer was compared.")
        return reading
    except BenchmarkError as error:
        raise BenchmarkError(f"{url} at {connections} connections: {error}") from None

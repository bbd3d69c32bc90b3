"""`adapter serve` as a person runs it: a process, its log, and HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from adapter.triton.installation import Installation

ROOT = Path(__file__).parents[2]
ADAPTER = Path(sys.executable).with_name("adapter")
_START_S = 60.0


@dataclass
class Served:
    """One running `adapter serve`."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def post(self, path: str, **options: object) -> httpx.Response:
        with self.client as client:
            return client.post(path, **options)  # type: ignore[arg-type]  # httpx's own keywords

    def get(self, path: str) -> httpx.Response:
        with self.client as client:
            return client.get(path)

    def read(self) -> None:
        """Keep what the process prints; runs on a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def wait_for(self, pattern: str, seconds: float = _START_S) -> re.Match[str]:
        """Wait until a line matches; fails when the process ends before."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, f"`adapter serve` ended with {self.process.returncode}:\n{self.log}"
            time.sleep(0.02)
        raise AssertionError(f"No line matched {pattern!r}:\n{self.log}")

    def children(self, name: str) -> list[int]:
        """The processes below `adapter serve` whose command line contains `name`."""
        return [pid for pid in _descendants(self.process.pid) if name in _command(pid)]

    def stop(self) -> int:
        """End it as `kill` does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def start_adapter(installation: Installation) -> Iterator[Serve]:
    """Start a command that serves on 127.0.0.1; when the module's tests end nothing of it may be left."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, working_dir: Path = ROOT, env: dict[str, str] | None = None) -> Served:
            process = subprocess.Popen(
                [str(ADAPTER), *arguments],
                cwd=working_dir,
                env={**os.environ, **(env or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            served = Served(process)
            reader = threading.Thread(target=served.read)
            reader.start()
            stack.callback(_end, served, reader)
            served.url = served.wait_for(r"on (https?://127\.0\.0\.1:\d+)")[1]
            return served

        yield start


@pytest.fixture(scope="module")
def serve(start_adapter: Serve) -> Serve:
    """Start `adapter serve` on a free port."""

    def start(target: str, *options: str, working_dir: Path = ROOT, env: dict[str, str] | None = None) -> Served:
        given = ("--port", "0", "--working-dir", str(working_dir), "--log-format", "text", *options)
        return start_adapter("serve", target, *given, env=env)

    return start


def _end(served: Served, reader: threading.Thread) -> None:
    started = _descendants(served.process.pid)
    if served.process.poll() is None:
        served.stop()
    reader.join(10)
    if served.process.stdout is not None:
        served.process.stdout.close()
    until = time.monotonic() + 5
    while (left := [pid for pid in started if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"these processes outlived `adapter serve`: {left}"


@pytest.fixture
def run_adapter() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line until it ends."""

    def run(
        *arguments: str, working_dir: Path = ROOT, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ADAPTER), *arguments],
            cwd=working_dir,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def iris(adapter_home: Path) -> str:
    """Train and save the model of the iris example, as its `train.py` does."""
    subprocess.run([sys.executable, "train.py"], cwd=ROOT / "examples" / "iris", check=True, capture_output=True)
    return "iris_clf:latest"


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def wait_until(true: Callable[[], object], seconds: float = 60, pause: float = 0.02) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(pause)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

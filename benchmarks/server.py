"""Servers under load, each a process of its own that ends with the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from adapter.triton import tether
from benchmarks.exceptions import BenchmarkError

HOST = "127.0.0.1"
_START_S = 60.0
_STOP_S = 20.0
_POLL_S = 0.05
_SHOWN_LINES = 15
_ACCESS_LOG = "adapter.access"
# what stands in the command line of each; the first that does counts
_KINDS = {
    "front": b"adapter.server.front",
    "worker": b"adapter.triton.worker",
    "stub": b"triton_python_backend_stub",
    "engine": b"bin/tritonserver",
    "launcher": b"adapter\0serve",
}


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


class Server:
    """One running server; what it prints, its access log among that, goes to a file."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, port: int, log: Path, env: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.url = f"http://{HOST}:{port}"
        self._log = log
        tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *arguments]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                tethered,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=folder,
                start_new_session=True,
            )

    def wait_ready(self, path: str) -> None:
        """Return when a GET of `path` is answered with 200; BenchmarkError where it ends, or takes too long."""
        until = time.monotonic() + _START_S
        last = "nothing"
        with httpx.Client(base_url=self.url, timeout=5) as client:
            while time.monotonic() < until:
                if self._process.poll() is not None:
                    status = self._process.returncode
                    raise BenchmarkError(f"{self.name} ended with {status} at its start:\n{self._tail()}")
                with contextlib.suppress(httpx.TransportError):
                    answer = client.get(path)
                    if answer.status_code == 200:
                        return
                    last = f"{answer.status_code} {answer.text[:300]}"
                time.sleep(_POLL_S)
        raise BenchmarkError(
            f"{self.name} was not ready within {_START_S:g} seconds; {path} answered {last}.\n{self._tail()}"
        )

    def workers(self) -> list[int]:
        """The processes that answer requests: the front processes of `adapter serve`, else the server itself."""
        return [pid for pid in _below(self._process.pid) if _is_front(pid)] or [self._process.pid]

    def processes(self) -> dict[str, list[int]]:
        """All processes by their kind: those of `adapter serve`."""
        found: dict[str, list[int]] = {kind: [] for kind in _KINDS}
        for pid in sorted((self._process.pid, *_below(self._process.pid))):
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
                kind = next((kind for kind, mark in _KINDS.items() if mark in arguments), None)
                if kind is not None:
                    found[kind].append(pid)
        return found

    def pause(self) -> None:
        """Give it, and all that it started, no time until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end; `wait_ended` comes next."""
        self.resume()
        self._process.terminate()

    def wait_ended(self) -> None:
        """Return when it has ended, by force where it takes too long, and nothing of its session is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        for pid in (self._process.pid, *_below(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if _ACCESS_LOG not in line][-_SHOWN_LINES:])


def rss_bytes(pid: int) -> int:
    """The memory of a process that lies in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _is_front(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"adapter.server.front" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _below(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    return found

"""The process of user code, as Triton's python stub sees it: started, called, ended, and started anew when it dies."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adapter.triton import worker_log
from adapter.triton.channel import Channel, Region
from adapter.triton.spec import EntrySpec
from adapter.triton.stub_memory import shared_file
from adapter.triton.stub_metrics import StubMetrics

T = TypeVar("T")

# sys.path[0] would be the working directory, whose modules are not the entry's
_START = "import sys; sys.path[0] = sys.argv.pop(1); from adapter.triton.worker import main; main(sys.argv[1:])"
# between two starts of a worker that dies before it has answered anything; one that has is replaced at once
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
_LAST_WORDS_S = 1.0
END_S = 8.0  # hooks of a class-based service run meanwhile; any other worker ends at once
_FAILING_PAUSE_S = 0.2  # from this pause on it is told that the worker keeps dying
_STEADY_S = 5.0  # a worker that lived this long is replaced at once, whether it was called or not
_HOLD_S = 5.0  # how long one batch stays with an instance whose worker keeps dying
KEEPS_DYING = "keeps dying"


class WorkerError(Exception):
    """The worker could not start, died, or took too long."""


class _Worker:
    """One process of user code that is ready, and why it was ended where this process did so."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self.pidfd = os.pidfd_open(process.pid)
        self.born = time.monotonic()
        self.served = False  # whether it has answered a batch
        self.ended = ""
        self._death = select.poll()
        self._death.register(self.pidfd, select.POLLIN)
        # the worker's children may hold its end of the socket open, so its death is watched for itself
        self._news = select.poll()
        self._news.register(channel.sock, select.POLLIN)
        self._news.register(self.pidfd, select.POLLIN)

    @property
    def dead(self) -> bool:
        return bool(self.ended or self._death.poll(0))

    @property
    def steady(self) -> bool:
        """Whether it was of use: if not, the next one may well not be either."""
        return self.served or time.monotonic() - self.born > _STEADY_S

    def receive(self, limit_s: float | None = None) -> Any:
        """Wait for the answer; EOFError where it died first, WorkerError where it took too long and was ended."""
        ready = self._news.poll(None if limit_s is None else limit_s * 1000)
        for fd, _ in ready:
            if fd != self.pidfd:
                return self.channel.receive()
        if not ready:
            self.end("call limit")
            raise WorkerError(f"The call took longer than {limit_s:g} s and was ended; a new process is starting.")
        raise EOFError

    def end(self, reason: str) -> None:
        self.ended = reason
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    @property
    def reason(self) -> str:
        """Why it died; one that only cannot be spoken to any more is ended."""
        if not self._death.poll(_LAST_WORDS_S * 1000):
            self.end("its socket closed")
        return self.ended or _reason(self.process.pid)

    def close(self) -> None:
        """Take leave of one that ends, and end it where it does not, and what it has started."""
        self._death.poll(_LAST_WORDS_S * 1000)
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._death.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it is not reaped yet: the number is its own
        self.process.wait()
        self.channel.close()
        os.close(self.pidfd)


class WorkerProcess:
    """One worker, started again whenever it dies, by a thread that sleeps until then."""

    def __init__(
        self,
        folder: Path,
        spec: EntrySpec,
        environment: Mapping[str, str],
        metrics: StubMetrics,
        memory: int,
        *,
        alone: bool,
    ) -> None:
        """`environment` is what that of the process has beside this one's; `alone`: its entry has no other instance.

        `memory` is a file descriptor of what this process shares with its server, -1 for none.
        """
        self._folder = folder
        self._metrics = metrics
        self._memory = memory
        self._spec = spec
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        # held while a batch runs, and while the worker is exchanged
        self._changed = threading.Condition(threading.Lock())
        self._worker: _Worker | None = None
        self._process: subprocess.Popen[bytes] | None = None  # that of the worker, or of the one that starts
        self._hold_s = 0.0 if alone else _HOLD_S
        self._failing = False
        self._failure = "The process that runs this model has been stopped."
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)

    def start(self) -> None:
        """Start the first worker; WorkerError with the traceback of user code where it cannot."""
        end_with_server()
        with self._changed:
            self._keeper.start()
            while self._worker is None and not self._failing:
                self._changed.wait()
            if self._worker is None:
                raise WorkerError(self._failure)

    def run(self, send: Callable[[Channel], None]) -> tuple[list[Any], Region]:
        """Hand one batch to the worker; its replies, one for each request, name tensors in the region beside them.

        A batch waits for a worker that is being replaced. Where the worker keeps dying, it fails at once if there is no
        other instance; else it waits so long that the other ones, which Triton takes for busier, get all the rest. The
        region is written again by the next batch.
        """
        with self._changed:
            worker = self._ready()
            try:
                send(worker.channel)
                replies = worker.receive(self._spec.call_timeout_s)
            except (EOFError, OSError) as error:
                raise WorkerError(
                    f"The process that ran this request died ({worker.reason}); a new one is starting."
                ) from error
            worker.served = True
            return replies, worker.channel.into

    def use(self, function: Callable[[_Worker], T]) -> T:
        """Call a function with the worker, once it is ready; it is not closed meanwhile."""
        with self._changed:
            return function(self._ready())

    def _ready(self) -> _Worker:
        """The worker, once there is one that lives."""
        until = time.monotonic() + self._hold_s
        while True:
            worker = self._worker
            if worker is not None and not worker.dead:
                return worker
            if self._closed.is_set() or (self._failing and time.monotonic() >= until):
                raise WorkerError(self._failure)
            self._changed.wait(_LONGEST_PAUSE_S)

    def _keep(self) -> None:
        pause, first, fell = 0.0, True, time.monotonic()
        entry = self._spec.entry
        while not self._closed.wait(pause):
            try:
                worker = self._start()
            except WorkerError as error:
                pause = _longer(pause)
                # a traceback is for whoever loads the entry, not for the clients of one that was loaded
                self._fail(str(error) if first else _failing(pause))
                if first or self._closed.is_set():
                    return
                message = f"the worker of {entry} cannot start; the next attempt is in {pause:g} s"
                self._say("WARNING", message, "failing", "cannot start", str(error))
                continue
            with self._changed:
                self._worker, self._failing = worker, False
                self._changed.notify_all()
            if not first:
                seconds = time.monotonic() - fell
                self._say("INFO", f"a new worker of {entry} is ready after {seconds:.2f} s", "up")
            first = False
            _await_end(worker.pidfd)
            fell = time.monotonic()
            with self._changed:
                self._worker = None
            reason = worker.reason
            worker.close()
            if self._closed.is_set():
                return
            pause = 0.0 if worker.steady else _longer(pause)
            when = f"the next one starts in {pause:g} s" if pause else "starting a new one"
            state = "died"
            if pause >= _FAILING_PAUSE_S:
                state = "failing"
                self._fail(_failing(pause))
            self._say("WARNING", f"the worker of {entry} died ({reason}); {when}", state, reason)

    def _fail(self, why: str) -> None:
        with self._changed:
            self._failing, self._failure = True, why
            self._changed.notify_all()

    def _say(self, level: str, message: str, state: str, reason: str = "", exception: str = "") -> None:
        if reason:
            text = "Workers of user code that died, or could not be started again."
            self._metrics.count("adapter_worker_restarts_total", text, entry=self._spec.entry, reason=reason)
        worker = {"stub": os.getpid(), "state": state}
        worker_log.say(self._spec.entry, level, message, worker=worker, exception=exception)

    def _start(self) -> _Worker:
        """Start a process and wait until its Runnable is made."""
        kind = socket.SOCK_STREAM if self._spec.stream else socket.SOCK_SEQPACKET
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        out, into = Region.create("adapter-requests"), Region.create("adapter-results")
        archive = str(self._folder / "runtime.zip")
        ends, counting = (theirs.fileno(), out.fd, into.fd), self._metrics.begin()
        arguments = map(str, (*ends, os.getpid(), *counting, self._memory))
        passed = [fd for fd in (*ends, *counting, self._memory) if fd >= 0]
        channel = Channel(ours, out, into)
        with theirs:
            try:
                process = self._process = subprocess.Popen(
                    [_python(), "-c", _START, archive, str(self._folder), *arguments],
                    env=self._environment,
                    pass_fds=passed,
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                channel.close()
                raise WorkerError(f"The Python {_python()!r} for user code cannot be started: {error}") from error
        worker = _Worker(process, channel)
        if self._closed.is_set():  # `close` may not have seen this process
            worker.end("stopped")
        try:
            hello = worker.receive()
        except (EOFError, OSError) as error:
            reason = worker.reason
            worker.close()
            raise WorkerError(f"The process for {self._spec.entry} died while it started ({reason}).") from error
        if "error" in hello:
            worker.close()
            raise WorkerError(hello["error"])
        return worker

    def close(self) -> None:
        """End the worker; it ends by itself when its socket closes, and is killed where it does not."""
        self._closed.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = self._process
            if process is not None and process.returncode is None and self._keeper.is_alive():
                os.kill(process.pid, number)  # not by `Popen`, which reaps it: the keeper does
                self._keeper.join(END_S)


def _failing(pause: float) -> str:
    return f"The process that runs this model {KEEPS_DYING}; the next one starts in {pause:g} s."


def _longer(pause: float) -> float:
    return min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2 * pause))


def end_with_server() -> None:
    """Let this stub end with its tritonserver, which it would not notice while it waits for it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="end-with-server", daemon=True).start()


def _end_with(server: int) -> None:
    """End this stub when its tritonserver is gone, which it may wait for without end, and remove what they shared."""
    try:
        fd = os.pidfd_open(server)
    except OSError:
        return
    _await_end(fd)
    if (file := shared_file()) is not None:
        file.unlink(missing_ok=True)
    os._exit(1)


def _await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def _reason(pid: int) -> str:
    """What ended a process; it is not reaped."""
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if status is None or status.si_code == os.CLD_EXITED:
        return f"exit code {status.si_status if status else 0}"
    return f"killed by signal {status.si_status}"


def _python() -> str:
    """The interpreter for user code: the one that started the engine, else the one of this stub."""
    named = os.environ.get("ADAPTER_WORKER_PYTHON")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return named or shutil.which(version) or shutil.which("python3") or sys.executable or "python3"

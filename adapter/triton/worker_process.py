"""The process of user code, as Triton's python stub sees it: started, called, ended, and started anew when it dies."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapter.triton import worker_log
from adapter.triton.channel import Channel, Region
from adapter.triton.spec import EntrySpec

# sys.path[0] would be the working directory, whose modules are not the entry's
_START = "import sys; sys.path[0] = sys.argv.pop(1); from adapter.triton.worker import main; main(sys.argv[1:])"
_THREAD_VARIABLES = (
    "ADAPTER_NUM_THREAD",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_RS_NUM_CPUS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
# between two starts of a worker that dies before it has answered anything; one that has is replaced at once
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0


class WorkerError(Exception):
    """The worker could not start, died, or took too long."""


class WorkerProcess:
    """One worker, started again whenever it dies, by a thread that sleeps until then."""

    def __init__(self, folder: Path, spec: EntrySpec, gpu: str | None) -> None:
        self._folder = folder
        self._spec = spec
        self._environment = _environment(spec, gpu)
        self._lock = threading.Lock()  # held while a batch runs, and while the worker is exchanged
        self._up = threading.Event()  # a worker is ready, or starting has failed and `_failure` says why
        self._served = False  # whether this worker has answered a batch
        self._failure: WorkerError | None = None
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)

    def start(self) -> None:
        """Start the first worker; WorkerError with the traceback of user code where it cannot."""
        self._keeper.start()
        self._up.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def run(self, send: Callable[[Channel], None]) -> tuple[list[Any], Region]:
        """Hand one batch to the worker; its replies, one for each request, name tensors in the region beside them.

        The region is written again by the next batch.
        """
        self._up.wait()
        with self._lock:
            channel, process = self._channel, self._process
            if channel is None or process is None:
                raise self._failure or WorkerError("The process that runs this model is starting; try again.")
            try:
                send(channel)
                replies = self._wait(channel, process)
                self._served = True
                return replies, channel.into
            except (EOFError, OSError) as error:
                reason = f"died ({_exit_reason(process)})"
                raise WorkerError(f"The process that ran this request {reason}; a new one is starting.") from error

    def _wait(self, channel: Channel, process: subprocess.Popen[bytes]) -> Any:
        limit = self._spec.call_timeout_s
        # the worker's children may hold its end of the socket open, so its death is watched for itself
        with _pidfd(process.pid) as fd:
            poll = select.poll()
            poll.register(channel.sock, select.POLLIN)
            poll.register(fd, select.POLLIN)
            ready = {which for which, _ in poll.poll(limit * 1000)}
        if channel.sock.fileno() in ready:
            return channel.receive()
        if not ready:
            process.kill()
            process.wait()
            raise WorkerError(f"The call took longer than {limit:g} s and was ended; a new process is starting.")
        raise EOFError

    def _keep(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            self._served = False
            first = self._process is None
            with self._lock:
                try:
                    self._exchange()
                    self._failure = None
                except WorkerError as error:
                    self._channel, self._failure = None, error
                self._up.set()
            if self._failure is not None and first:
                return
            if self._failure is None and self._process is not None:
                with _pidfd(self._process.pid) as fd:
                    select.select([fd], [], [])
                self._up.clear()
                if not self._closed.is_set():
                    reason = _exit_reason(self._process)
                    entry = self._spec.entry
                    worker_log.say(entry, "WARNING", f"the worker of {entry} died ({reason}); starting a new one")
            pause = 0.0 if self._served else min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2 * pause))

    def _exchange(self) -> None:
        """Start a process and wait until its Runnable is made."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, into = Region.create("adapter-requests"), Region.create("adapter-results")
        archive = str(self._folder / "runtime.zip")
        ends = [str(fd) for fd in (theirs.fileno(), out.fd, into.fd)]
        channel = Channel(ours, out, into)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [_python(), "-c", _START, archive, str(self._folder), *ends, str(os.getpid())],
                    env=self._environment,
                    pass_fds=(theirs.fileno(), out.fd, into.fd),
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                channel.close()
                raise WorkerError(f"The Python {_python()!r} for user code cannot be started: {error}") from error
        try:
            hello = channel.receive()
        except (EOFError, OSError) as error:
            channel.close()
            reason = _exit_reason(self._process)
            raise WorkerError(f"The process for {self._spec.entry} died while it started ({reason}).") from error
        if "error" in hello:
            channel.close()
            self._process.wait()
            raise WorkerError(hello["error"])
        self._channel = channel

    def close(self) -> None:
        """End the worker; it ends by itself when its socket closes, and is killed where it does not."""
        self._closed.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _pidfd(pid: int) -> Any:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _exit_reason(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "its socket closed"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _python() -> str:
    """The interpreter for user code: the one that started the engine, else the one of this stub."""
    named = os.environ.get("ADAPTER_WORKER_PYTHON")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return named or shutil.which(version) or shutil.which("python3") or sys.executable or "python3"


def _environment(spec: EntrySpec, gpu: str | None) -> dict[str, str]:
    environment = dict(os.environ, PYTHONUNBUFFERED="1", CUDA_VISIBLE_DEVICES="-1" if gpu is None else gpu)
    if spec.threads is not None:
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
    return environment

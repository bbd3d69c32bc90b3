"""The process tree of `adapter serve`: this launcher, tritonserver, and the front processes.

The launcher imports the service, runs its deployment hooks, exports it, starts the engine, then the front processes on
one listening socket. It ends what it started: the fronts first, which finish what they have accepted, then Triton.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import inspect
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from adapter import models
from adapter.exceptions import ConfigException, StateException, sentence
from adapter.loader import load_service
from adapter.server.app import DEFAULT_TIMEOUT_S
from adapter.server.front import VARIABLE, FrontOptions
from adapter.services import Service
from adapter.triton.engine import Engine
from adapter.triton.export import plan, write
from adapter.triton.installation import Installation
from adapter.triton.manifest import Manifest, RecordingModels

logger = logging.getLogger("adapter.server")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000
DEFAULT_BACKLOG = 2048
_ENGINE_START_S = 600.0  # models may be large
_GRACE_S = 5.0  # after the timeout of a request, for a front to end by itself
_STEADY_S = 10.0  # a front that lived this long is replaced at once
_LONGEST_PAUSE_S = 10.0
_SO_ATTACH_FILTER = 26
_TEMPORARY, _OWNER = "adapter-repository-", ".owner"
_POLL_S = 0.1


@dataclass(frozen=True)
class ServeOptions:
    """What `adapter serve` was asked for; `api_workers` None is one for each CPU."""

    target: str
    working_dir: Path = Path(".")
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_workers: int | None = None
    development: bool = False
    triton: str | None = None
    manifest: Path | None = None
    repository: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def fronts(self) -> int:
        if self.development:
            return 1
        return self.api_workers if self.api_workers is not None else len(os.sched_getaffinity(0))


def load_recorded(target: str, working_dir: Path) -> tuple[Service, dict[str, str]]:
    """Import a service and note how the tags of the saved models that it asks for were resolved."""
    recording = RecordingModels(models.store())
    models.use_source(recording)
    try:
        return load_service(target, working_dir), recording.tags
    finally:
        models.use_source(None)


def serve(options: ServeOptions, find_engine: Callable[[], Installation]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code is 0 then, and 1 where the service could not be kept running.

    `find_engine` is asked for a tritonserver where one is needed here, and may install it.
    AdapterError where it cannot start, with one sentence that says why.
    """
    try:
        return _serve(options, find_engine)
    except _Stopped:
        return 0


def _serve(options: ServeOptions, find_engine: Callable[[], Installation]) -> int:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(options.host, options.port))
        stop = _StopSignals()
        manifest: Path | None = None
        url: str | None = None
        engine: Engine | None = None
        if options.triton is not None:
            manifest, url = _remote_manifest(options), options.triton
            models.use_source(Manifest.read(manifest).source())
            service = load_service(options.target, options.working_dir)
            models.use_source(None)
            _deploy(service)
        else:
            service, tags = load_recorded(options.target, options.working_dir)
            _deploy(service)
            if not options.development:
                manifest = stack.enter_context(_repository(options)) if service.runners else None
            if manifest is not None:
                written = write(plan(service, folder=Path.cwd(), tags=tags), manifest)
                if written:  # embedded runners alone need no engine
                    engine = _start_engine(stack, find_engine(), manifest, [w.name for w in written])
                    url = engine.url

        def front(index: int, listen_fd: int, ready_fd: int) -> FrontOptions:
            return FrontOptions(
                target=options.target,
                service=service.name,
                working_dir=str(Path.cwd()),
                index=index,
                parent=os.getpid(),
                listen_fd=listen_fd,
                ready_fd=ready_fd,
                timeout_s=options.timeout_s,
                store=options.triton is None,
                url=url,
                manifest=str(manifest) if manifest is not None else None,
            )

        fronts = Fronts(options, listener, front)
        stack.callback(fronts.stop, stop)
        return _run(options, service, fronts, engine, stop)


def _run(options: ServeOptions, service: Service, fronts: Fronts, engine: Engine | None, stop: _StopSignals) -> int:
    fronts.start()
    if not fronts.wait_ready(stop):
        return 1
    stop.starting = False
    mode = "development" if options.development else "production"
    where = f"http://{_shown(options.host)}:{fronts.port}"
    logger.info("Serving %s (%s) on %s (Press CTRL+C to quit)", service.import_string, mode, where)
    engine_fd = [os.pidfd_open(engine.pid)] if engine is not None else []
    while not stop.asked:
        stop.wait([*(f.fd for f in fronts.processes), *engine_fd])
        if engine is not None and engine.poll() is not None and not stop.asked:
            logger.error("tritonserver ended by itself with exit code %s; this service ends, too.", engine.poll())
            return 1
        if not stop.asked and not fronts.replace_dead(stop):
            return 1
    logger.info("Shutting down: requests that were accepted are answered first.")
    return 0


def _deploy(service: Service) -> None:
    for hook in service.deployment_hooks:
        name = getattr(hook, "__name__", hook)
        try:
            result = hook()
            if inspect.isawaitable(result):
                asyncio.run(_awaited(result))
        except (Exception, SystemExit) as error:  # the edge to user code
            logger.error("The deployment hook %s failed.", name, exc_info=error)
            raise StateException(f"The deployment hook {name} failed: {sentence(error)}.") from error


async def _awaited(value: Any) -> Any:
    return await value


def _start_engine(
    stack: contextlib.ExitStack, installation: Installation, repository: Path, entries: list[str]
) -> Engine:
    engine = Engine(installation, repository, entries, env=os.environ)
    stack.callback(engine.stop)
    engine.wait_ready(_ENGINE_START_S)
    logger.info("Triton %s serves %s", installation.version or "", ", ".join(entries))
    if installation.bundled:
        logger.info(
            "This Triton listens on 127.0.0.1 only and is for development and one machine that you trust: it has known "
            "vulnerabilities. In production run Triton 26.04 or later and name it with --triton."
        )
    return engine


@contextlib.contextmanager
def _repository(options: ServeOptions) -> Iterator[Path]:
    """The folder that the service is exported to: the one named, else one that lasts as long as this process."""
    if options.repository is not None:
        yield options.repository.resolve()
        return
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        with (folder / _OWNER).open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Remove the temporary repositories of launchers that were killed: nobody holds their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError), (folder / _OWNER).open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _remote_manifest(options: ServeOptions) -> Path:
    if options.development:
        raise ConfigException("--development runs everything in one process, so it cannot be used with --triton.")
    return (options.manifest or options.repository or Path("model_repository")).resolve()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket that front processes inherit; ConfigException where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(DEFAULT_BACKLOG)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == 98
        reason = "another program uses it; choose another with --port" if taken else str(error)
        raise ConfigException(f"{_shown(host)}:{port} cannot be listened on: {reason}.") from error
    with listener:
        yield listener


def _refuse_connections(listener: socket.socket) -> None:
    """Let no new connection into the queue of a listening socket; what is in it can still be accepted.

    Closing the socket would reset whatever waits in its queue. A filter that drops every packet leaves a client to ask
    again, and to be refused when the socket is closed.
    """
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one BPF instruction: return 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop))
    with contextlib.suppress(OSError):  # a sandbox without socket filters
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    listener.close()


class _Stopped(BaseException):
    """A signal came while the service was starting; what has been started is ended on the way up."""


class _StopSignals:
    """SIGTERM, SIGINT and SIGHUP: an exception while the service starts, then a flag that can be waited for.

    After a second one, nobody waits for requests any more.
    """

    def __init__(self) -> None:
        self.asked = False
        self.hurry = False
        self.starting = True
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.hurry, self.asked = self.asked, True
        if self.starting and not self.hurry:
            raise _Stopped

    def wait(self, fds: list[int], timeout: float | None = None) -> None:
        """Sleep until a signal comes, one of the file descriptors is readable, or the time is over."""
        with contextlib.suppress(InterruptedError):
            select.select([self._read, *fds], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 512)


# ---- front processes ----------------------------------------------------------------------------------------------


@dataclass
class _Front:
    """One running front process."""

    index: int
    process: subprocess.Popen[bytes]
    fd: int  # a pidfd: readable when the process has ended
    ready: int
    born: float


class Fronts:
    """The front processes: started together, replaced when they die."""

    def __init__(
        self, options: ServeOptions, listener: socket.socket, front: Callable[[int, int, int], FrontOptions]
    ) -> None:
        self.processes: list[_Front] = []
        self._options = options
        self._listener = listener
        self._front = front
        self._pause = 0.0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        for index in range(1, self._options.fronts + 1):
            self.processes.append(self._spawn(index))

    def _spawn(self, index: int) -> _Front:
        ready, theirs = os.pipe()
        try:
            listen_fd = self._listener.fileno()
            options = self._front(index, listen_fd, theirs)
            process = subprocess.Popen(
                [sys.executable, "-m", "adapter.server.front"],
                env=_environment(options),
                pass_fds=(listen_fd, theirs),
                start_new_session=True,  # CTRL+C reaches the launcher alone, which lets fronts finish their requests
            )
        finally:
            os.close(theirs)
        return _Front(index, process, os.pidfd_open(process.pid), ready, time.monotonic())

    def wait_ready(self, stop: _StopSignals) -> bool:
        """Wait until all take requests; False when one ended before."""
        waiting = {front.ready for front in self.processes}
        while waiting:
            stop.wait(list(waiting))
            for fd in list(waiting):
                if not select.select([fd], [], [], 0)[0]:
                    continue
                if not os.read(fd, 1):
                    logger.error("A front process could not start; its own message is above.")
                    return False
                waiting.discard(fd)
        return True

    def replace_dead(self, stop: _StopSignals) -> bool:
        """Start anew what has died; False where one dies again and again before it takes a request."""
        for position, front in enumerate(self.processes):
            code = front.process.poll()
            if code is None:
                continue
            if time.monotonic() - front.born > _STEADY_S:
                self._pause = 0.0
            if self._pause > _LONGEST_PAUSE_S:
                logger.error("The front process %s keeps dying (exit code %s).", front.index, code)
                return False
            logger.warning("The front process %s died (exit code %s); a new one starts.", front.index, code)
            stop.wait([], self._pause)
            if stop.asked:
                return True
            self._pause = max(0.5, 2 * self._pause)
            self._forget(front)
            self.processes[position] = self._spawn(front.index)
        return True

    def stop(self, stop: _StopSignals) -> None:
        """Let every front finish what it has accepted, and end those that do not, or all where `stop` is in a hurry."""
        _refuse_connections(self._listener)
        for front in self.processes:
            front.process.terminate()
        until = time.monotonic() + self._options.timeout_s + _GRACE_S
        for front in self.processes:
            while front.process.poll() is None and time.monotonic() < until and not stop.hurry:
                stop.wait([front.fd], _POLL_S)
            if front.process.poll() is None:
                logger.warning("The front process %s is killed; its requests are not answered.", front.index)
                front.process.kill()
                front.process.wait()
            self._forget(front)
        self.processes = []

    def _forget(self, front: _Front) -> None:
        os.close(front.fd)
        os.close(front.ready)


def _environment(options: FrontOptions) -> Mapping[str, str]:
    return {**os.environ, VARIABLE: options.to_json(), "PYTHONUNBUFFERED": "1"}

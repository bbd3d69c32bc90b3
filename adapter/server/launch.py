"""The process tree of `adapter serve`: this launcher, tritonserver, and the front processes.

The launcher imports the service, runs its deployment hooks, exports it, starts the engine, then the front processes on
one listening socket. It ends what it started: the fronts first, which finish what they have accepted, then Triton.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import inspect
import io
import logging
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from adapter import models
from adapter.exceptions import ConfigException, EngineError, StateException, sentence
from adapter.loader import load_service
from adapter.metrics import FOLDER
from adapter.resources import Machine
from adapter.server import elsewhere, metrics, tls
from adapter.server.front import STARTUP_FAILED, VARIABLE, FrontOptions
from adapter.server.guard import tokens_of
from adapter.server.reload import ENVIRONMENT, KEPT, RebuildOptions, Reloader
from adapter.server.temporary import temporary_folder
from adapter.server.tracing import engine_traces_url
from adapter.server.watched import files_of
from adapter.services import Service
from adapter.settings import ApiServer, Runners, Settings
from adapter.triton.copies import refuse_wrong_numbers
from adapter.triton.engine import Engine
from adapter.triton.engine_log import LogLine
from adapter.triton.export import ExportPlan, Written, plan, write
from adapter.triton.installation import Installation
from adapter.triton.manifest import Manifest, RecordingModels, fetch
from adapter.triton.notice import Board
from adapter.triton.watchdog import Watchdog
from adapter.tuning import tailored, tune

logger = logging.getLogger("adapter.server")

DEFAULT_REPOSITORY = Path("model_repository")
_GRACE_S = 5.0  # after the timeout of a request, for a front to end by itself
_STEADY_S = 10.0  # a front that lived this long is replaced at once
_LONGEST_PAUSE_S = 10.0
_SO_ATTACH_FILTER = 26
_REPOSITORY, _METRICS, _BOARD = "adapter-repository-", "adapter-metrics-", "adapter-board-"
_TASKS = "adapter-tasks-"
_POLL_S = 0.1
_RETRY_PAUSES_S = (0.5, 1.0, 2.0)  # before a front is started again whose start-up hooks failed
_UNLOAD_S = 30.0


@dataclass(frozen=True)
class ServeOptions:
    """What `adapter serve` was asked for.

    `reread` reads the settings again, and `config` is a file of them that is named, for `reload`.
    """

    target: str
    working_dir: Path = Path(".")
    development: bool = False
    reload: bool = False
    settings: Settings = field(default_factory=Settings)
    reread: Callable[[], Settings] | None = None
    config: Path | None = None

    def fronts(self, *, beside_triton: bool) -> int:
        """How many front processes there are: where a Triton runs beside them, it has the other half of the CPUs."""
        workers = self.settings.api_server.workers
        if self.development or (self.reload and workers is None):
            return 1
        cpus = Machine.here().cpus
        return workers or (max(1, cpus // 2) if beside_triton else cpus)


def load_recorded(target: str, working_dir: Path, settings: Runners) -> tuple[Service, dict[str, str]]:
    """Import a service with its settings, and note how the tags of saved models that it asks for were resolved."""
    recording = RecordingModels(models.store())
    models.use_source(recording)
    try:
        service = load_service(target, working_dir)
    finally:
        models.use_source(None)
    tune(service, settings)
    return service, recording.tags


def serve(options: ServeOptions, find_engine: Callable[[], Installation]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code is 0 then, and 1 where the service could not be kept running.

    `find_engine` is asked for a tritonserver where one is needed here, and may install it.
    AdapterError where it cannot start, with one sentence that says why.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what deployment hooks print stands before what fronts print
    try:
        return _serve(options, find_engine)
    except _Stopped:
        return 0


def _serve(options: ServeOptions, find_engine: Callable[[], Installation]) -> int:
    with contextlib.ExitStack() as stack:
        stop = _StopSignals()
        manifest: Path | None = None
        engine: str | None = None
        watchdog: Watchdog | None = None
        board = Board(stack.enter_context(temporary_folder(_BOARD)))
        planned: ExportPlan | None = None
        written: list[Written] = []
        if options.reload:
            sys.dont_write_bytecode = True
            os.environ.update(ENVIRONMENT)
        remote = options.settings.triton.elsewhere
        if remote:
            manifest = stack.enter_context(_remote_manifest(options))
        service, tags = _load(options, manifest)
        if remote:
            elsewhere.check(service, options.settings.triton)
        options = replace(options, settings=tailored(options.settings, service))
        server = options.settings.api_server
        tls.check(server.ssl)
        tokens_of(server)  # refuses a file that cannot be used, before anything is started
        listener = stack.enter_context(_listen(server.http.host, server.http.port, server.backlog))
        os.environ.update(service.envs)
        _deploy(service)
        if not remote:
            if not options.development:
                repository = options.settings.triton.repository
                manifest = stack.enter_context(_repository(repository)) if service.runners else None
            if manifest is not None:
                planned = plan(service, folder=Path.cwd(), tags=tags)
                written = write(planned, manifest)
                if written:  # embedded runners alone need no engine
                    names = [w.name for w in written]
                    traces_url = engine_traces_url(options.settings.tracing)
                    installation = find_engine()
                    if installation.bundled:
                        refuse_wrong_numbers(planned.copies)
                    if options.settings.triton.backends:
                        logger.info(
                            "triton.backends is for `adapter export`: here Triton's python backend serves all models."
                        )
                    watchdog = _start_engine(stack, installation, manifest, names, traces_url, board, server)
                    engine = watchdog.engine.url

        server = replace(server, workers=options.fronts(beside_triton=engine is not None))
        options = replace(options, settings=replace(options.settings, api_server=server))
        front = FrontOptions(
            target=options.target,
            service=service.name,
            working_dir=str(Path.cwd()),
            parent=os.getpid(),
            settings=options.settings,
            store=not remote,
            metrics_folder=str(stack.enter_context(temporary_folder(_METRICS))),
            board=str(board.path),
            tasks_folder=str(stack.enter_context(temporary_folder(_TASKS))),
            metrics_url=options.settings.triton.metrics_url,
            engine=engine,
            manifest=str(manifest) if manifest is not None else None,
        )
        fronts = Fronts(options, listener, front, board)
        stack.callback(fronts.stop, stop)
        reloader: Reloader | None = None
        if options.reload:
            rebuild = RebuildOptions(
                target=options.target,
                working_dir=str(Path.cwd()),
                development=options.development,
                settings=options.settings.to_json(),
                repository=str(manifest) if manifest is not None else None,
                entries={w.name: w.version for w in written},
            )
            files = files_of(planned, tags) | ({str(options.config)} if options.config is not None else set())
            reread = options.reread or (lambda: options.settings)
            where = None if watchdog is None else watchdog.where
            reloader = Reloader(rebuild, files, reread, os.environ, where)
            stack.callback(reloader.close)
        if not options.development:
            _hint(service)
        return _run(options, service, fronts, watchdog, stop, reloader)


def _load(options: ServeOptions, manifest: Path | None) -> tuple[Service, dict[str, str]]:
    """Import the service; where Triton is elsewhere, `manifest` answers for the models that it asks for."""
    if manifest is None:
        return load_recorded(options.target, options.working_dir, options.settings.runners)
    models.use_source(Manifest.read(manifest).source())
    service = load_service(options.target, options.working_dir)
    models.use_source(None)
    tune(service, options.settings.runners)
    return service, {}


def _hint(service: Service) -> None:
    """Say once which methods cannot share requests to Triton, and what would let them."""
    alone = [
        f"{runner.name}.{method.name}"
        for runner in service.runners
        for method in runner.spec.methods.values()
        if not (method.signature.batchable or method.stream or runner.spec.embedded or runner.spec.existing)
    ]
    if alone:
        logger.info(
            "Hint: every call of %s goes to Triton by itself. A method that takes a batch can share its requests when "
            "it is saved with signatures={…: {'batchable': True}} or marked @adapter.Runnable.method(batchable=True).",
            ", ".join(alone),
        )


def _run(
    options: ServeOptions,
    service: Service,
    fronts: Fronts,
    watchdog: Watchdog | None,
    stop: _StopSignals,
    reloader: Reloader | None,
) -> int:
    mode = "development" if options.development else "production"
    server = options.settings.api_server
    where = f"{'https' if server.ssl.enabled else 'http'}://{_shown(server.http.host)}:{fronts.port}"
    logger.info('Starting %s HTTP server from "%s", listening at %s', mode, service.import_string, where)
    fronts.start()
    if not fronts.wait_ready(stop):
        return 1
    stop.starting = False
    logger.info("Serving %s (%s) on %s (Press CTRL+C to quit)", service.import_string, mode, where)
    while not stop.asked:
        stop.wait([*fronts.fds, *(reloader.fds if reloader is not None else ())], fronts.patience)
        if not stop.asked and not fronts.replace_dead(stop):
            if reloader is None:
                return 1
            fronts.forget_dead()
        if not stop.asked and reloader is not None:
            _reload(reloader, fronts, watchdog, stop)
    logger.info("Shutting down: requests that were accepted are answered first.")
    return 0


def _reload(reloader: Reloader, fronts: Fronts, watchdog: Watchdog | None, stop: _StopSignals) -> None:
    """Let new fronts take over where the service has been rebuilt, and unload the entries that nobody calls now."""
    rebuilt = reloader.poll()
    if rebuilt is not None and fronts.renew(rebuilt.service, Settings.from_json(rebuilt.settings), stop, reloader):
        reloader.renewed()
        anew = f" Loaded anew: {', '.join(rebuilt.loaded)}." if rebuilt.loaded else ""
        logger.info("The service is served as it is now.%s", anew)
        if watchdog is not None:
            watchdog.serves(tuple(rebuilt.entries or ()))
    reloader.prepare()
    if watchdog is not None and not fronts.retiring and (unused := reloader.unused()):
        try:
            watchdog.engine.control.unload(unused, _UNLOAD_S)
            logger.info("Unloaded: %s.", ", ".join(unused))
        except EngineError as error:
            logger.warning("%s", error)


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
    stack: contextlib.ExitStack,
    installation: Installation,
    repository: Path,
    entries: list[str],
    traces_url: str | None,
    board: Board,
    server: ApiServer,
) -> Watchdog:
    def make(entries: Sequence[str], on_line: Callable[[LogLine], None]) -> Engine:
        return Engine(installation, repository, entries, env=os.environ, traces_url=traces_url, on_line=on_line)

    watchdog = Watchdog(make, board, server.traffic.timeout + _GRACE_S)
    stack.callback(watchdog.stop)
    watchdog.start(entries)
    logger.info("Triton %s serves %s", installation.version or "", ", ".join(entries))
    if installation.bundled:
        logger.info(
            "This Triton listens on 127.0.0.1 only and is for development and one machine that you trust: it has known "
            "vulnerabilities. In production run Triton 26.04 or later and name it with --triton."
        )
    return watchdog


@contextlib.contextmanager
def _repository(named: Path | str | None) -> Iterator[Path]:
    """The folder that the service is exported to: the one named, else one that lasts as long as this process."""
    if isinstance(named, str):
        raise ConfigException(
            f"The Triton that `adapter serve` starts gets its models from a folder of this machine, not from {named}: "
            "leave out --repository, or name a Triton that reads them there with --triton."
        )
    if named is not None:
        yield named
        return
    with temporary_folder(_REPOSITORY) as folder:
        yield folder


@contextlib.contextmanager
def _remote_manifest(options: ServeOptions) -> Iterator[Path]:
    """The manifest of Tritons that run elsewhere; one in object storage is read once, for all fronts."""
    if options.development:
        raise ConfigException("--development runs everything in one process, so it cannot be used with --triton.")
    if options.reload:
        raise ConfigException(
            "--reload changes the entries of the Triton that it starts, so it cannot be used with --triton: run "
            "`adapter export` and load the entry there, or leave out --triton while you write the service."
        )
    triton = options.settings.triton
    place = triton.manifest or triton.repository or DEFAULT_REPOSITORY
    if isinstance(place, Path):
        yield place.resolve()
        return
    with temporary_folder(_REPOSITORY) as folder:
        yield fetch(place, folder)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _listen(host: str, port: int, backlog: int) -> Iterator[socket.socket]:
    """A listening socket that front processes inherit; ConfigException where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except (OSError, ValueError) as error:  # a host that no name server could ever know is a ValueError
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
    bell: int
    born: float
    until: float = math.inf  # when it is killed, after it was asked to end
    serving: bool = False


class Fronts:
    """The front processes: started together, replaced when they die."""

    def __init__(self, options: ServeOptions, listener: socket.socket, front: FrontOptions, board: Board) -> None:
        self.processes: list[_Front] = []
        self.retiring: list[_Front] = []
        self._options = options
        self._listener = listener
        self._front = front
        self._board = board
        self._pause = 0.0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def fds(self) -> list[int]:
        """The file descriptors that are readable when a process has ended."""
        return [front.fd for front in (*self.processes, *self.retiring)]

    @property
    def patience(self) -> float | None:
        """The seconds until one of those that retire is killed, None where none does."""
        until = min((front.until for front in self.retiring), default=None)
        return None if until is None else max(0.0, until - time.monotonic())

    def start(self) -> None:
        for index in range(1, (self._options.settings.api_server.workers or 1) + 1):
            self.processes.append(self._spawn(index))

    def _spawn(self, index: int) -> _Front:
        ready, theirs = os.pipe()
        bell = self._board.bell()
        try:
            listen_fd = self._listener.fileno()
            options = replace(self._front, index=index, listen_fd=listen_fd, ready_fd=theirs, bell_fd=bell)
            process = subprocess.Popen(
                [sys.executable, "-m", "adapter.server.front"],
                env=_environment(options),
                pass_fds=(listen_fd, theirs, bell),
                start_new_session=True,  # CTRL+C reaches the launcher alone, which lets fronts finish their requests
            )
        finally:
            os.close(theirs)
        return _Front(index, process, os.pidfd_open(process.pid), ready, bell, time.monotonic())

    def wait_ready(self, stop: _StopSignals, reloader: Reloader | None = None) -> bool:
        """Wait until all take requests; False when one ended before, or the files changed once more.

        One whose start-up hooks failed is started again up to three times, later each time; not after a change of the
        files, since there is what was served before.
        """
        waiting = {front.ready: front for front in self.processes}
        pauses = {front.index: iter(() if reloader is not None else _RETRY_PAUSES_S) for front in self.processes}
        while waiting:
            stop.wait([*waiting, *([reloader.changes] if reloader is not None else [])])
            if stop.asked or (reloader is not None and reloader.look()):
                return False
            for fd in list(waiting):
                if not select.select([fd], [], [], 0)[0]:
                    continue
                if not os.read(fd, 1):
                    front = waiting.pop(fd)
                    if front.process.wait() == STARTUP_FAILED and (pause := next(pauses[front.index], None)):
                        logger.warning(
                            "The front process %s could not start; it tries again in %g s.", front.index, pause
                        )
                        stop.wait([], pause)
                        if stop.asked:
                            return False
                        self._forget(front)
                        again = self.processes[self.processes.index(front)] = self._spawn(front.index)
                        waiting[again.ready] = again
                        continue
                    kept = f" {KEPT}" if reloader is not None else ""
                    logger.error("A front process could not start; its own message is above.%s", kept)
                    return False
                waiting.pop(fd).serving = True
        return True

    def renew(self, service: str, settings: Settings, stop: _StopSignals, reloader: Reloader) -> bool:
        """Let new processes take over, and those of before finish what they have accepted; False where none can."""
        before, told = self.processes, self._front
        self.processes, self._front = [], replace(told, service=service, settings=settings)
        self.start()
        if self.wait_ready(stop, reloader):
            self._retire(before)
            self._pause = 0.0
            return True
        self._retire(self.processes)  # some may have accepted requests by now
        self.processes, self._front = before, told
        return False

    def _retire(self, fronts: Sequence[_Front]) -> None:
        for front in fronts:
            front.process.terminate()
            serving = front.serving or select.select([front.ready], [], [], 0)[0]
            front.until = self._patient_until() if serving else time.monotonic() + _GRACE_S
        self.retiring += fronts

    def forget_dead(self) -> None:
        """Go on without the processes that have died."""
        for front in [f for f in self.processes if f.process.poll() is not None]:
            self.processes.remove(front)
            self._forget(front)

    def replace_dead(self, stop: _StopSignals) -> bool:
        """Start anew what has died; False where one dies again and again before it takes a request."""
        for front in list(self.retiring):
            if front.until < time.monotonic():
                self._kill_late(front)
            if front.process.poll() is not None:
                self.retiring.remove(front)
                self._forget(front)
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
            self._board.count("adapter_front_restarts_total", "Front processes that died and were replaced.")
            with contextlib.suppress(OSError):  # a full disk is no reason to end; the next notice has the number, too
                self._board.post()
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
        until = self._patient_until()
        for front in (*self.processes, *self.retiring):
            while front.process.poll() is None and time.monotonic() < min(until, front.until) and not stop.hurry:
                stop.wait([front.fd], _POLL_S)
            if front.process.poll() is None:
                self._kill_late(front)
            self._forget(front)
        self.processes, self.retiring = [], []

    def _patient_until(self) -> float:
        return time.monotonic() + self._options.settings.api_server.traffic.timeout + _GRACE_S

    def _kill_late(self, front: _Front) -> None:
        logger.warning("The front process %s is killed; its requests are not answered.", front.index)
        front.process.kill()
        front.process.wait()

    def _forget(self, front: _Front) -> None:
        os.close(front.fd)
        os.close(front.ready)
        self._board.silence(front.bell)
        metrics.forget(front.process.pid, self._front.metrics_folder)


def _environment(options: FrontOptions) -> Mapping[str, str]:
    return {**os.environ, FOLDER: options.metrics_folder, VARIABLE: options.to_json(), "PYTHONUNBUFFERED": "1"}

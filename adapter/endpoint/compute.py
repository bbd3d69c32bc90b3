"""Where the service of an endpoint sets up and answers: in a process of its own under Triton, or in this one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

import adapter
from adapter.endpoint import fetching
from adapter.endpoint.hosted import FAILED, LAUNCHED, SET_UP, Answerer, HostedEndpoint
from adapter.endpoint.service import Service
from adapter.exceptions import AdapterError, EngineError, ServiceUnavailable, StateException, sentence
from adapter.runner import Runner
from adapter.server.app import TritonRunners
from adapter.server.temporary import temporary_folder
from adapter.server.threads import Threads
from adapter.services import Service as Records
from adapter.triton import installation
from adapter.triton.engine import Engine
from adapter.triton.engine_log import LogLine
from adapter.triton.export import plan, write
from adapter.triton.installation import Installation
from adapter.triton.manifest import Manifest
from adapter.triton.notice import Board, Notices
from adapter.triton.watchdog import Watchdog

logger = logging.getLogger("adapter.endpoint")

_NAME = "endpoint"
_FOLDER = "adapter-endpoint-"
LONGEST_S = 86400.0  # setup() and a call may last as long as they take
_PATIENCE_S = 5.0  # after the death of the process, for calls that wait for the next one
_POLL_S = 0.02
_DATAGRAM_BYTES = 1 << 16
_TOO_LATE = "The server is shutting down, and this call did not end in time."

# what becomes of the service: one of the events of `hosted`, or that its process has died; and a text
DIED = "died"
Heard = Callable[[str, str], None]


class Compute(Protocol):
    """Holds the service; `start` returns before it is set up where it is elsewhere."""

    async def start(self, heard: Heard) -> None: ...

    async def answer(self, name: str, body: Any) -> dict[str, Any]: ...

    def kill(self) -> None:
        """End the call that runs, however long it would take."""

    async def stop(self) -> None: ...


class _Calls:
    """The calls that wait for an answer, which can be given up at any time."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reason = ""

    async def wait(self, call: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(call)
        self._tasks.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # nobody waits for the answer any more
            task.cancel()
            raise
        finally:
            self._tasks.discard(task)
        if task.cancelled():
            raise ServiceUnavailable(self._reason)
        return task.result()

    @property
    def now(self) -> Sequence[asyncio.Task[Any]]:
        return list(self._tasks)

    def give_up(self, calls: Sequence[asyncio.Task[Any]], reason: str) -> None:
        self._reason = reason
        for call in calls:
            call.cancel()


class LocalCompute:
    """In this process, on one thread: calls are answered one by one, and the event loop is free meanwhile."""

    def __init__(self, service: Service, limits: fetching.Limits) -> None:
        self._service = service
        self._limits = limits
        self._thread = Threads(1)
        self._calls = _Calls()
        self._answerer: Answerer | None = None

    async def start(self, heard: Heard) -> None:
        fetching.allow(self._limits)
        await self._calls.wait(self._thread.run(self._service.setup))
        self._answerer = Answerer(self._service)
        heard(SET_UP, "")

    async def answer(self, name: str, body: Any) -> dict[str, Any]:
        assert self._answerer is not None
        answer: dict[str, Any] = await self._calls.wait(self._thread.run(self._answerer.answer, name, body))
        return answer

    def kill(self) -> None:
        self._calls.give_up(self._calls.now, _TOO_LATE)  # a thread cannot be ended; who waits for it can be answered

    async def stop(self) -> None:
        self._thread.stop()
        if self._answerer is not None:
            self._answerer.close()


class TritonCompute:
    """In the worker process of a Triton entry with one instance, looked after as every other entry is.

    The process says by datagrams when it is launched and set up, and its death is seen by its pidfd.
    """

    def __init__(
        self,
        service: Service,
        limits: fetching.Limits,
        find_engine: Callable[[], Installation] = lambda: installation.ensure(os.environ),
    ) -> None:
        self._service = service
        self._limits = limits
        self._find_engine = find_engine
        self._stack = contextlib.ExitStack()
        self._calls = _Calls()
        self._launching: asyncio.Task[None] | None = None
        self._confirming: asyncio.Task[None] | None = None
        self._runners: TritonRunners | None = None
        self._watchdog: Watchdog | None = None
        self._process: tuple[int, int] | None = None  # pid and pidfd
        self._served = False  # the engine has been ready once
        self._set_up = False
        self._stopping = threading.Event()

    async def start(self, heard: Heard) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._folder = self._stack.enter_context(temporary_folder(_FOLDER))
        self._address = str(self._folder / "reports")
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._socket.setblocking(False)
        self._socket.bind(self._address)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._launching = asyncio.create_task(self._launch())

    def _parameters(self) -> dict[str, Any]:
        try:
            pickled = cloudpickle.dumps(self._service)
        except Exception as error:  # whatever the user's objects raise
            raise StateException(
                f"The service cannot be handed to the process that answers: {sentence(error)}. Make such an object in "
                "setup(), which runs there, and not in __init__ or on_server_startup()."
            ) from error
        return {
            "pickled": pickled,
            "folder": os.getcwd(),
            "path": [str(Path(place).resolve()) for place in sys.path],
            "package": str(Path(adapter.__file__).parent),
            "reports": self._address,
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "limits": dataclasses.asdict(self._limits),
        }

    async def _launch(self) -> None:
        try:
            # here and now, since nothing else may change the service meanwhile
            self._runner = Runner(HostedEndpoint, name=_NAME, runnable_init_params=self._parameters())
            self._runner.spec = dataclasses.replace(self._runner.spec, call_timeout_s=LONGEST_S)
            self._records = Records(_NAME, runners=[self._runner])
            board = await asyncio.to_thread(self._start_engine)
            assert self._watchdog is not None
            manifest = Manifest.read(self._folder / "repository")
            bell = board.bell()
            self._stack.callback(board.silence, bell)
            notices = Notices(board.path, bell)
            self._runners = TritonRunners(manifest, engine=self._watchdog.engine.url, notices=notices)
            await self._runners.start(self._records)
        except Exception as error:  # noqa: BLE001  # nobody waits for this task: such as a disk that is full
            if not self._stopping.is_set():
                self._heard(FAILED, str(error) if isinstance(error, AdapterError) else sentence(error))
            return
        self._served = True
        self._say_when_ready()

    def _start_engine(self) -> Board:
        found = self._find_engine()
        repository = self._folder / "repository"
        repository.mkdir()
        written = write(plan(self._records, folder=Path.cwd()), repository)

        def make(entries: Sequence[str], on_line: Callable[[LogLine], None]) -> Engine:
            return Engine(found, repository, entries, env=os.environ, on_line=on_line)

        board = Board(self._folder)
        watchdog = Watchdog(make, board, _PATIENCE_S, LONGEST_S)
        if self._stopping.is_set():
            raise EngineError("The server has been told to stop.")
        self._watchdog = watchdog
        watchdog.start([entry.name for entry in written])
        return board

    # ---- what the process says ------------------------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                record = json.loads(self._socket.recv(_DATAGRAM_BYTES))
            except BlockingIOError:
                return
            if record["event"] == LAUNCHED:
                self._watch(record["pid"])
                self._heard(LAUNCHED, "")
            elif record["event"] == SET_UP:
                self._set_up = True
                self._say_when_ready()
            elif self._served:
                logger.error("setup() failed in the new process:\n%s", record["text"])
            else:  # the engine tells it, with all that it knows
                self._unwatch()

    def _say_when_ready(self) -> None:
        if self._served and self._set_up:
            self._confirming = asyncio.create_task(self._confirm())

    async def _confirm(self) -> None:
        """Say that calls are answered, once Triton takes them, too."""
        assert self._runners is not None
        while self._set_up and not self._stopping.is_set():
            if not await self._runners.not_ready():
                self._heard(SET_UP, "")
                return
            await asyncio.sleep(_POLL_S)

    def _watch(self, pid: int) -> None:
        self._unwatch()
        self._set_up = False
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # it has ended since
            self._died()
            return
        self._process = pid, fd
        self._loop.add_reader(fd, self._died)

    def _unwatch(self) -> None:
        if self._process is not None:
            _, fd = self._process
            self._loop.remove_reader(fd)
            os.close(fd)
            self._process = None

    def _died(self) -> None:
        self._unwatch()
        self._set_up = False
        if self._stopping.is_set():
            return
        self._heard(DIED, "")
        self._loop.call_later(_PATIENCE_S, self._give_up, self._calls.now)

    def _give_up(self, calls: Sequence[asyncio.Task[Any]]) -> None:
        """Answer the calls that still wait for a process, where none has come."""
        if not self._set_up:
            self._calls.give_up(calls, "The process that answers died, and a new one is not ready yet; try again.")

    # ---- calls ----------------------------------------------------------------------------------------------------

    async def answer(self, name: str, body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._calls.wait(self._runner.answer.async_run(name, body))
        return answer

    def kill(self) -> None:
        self._calls.give_up(self._calls.now, _TOO_LATE)
        if self._process is not None:
            pid, fd = self._process
            if not select.select([fd], [], [], 0)[0]:  # not reaped, so the pid is still its own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        self._stopping.set()
        if self._confirming is not None:
            await self._confirming
        if self._runners is not None:
            await self._runners.stop()
        if self._watchdog is not None:
            await asyncio.to_thread(self._watchdog.stop)
        if self._launching is not None:
            await self._launching
        self._unwatch()
        self._loop.remove_reader(self._socket.fileno())
        self._stack.close()

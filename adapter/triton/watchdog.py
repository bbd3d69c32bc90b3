"""Keeps the embedded engine alive: notices what has died, starts it again, and tells the fronts meanwhile.

A worker of user code is replaced by its own stub (`worker_process.py`), which is only listened to here. Left are the
death of a stub, which Triton 2.51 neither repairs nor tells, and that of tritonserver.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adapter.exceptions import EngineError, sentence
from adapter.triton.admin import Restart
from adapter.triton.engine import Engine
from adapter.triton.engine_log import LogLine
from adapter.triton.notice import Board
from adapter.triton.stubs import Stub, connected, ended_badly

logger = logging.getLogger("adapter.engine")

Make = Callable[[Sequence[str], Callable[[LogLine], None]], Engine]

START_S = 600.0  # models may be large
MOST_LEAKED = 3  # versions that Triton keeps in memory for ever; with more of them it is exchanged
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0  # between two starts of what dies soon after each
_STEADY_S = 10.0  # what lived this long has not died soon
_AT_ONCE = 5  # starts in a row of what dies soon, before there is a pause
_NOTICED_S = 0.25  # Triton takes note at once of a stub that it has ended itself
_LEAKED_S = 4.0  # a version that can be unloaded is, by then: its requests on a dead stub fail after 1 s, one by one
_SLOW_RESTART_S = 1.0  # a worker that takes no longer to be replaced is not worth telling
_PROVEN_S = 2.0  # what kept dying has to live this long to be called ready
_POLL_S = 0.1
_LEFT_S = 1.0  # an engine that nobody has been connected to for so long has no clients any more
_RETRY_S = 1.0


@dataclass
class _Child:
    """A stub that is watched."""

    stub: Stub
    pidfd: int
    suspected: float = math.inf  # when it ended without an error, as it does when its entry is unloaded
    ended: bool = False  # by us
    arriving: bool = False  # its entry is being loaded anew, and does not serve by it yet
    worker: str = "up"
    since: float = -math.inf  # when that came about
    proven: float = -math.inf  # until then its worker may keep dying


@dataclass
class _Backoff:
    """How long to wait before what has died is started again."""

    deaths: int = 0  # in a row, soon after a start

    def died(self, lived_s: float) -> float:
        self.deaths = 1 if lived_s > _STEADY_S else self.deaths + 1
        more = self.deaths - _AT_ONCE
        return 0.0 if more <= 0 else float(min(_LONGEST_PAUSE_S, _SHORTEST_PAUSE_S * 2 ** min(more - 1, 10)))

    def failed(self) -> float:
        """It could not even be started."""
        self.deaths = max(self.deaths, _AT_ONCE)
        return self.died(0.0)


class _Repair:
    """What is done about an entry whose stub has died."""

    def __init__(self) -> None:
        self.backoff = _Backoff()
        self.due = math.inf
        self.load: Restart | None = None
        self.begun = self.loaded = -math.inf

    @property
    def under_way(self) -> bool:
        return self.load is not None or self.due < math.inf

    def give_up(self) -> None:
        if self.load is not None:
            self.load.cancel()


@dataclass
class _Retired:
    """An engine that another has taken over from."""

    engine: Engine
    until: float
    port: int
    left: float = math.inf  # since when nobody is seen to be connected to it

    def is_over(self, now: float, *, connected: bool) -> bool:
        """Whether it can be ended: its time is over, or everybody has left.

        One look does not tell that: while connections come and go, the list of the kernel may miss one that stays.
        """
        self.left = math.inf if connected else min(self.left, now)
        return now > self.until or now - self.left > _LEFT_S


class Watchdog:
    """Owns the engine, which may be another one after each death; a thread of its own does the work."""

    def __init__(self, make: Make, board: Board, patience_s: float, start_s: float = START_S) -> None:
        """`make` starts an engine; nobody waits longer than `patience_s` for the answer of one that is replaced.

        Entries have `start_s` to be loaded.
        """
        self._make = make
        self._start_s = start_s
        self._board = board
        self._patience_s = patience_s
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-watchdog", daemon=True)
        self._news: queue.SimpleQueue[LogLine] = queue.SimpleQueue()
        self._rescan = False
        self._children: dict[int, _Child] = {}
        self._seen: set[str] = set()  # entries that have stubs
        self._repairs: dict[str, _Repair] = {}
        self._loads = 0
        self._old: list[tuple[int, str, float]] = []  # stubs of versions that were replaced: pid, entry, until when
        # stubs that died: when Triton should have noticed, and of which load of which entry they were
        self._dead: dict[int, tuple[float, tuple[str, float]]] = {}
        self._leaked: set[tuple[str, float]] = set()
        self._starting: threading.Thread | None = None
        self._started: Engine | EngineError | None = None
        self._down = ""  # why there is no engine
        self._backoff = _Backoff()
        self._born = 0.0
        self._pidfd = -1
        self._retired: list[_Retired] = []
        self._ending: list[threading.Thread] = []
        self._engine: Engine | None = None

    # ---- for the launcher -----------------------------------------------------------------------------------------

    def start(self, entries: Sequence[str]) -> None:
        """Start the engine and wait until it serves `entries`; EngineError where it does not."""
        self._engine = self._make(entries, self._listen)
        self._engine.wait_ready(self._start_s)
        self._adopt(self._engine)
        self._tell()
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """The engine as it is now; look at it again each time."""
        if self._engine is None:
            raise EngineError("tritonserver has not been started.")
        return self._engine

    def where(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Where Triton is now, and the metadata that opens its restricted calls."""
        return self.engine.url, self.engine.metadata

    def serves(self, entries: Sequence[str]) -> None:
        """Take note that these entries are loaded now, and no others."""
        if self._engine is not None:
            self._engine.entries = tuple(entries)
        self._rescan = True
        self._ring()

    def stop(self) -> None:
        """End the engine, in whatever state it is."""
        self._stopping.set()
        self._ring()
        if self._thread.is_alive():
            self._thread.join()
        if self._starting is not None:
            self._starting.join()
            self._take_started()
        for repair in self._repairs.values():
            repair.give_up()
        for retired in self._retired:
            self._end(retired.engine)
        if self._engine is not None:
            self._engine.stop()
        for thread in self._ending:
            thread.join()

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _listen(self, line: LogLine) -> None:
        if line.worker is not None:
            self._news.put(line)
            self._ring()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._wait()
                if not self._stopping.is_set():
                    self._look()
            except Exception:  # the edge of a thread: without it nothing would be repaired any more
                logger.exception("The watchdog of the engine failed; it looks again in %g s.", _RETRY_S)
                self._stopping.wait(_RETRY_S)
                self._ring()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if not self._down:
            poll.register(self._pidfd, select.POLLIN)
        for child in self._children.values():
            if child.suspected == math.inf:
                poll.register(child.pidfd, select.POLLIN)
        soonest = min(self._moments(), default=math.inf)
        poll.poll(None if soonest == math.inf else max(0.0, soonest - time.monotonic()) * 1000 + 1)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _moments(self) -> Iterator[float]:
        """When something is to be looked at though nothing happens."""
        now = time.monotonic()
        for child in self._children.values():
            yield child.suspected
            if child.worker == "died":
                yield max(now + _POLL_S, child.since + _SLOW_RESTART_S)
            if child.proven > now:
                yield child.proven
        for repair in self._repairs.values():
            if not self._down:
                yield repair.due
        yield from (until for _, _, until in self._old)
        yield from (until for until, _ in self._dead.values())
        if self._retired:
            yield now + _POLL_S

    def _look(self) -> None:
        while not self._news.empty():
            self._hear(self._news.get())
        if self._starting is not None and self._started is not None:
            self._starting.join()
            self._starting = None
            self._take_started()
        if not self._down and self.engine.poll() is not None:
            self._engine_died(self.engine)
        if not self._down:
            self._look_after_stubs()
        self._end_old()
        self._tell()
        for retired in [r for r in self._retired if r.is_over(time.monotonic(), connected=connected(r.port))]:
            self._retired.remove(retired)
            self._end(retired.engine)

    # ---- workers --------------------------------------------------------------------------------------------------

    def _hear(self, line: LogLine) -> None:
        """Take note of what a stub says of its worker."""
        assert line.worker is not None
        state = line.worker.get("state")
        child = self._children.get(line.worker.get("stub", 0))
        if child is None or state not in ("up", "died", "failing"):
            return
        now = time.monotonic()
        if state == "failing" or child.worker == "up":
            child.since = now
        if state == "failing":
            child.proven = math.inf
        elif state == "up" and child.proven == math.inf:
            child.proven = now + _PROVEN_S
        child.worker = state

    # ---- stubs ----------------------------------------------------------------------------------------------------

    def _adopt(self, engine: Engine) -> None:
        """Watch an engine that is ready."""
        self._drop_children()
        self._engine, self._down, self._born = engine, "", time.monotonic()
        self._pidfd = os.pidfd_open(engine.pid)
        self._scan()

    def _drop_children(self) -> None:
        for child in self._children.values():
            os.close(child.pidfd)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        for repair in self._repairs.values():
            repair.give_up()
        self._children.clear()
        self._seen.clear()
        self._repairs.clear()
        self._old.clear()
        self._dead.clear()
        self._leaked.clear()

    def _scan(self) -> None:
        for stub in self.engine.stubs():
            if stub.pid not in self._children and stub.pid not in self._dead:
                repair = self._repairs.get(stub.entry)
                arriving = repair is not None and repair.load is not None
                with contextlib.suppress(OSError):  # it has ended since
                    self._children[stub.pid] = _Child(stub, os.pidfd_open(stub.pid), arriving=arriving)
        self._seen = {entry for entry in self.engine.entries if entry in self._seen or self._living(entry)}
        for entry in self._seen:  # one may have died before it was seen
            repair = self._repairs.get(entry)
            if not self._living(entry) and (repair is None or not repair.under_way):
                self._mend(entry, "its stub died")

    def _living(self, entry: str) -> list[_Child]:
        """The stubs of an entry that answer calls."""
        return [c for c in self._children.values() if c.stub.entry == entry and not c.ended and not c.arriving]

    def _look_after_stubs(self) -> None:
        if self._rescan or any(_readable(child.pidfd) for child in self._children.values()):
            self._rescan = False
            for entry in [e for e in self._repairs if e not in self.engine.entries]:
                self._repairs.pop(entry).give_up()
            self._scan()  # first of all: a stub that ends may have a successor that was loaded by others
        now = time.monotonic()
        for pid, child in list(self._children.items()):
            if not _readable(child.pidfd):
                continue
            badly = ended_badly(pid)
            if badly is False and not child.ended:
                child.suspected = min(child.suspected, now + _NOTICED_S)
                if now < child.suspected:
                    continue
            os.close(child.pidfd)
            del self._children[pid]
            if badly is None or child.ended or child.arriving or child.stub.entry not in self.engine.entries:
                continue
            name = child.stub.entry
            self._mend(name, f"its stub {pid} died")
            self._dead[pid] = now + _LEAKED_S, (name, self._repairs[name].loaded)
        for entry, repair in list(self._repairs.items()):
            if repair.load is not None and repair.load.done:
                self._loaded(entry, repair, repair.load)
            elif repair.load is None and repair.due <= now:
                repair.due, repair.begun = math.inf, now
                self._loads += 1
                repair.load = self.engine.control.restart(entry, self._loads, self._start_s, self._ring)
        for pid in [pid for pid, (until, _) in self._dead.items() if until <= now]:
            _, version = self._dead.pop(pid)
            if ended_badly(pid) is not None and version not in self._leaked:
                self._leaked.add(version)
                logger.info("Triton keeps a version in memory that had a dead stub (%s so far).", len(self._leaked))
        if len(self._leaked) > MOST_LEAKED and self._starting is None and not self._repairing:
            logger.warning(
                "Triton keeps %s versions in memory that had a dead stub: a new tritonserver takes over.",
                len(self._leaked),
            )
            self._begin(None, 0.0)

    @property
    def _repairing(self) -> bool:
        return any(repair.load is not None for repair in self._repairs.values())

    def _mend(self, entry: str, why: str) -> None:
        """Have an entry loaded anew, at once or where that did not help for long, later."""
        self._board.count("adapter_stub_restarts_total", "Entries loaded anew because a stub had died.", entry=entry)
        repair = self._repairs.setdefault(entry, _Repair())
        if repair.under_way:
            logger.warning("%s: %s.", entry, why)
            return
        now = time.monotonic()
        pause = repair.backoff.died(now - repair.loaded)
        repair.due = now + pause
        when = f"in {pause:g} s" if pause else "now"
        logger.warning("%s: %s; the entry is loaded anew %s.", entry, why, when)

    def _loaded(self, entry: str, repair: _Repair, load: Restart) -> None:
        repair.load, now = None, time.monotonic()
        try:
            load.result()
        except EngineError as error:
            pause = repair.backoff.failed()
            repair.due = now + pause
            logger.error("%s\nThe next attempt is in %g s.", error, pause)
            return
        repair.loaded = now
        logger.info("%s is served again, after %.2f s.", entry, now - repair.begun)
        for pid in [pid for pid, of, _ in self._old if of == entry]:
            self._kill(pid)  # at most one version besides the one that serves
        for child in self._living(entry):
            child.ended = True
            self._old.append((child.stub.pid, entry, now + self._patience_s))
        for child in self._children.values():
            child.arriving = child.arriving and child.stub.entry != entry
        self._scan()

    def _end_old(self) -> None:
        """End the stubs of versions that were replaced; Triton does it, where it does not keep the version."""
        self._old = [(pid, entry, until) for pid, entry, until in self._old if pid in self._children]
        for pid, _, until in self._old:
            if until <= time.monotonic():
                self._kill(pid)

    def _kill(self, pid: int) -> None:
        child = self._children.get(pid)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    # ---- tritonserver ---------------------------------------------------------------------------------------------

    def _engine_died(self, engine: Engine) -> None:
        self._drop_children()
        if self._starting is not None:  # the one that should take over will, as soon as it can
            self._down = "Triton has died; another one is being started."
            logger.error("tritonserver %s; the one that is starting takes over.", _ending(engine.poll()))
            self._count_engine("died")
            self._end(engine)
            return
        pause = self._backoff.died(time.monotonic() - self._born)
        when = f"in {pause:g} s" if pause else "now"
        logger.error("tritonserver %s; a new one is started %s.", _ending(engine.poll()), when)
        self._down = "Triton has died; a new one is being started."
        self._count_engine("died")
        self._begin(engine, pause)

    def _count_engine(self, reason: str) -> None:
        self._board.count("adapter_engine_restarts_total", "Times that tritonserver was started anew.", reason=reason)

    def _begin(self, dead: Engine | None, pause: float) -> None:
        """Start another engine beside this thread: for a dead one, or to take over from one that lives."""
        entries = self.engine.entries
        self._started = None
        self._starting = threading.Thread(target=self._start, args=(dead, entries, pause), name="adapter-engine-start")
        self._starting.start()

    def _start(self, dead: Engine | None, entries: Sequence[str], pause: float) -> None:
        engine: Engine | None = None
        started: Engine | EngineError
        try:
            if dead is not None:
                dead.stop()
            if self._stopping.wait(pause):
                return
            engine = started = self._make(entries, self._listen)
            engine.wait_ready(self._start_s, self._stopping)
        except Exception as error:  # noqa: BLE001  # the edge of a thread: nothing would be started any more
            if engine is not None:
                engine.stop()
            started = error if isinstance(error, EngineError) else EngineError(sentence(error))
        self._started = started
        self._ring()

    def _take_started(self) -> None:
        """Let the engine that was started take over."""
        started, self._started = self._started, None
        before = self.engine
        if isinstance(started, Engine):
            if self._stopping.is_set():
                self._end(started)
                return
            if not self._down:
                self._count_engine("recycled")
                self._retired.append(_Retired(before, time.monotonic() + self._patience_s, before.ports.grpc))
            started.entries = before.entries
            self._adopt(started)
            logger.info("Triton serves %s again.", ", ".join(started.entries))
        elif started is not None and not self._stopping.is_set():
            pause = self._backoff.failed()
            logger.error("%s\nThe next attempt is in %g s.", started, pause)
            self._begin(None, pause)

    def _end(self, engine: Engine) -> None:
        thread = threading.Thread(target=engine.stop, name="adapter-engine-end")
        thread.start()
        self._ending = [t for t in self._ending if t.is_alive()] + [thread]

    # ---- what the fronts are told ----------------------------------------------------------------------------------

    def _tell(self) -> None:
        refused: dict[str, str] = {}
        not_ready: dict[str, str] = {}
        now = time.monotonic()
        for entry in self.engine.entries:
            living = self._living(entry)
            if self._down:
                refused[entry] = self._down
            elif entry in self._seen and not living:
                refused[entry] = f"The process of Triton that serves {entry} died; it is being started again."
            elif living and all(child.worker == "failing" for child in living):
                refused[entry] = f"The process that runs {entry} keeps dying; it is started again after a pause."
            elif living and all(_doubtful(child, now) for child in living):
                not_ready[entry] = f"The process that runs {entry} died and is not ready again."
        self._board.level(
            "adapter_leaked_versions", "Versions with a dead stub that Triton keeps in memory.", len(self._leaked)
        )
        self._board.post(url=self.engine.url, metrics_url=self.engine.metrics_url, refused=refused, not_ready=not_ready)


def _doubtful(child: _Child, now: float) -> bool:
    slow = child.worker == "died" and now - child.since > _SLOW_RESTART_S
    return slow or child.worker == "failing" or now < child.proven


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended by itself with exit code {status}"

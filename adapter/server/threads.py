"""The threads that plain API functions run on."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from adapter.exceptions import ServiceUnavailable
from adapter.mailbox import Mailbox

_LONG_S = 0.005  # of a CPU
_MOST_LONG = 1000  # that are remembered: nobody may ask


class _Job:
    __slots__ = (
        "abandoned",
        "arguments",
        "begun",
        "context",
        "done",
        "error",
        "finished",
        "function",
        "future",
        "held",
        "keywords",
        "result",
    )

    def __init__(
        self,
        future: asyncio.Future[Any],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        done: Mailbox[_Job],
    ) -> None:
        self.future = future
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.done = done
        self.context = contextvars.copy_context()
        self.begun = False  # the thread sets it, and then looks at `abandoned`; the loop does the reverse
        self.abandoned = False
        self.held = False  # begun and abandoned: it holds its thread for nobody
        self.finished = False
        self.result: Any = None
        self.error: BaseException | None = None


class Threads:
    """Runs functions for event loops on a fixed number of threads, which start when they are first needed.

    A function whose caller has given up (its time is over) goes on to hold its thread, since Python cannot end it;
    while all threads are held like that, a call is refused with ServiceUnavailable instead of being put behind them.
    Results come back through one wake-up of the loop for all that ended meanwhile.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unfinished = 0
        self._held = 0
        self._calls = 0
        self._long: collections.deque[float] = collections.deque(maxlen=_MOST_LONG)
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def exhausted(self) -> bool:
        """Whether every thread is held by a function that nobody waits for any more."""
        return self._held >= self.count

    async def run(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        """Call a function on a thread, in a copy of the caller's context variables."""
        if self._held >= self.count:
            raise ServiceUnavailable(
                f"All {self.count} threads of this worker are held by requests whose time is over; try again."
            )
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._done = loop, Mailbox(loop, self._finish)
        job = _Job(loop.create_future(), function, arguments, keywords, self._done)
        self._unfinished += 1
        if self._unfinished > len(self._threads) < self.count:
            name = f"api-{len(self._threads) + 1}"
            thread = threading.Thread(target=_work, args=(self._jobs, self._long), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._calls += 1
        self._jobs.put(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.abandoned = True
            job.held = job.begun and not job.finished
            self._held += job.held
            raise
        finally:
            del job  # else its error, whose traceback has this frame, would be kept, and all that its call was given

    def _finish(self, job: _Job) -> None:
        self._unfinished -= 1
        self._held -= job.held
        job.finished = True
        if job.future.cancelled():
            return
        if job.error is None:
            job.future.set_result(job.result)
        elif isinstance(job.error, (StopIteration, SystemExit, KeyboardInterrupt)):
            # a future takes any error but the first of them, and the others would end the loop
            error = RuntimeError(f"{job.function!r} raised {type(job.error).__name__}")
            error.__cause__ = job.error
            job.future.set_exception(error)
        else:
            job.future.set_exception(job.error)

    def done(self) -> tuple[int, float]:
        """Since this was last asked: how many calls began, and how many seconds of a CPU those took that took long."""
        calls, self._calls = self._calls, 0
        return calls, sum(self._long.popleft() for _ in range(len(self._long)))

    def native_ids(self) -> list[int]:
        """The threads as the kernel numbers them."""
        return [thread.native_id for thread in self._threads if thread.native_id is not None]

    def stop(self) -> None:
        """Let idle threads end; a function that still runs is not waited for."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()


def _work(jobs: queue.SimpleQueue[_Job | None], long: collections.deque[float]) -> None:
    spent = time.thread_time()
    while True:
        job = jobs.get()
        if job is None:
            return
        job.begun = True
        if not job.abandoned:
            try:
                job.result = job.context.run(job.function, *job.arguments, **job.keywords)
            except BaseException as error:  # noqa: BLE001  # the edge to user code, which may raise SystemExit
                job.error = error
            before, spent = spent, time.thread_time()
            if spent - before > _LONG_S:
                long.append(spent - before)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            job.done.put(job)
        del job  # its arguments and result are not kept until the next one comes

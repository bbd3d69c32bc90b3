"""Calls on their way to Triton: those that come while others are in flight share one request."""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Protocol

from adapter.exceptions import AdapterError, ClientGone, DeadlineExceeded, InternalServerError, ServiceUnavailable
from adapter.triton.failures import Restricted

MAX_WAITING_CALLS = 10_000
MAX_WAITING_BYTES = 256 << 20
ALONE_IN_FLIGHT = 16  # requests of calls that are never packed
LARGE = 256 << 10  # bytes of a call that costs so much itself that packing saves nothing


class Call:
    """One call: what is sent, how long it may take, and who waits for it.

    Calls with equal `key` may share a request; `size` is the number of its items, `weight` that of its bytes. It may
    take until its caller's time is over, at `until` (time.monotonic()), and `limit_s` seconds; None for ever.
    """

    # defaults of the class: what most calls never change costs them nothing
    link: Any = None  # its span, where calls are traced
    awaited = False  # whether somebody still waits for it
    result: Any = None
    error: BaseException | None = None
    _future: asyncio.Future[Any] | None = None
    _lock: threading.Lock | None = None

    def __init__(
        self,
        key: Hashable,
        body: Any,
        size: int,
        weight: int,
        identity: str = "",
        until: float | None = None,
        limit_s: float | None = None,
        alone: bool = False,
    ) -> None:
        begun = time.monotonic()
        if limit_s is not None and (until is None or begun + limit_s < until):
            until = begun + limit_s
        self.begun = begun
        self.expires = math.inf if until is None else until
        self.key = key
        self.body = body
        self.size = size
        self.weight = weight
        self.identity = identity
        # it never shares a request, or not again after one that it shared has failed
        self.alone = alone or weight > LARGE

    def for_task(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        """A future for the result, for a caller on the event loop of the lane."""
        self.awaited = True
        future = self._future = loop.create_future()
        return future

    def for_thread(self) -> Callable[[], Any]:
        """A function that waits for the result, for a caller on another thread."""
        self.awaited = True
        lock = self._lock = threading.Lock()
        lock.acquire()

        def wait() -> Any:
            lock.acquire()
            error, self.error = self.error, None
            try:
                if error is not None:
                    raise error
            finally:
                del error  # its traceback leads here and to this call: it would be kept, with all that was sent
            return self.result

        return wait

    def finish(self, result: Any, error: BaseException | None = None) -> None:
        """Hand the result, or the error, to the one who waits."""
        self.awaited = False
        future = self._future
        if future is not None:
            self._future = None
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        elif self._lock is not None:
            lock, self._lock = self._lock, None
            self.result, self.error = result, error
            lock.release()

    def forget(self) -> None:
        """The one who waited has gone."""
        self.awaited = False
        self._future = self._lock = None


class _Pack:
    __slots__ = ("calls", "task")

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.task: asyncio.Task[Sequence[Any]] | None = None


class Observer(Protocol):
    """What is counted of a lane: calls, of which `now` are under way, and the requests that carry them."""

    now: int

    def ended(self, seconds: Sequence[float], *, failed: bool = False) -> None:
        """Calls that took so long are no longer under way."""

    def departed(self, calls: int, items: int) -> None:
        """A request left with so many calls, and items in them."""

    def landed(self) -> None:
        """A request is back."""

    def retried(self, calls: int) -> None:
        """So many calls are sent again, each alone."""


Send = Callable[[Sequence[Call], float], Coroutine[Any, Any, Sequence[Any]]]


class Lane:
    """The calls of one method.

    As many requests are under way at once as there are `instances`, and one more, which an instance finds when it is
    done. What arrives meanwhile waits and goes together with the next one: calls of equal key, in the order they came,
    with at most `most` items in all (0: every call goes alone). While an instance is free, a call leaves as soon as the
    event loop has taken in what arrived with it; the one request more waits until it carries as many calls as one that
    is under way, since it could not begin before that has ended, and each request costs more than the calls in it.
    Calls of many bytes go alone, and several at a time. Waiting calls are bounded in number and bytes;
    ServiceUnavailable over that.

    `send` makes one request of some calls within so many seconds: one result for each of them, an AdapterError in its
    place where that call alone failed, or an AdapterError raised where the whole request did (asyncio.TimeoutError
    where its time was over). Then, with `retry`, each of its calls is sent once more by itself. All methods run on the
    loop.
    """

    def __init__(
        self,
        name: str,
        send: Send,
        loop: asyncio.AbstractEventLoop,
        *,
        most: int,
        instances: int = 1,
        limit_s: float | None = None,
        retry: bool = True,
        observer: Observer | None = None,
    ) -> None:
        self.instances = instances
        self._name = name
        self._send = send
        self._loop = loop
        self._most = most
        self._limit_s = limit_s
        self._retry = retry
        self._observer = observer
        self._queues: dict[Hashable, collections.deque[Call]] = {}
        self._waiting = self._bytes = 0
        self._packs: set[_Pack] = set()
        self._departing = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    def submit(self, call: Call) -> None:
        """Send a call as soon as it may go."""
        if self._waiting >= MAX_WAITING_CALLS or (self._waiting and self._bytes + call.weight > MAX_WAITING_BYTES):
            what = f"{self._waiting} calls of {self._name} with {self._bytes >> 20} MB wait for Triton already"
            call.finish(None, ServiceUnavailable(f"{what}; try again."))
            return
        if self._observer is not None:
            self._observer.now += 1
        self._queue_of(call).append(call)
        if call.expires < self._alarm_at:
            self._set_alarm(call.expires)
        # with more requests under way than that, nothing but what goes alone may leave
        if not self._departing and (len(self._packs) <= self.instances or call.alone or not self._most):
            self._depart_soon()

    def abandon(self, call: Call) -> None:
        """Nobody waits for a call any more; a request that carries nothing else is cancelled."""
        if not call.awaited:
            return
        self._end(call, failed=True)
        call.forget()
        self._cancel_unwanted()

    def drop(self, identity: str) -> None:
        """End the calls of one HTTP request, whose client has gone; requests that carry others as well go on."""
        for call in self._live():
            if call.identity is identity:
                self._finish(call, None, ClientGone(f"{self._name} was not waited for: its client has gone."))
        self._cancel_unwanted()

    def interrupt(self) -> None:
        """Give up the requests under way: nobody will answer them."""
        for pack in self._packs:
            if pack.task is not None:
                pack.task.cancel()

    def close(self) -> None:
        """Fail what is under way."""
        for call in self._live():
            self._finish(call, None, ServiceUnavailable(f"The connection that {self._name} is called over was closed."))
        for pack in self._packs:
            if pack.task is not None:
                pack.task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()

    def _finish(self, call: Call, result: Any, error: BaseException | None = None) -> None:
        if call.awaited:
            self._end(call, failed=error is not None)
            call.finish(result, error)

    def _end(self, call: Call, *, failed: bool) -> None:
        if self._observer is not None:
            self._observer.ended((time.monotonic() - call.begun,), failed=failed)

    def _cancel_unwanted(self) -> None:
        """Cancel the requests that carry nothing any more that somebody waits for."""
        for pack in self._packs:
            if pack.task is not None and not any(call.awaited for call in pack.calls):
                pack.task.cancel()

    # ---- waiting --------------------------------------------------------------------------------------------------

    def _queue_of(self, call: Call) -> collections.deque[Call]:
        """The queue that a call is put into."""
        queue = self._queues.get(call.key)
        if queue is None:
            queue = self._queues[call.key] = collections.deque()
        self._waiting += 1
        self._bytes += call.weight
        return queue

    def _oldest(self) -> collections.deque[Call]:
        """The queue whose first call came before those of all others."""
        queues = self._queues.values()
        return next(iter(queues)) if len(queues) == 1 else min(queues, key=_came)

    def _take(self) -> list[Call]:
        """The calls of the next request: the one that came first, and those that may share its request."""
        calls: list[Call] = []
        while self._queues and not calls:
            queue = self._oldest()
            key, before, weight, free = queue[0].key, len(queue), 0, self._most
            while queue:
                call = queue[0]
                if call.awaited:
                    if calls and (call.alone or call.size > free):
                        break
                    calls.append(call)
                    free = 0 if call.alone else free - call.size
                weight += queue.popleft().weight
            self._waiting -= before - len(queue)
            self._bytes -= weight
            if not queue:
                del self._queues[key]
        return calls

    # ---- under way ------------------------------------------------------------------------------------------------

    def _may_depart(self) -> bool:
        """Whether the next request, of the calls that wait, may leave now."""
        flying, waiting = len(self._packs), self._waiting
        if flying < self.instances:
            return True
        if not self._most or self._oldest()[0].alone:
            return flying < max(ALONE_IN_FLIGHT, self.instances + 1)
        if flying == self.instances:
            for pack in self._packs:  # a generator would cost more than all of this
                if len(pack.calls) <= waiting:
                    return True
        return False

    def _depart_soon(self) -> None:
        self._departing = True
        self._loop.call_soon(self._depart)

    def _depart(self) -> None:
        self._departing = False
        while self._queues and self._may_depart() and (calls := self._take()):
            pack = _Pack(calls)
            self._packs.add(pack)
            if self._observer is not None:
                self._observer.departed(len(calls), sum([call.size for call in calls]))
            limit_s = max([call.expires for call in calls]) - time.monotonic()
            pack.task = self._loop.create_task(self._send(calls, limit_s))
            pack.task.add_done_callback(functools.partial(self._land, pack))

    def _land(self, pack: _Pack, task: asyncio.Task[Sequence[Any]]) -> None:
        self._packs.discard(pack)
        if self._observer is not None:
            self._observer.landed()
        self._depart()  # before the answers are handed out, whose callers keep the loop busy
        calls = pack.calls
        if task.cancelled():  # every caller has gone, or the lane was closed
            error: BaseException | None = ServiceUnavailable(f"The call of {self._name} was given up; try again.")
        else:
            error = task.exception()
        if error is None and len(task.result()) != len(calls):
            error = InternalServerError(f"{self._name} answered {len(task.result())} of {len(calls)} calls.")
        if error is None:
            self._hand_out(calls, task.result())
        elif isinstance(error, AdapterError) and len(calls) > 1 and self._retry and not isinstance(error, Restricted):
            self._send_alone(calls)
        else:
            for call in calls:
                self._finish(call, None, self._late(call) if isinstance(error, asyncio.TimeoutError) else error)
        if not self._departing and self._queues:
            self._depart_soon()

    def _hand_out(self, calls: Sequence[Call], results: Sequence[Any]) -> None:
        now, seconds = time.monotonic(), []
        for call, result in zip(calls, results, strict=True):
            if isinstance(result, AdapterError):
                self._finish(call, None, result)
            elif call.awaited:
                seconds.append(now - call.begun)
                call.finish(result)
        if self._observer is not None:
            self._observer.ended(seconds)

    def _send_alone(self, calls: Sequence[Call]) -> None:
        awaited = [call for call in calls if call.awaited]
        if self._observer is not None:
            self._observer.retried(len(awaited))
        for call in reversed(awaited):
            call.alone = True
            self._queue_of(call).appendleft(call)

    # ---- time -----------------------------------------------------------------------------------------------------

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_later(max(0.0, at - time.monotonic()), self._ring)

    def _ring(self) -> None:
        """Fail the calls whose time is over; one alarm for all, since each call outlives most others by far."""
        self._alarm, self._alarm_at = None, math.inf
        now = time.monotonic()
        soonest = math.inf
        for call in self._live():
            if call.expires > now:
                soonest = min(soonest, call.expires)
            else:
                self._finish(call, None, self._late(call))
        self._cancel_unwanted()
        if soonest < math.inf:
            self._set_alarm(soonest)

    def _live(self) -> list[Call]:
        waiting = itertools.chain.from_iterable(self._queues.values())
        flying = itertools.chain.from_iterable(pack.calls for pack in self._packs)
        return [call for call in itertools.chain(waiting, flying) if call.awaited]

    def _late(self, call: Call) -> AdapterError:
        if self._limit_s is not None and call.expires == call.begun + self._limit_s:
            return ServiceUnavailable(
                f"{self._name} could not answer within its max_latency_ms of {self._limit_s * 1000:g}: it is too busy, "
                "or the limit is too low for one call."
            )
        return DeadlineExceeded(f"{self._name} did not answer in time.")


def _came(queue: collections.deque[Call]) -> float:
    return queue[0].begun

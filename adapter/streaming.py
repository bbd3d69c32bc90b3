"""Generator methods under way: stepped on an event loop, and no further ahead of their readers than these allow."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import itertools
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any

from adapter import payload
from adapter.exceptions import (
    AdapterError,
    DeadlineExceeded,
    RemoteException,
    ServiceUnavailable,
    StateException,
    message_of,
    sentence,
)
from adapter.invocation import Outcome
from adapter.method import Call
from adapter.runnable import Runnable

logger = logging.getLogger(__name__)

_CLOSE_S = 5.0  # what a generator that is ended early may still take
_END = object()


class Stream:
    """One call of a generator method, from its first step to its last, in one task.

    Async generators of a loop run side by side. Sync ones are stepped on the loop's own thread, so that no two of them
    run at once; after each step the next one has its turn.

    `send` is given each value and returns the bytes that it took. It begins with leave for `values` values and `size`
    bytes in all; `allow` gives more. One step of an async generator takes at most `limit_s` seconds.
    """

    def __init__(
        self,
        runnable: Runnable,
        call: Call,
        send: Callable[[Any], int],
        *,
        values: float = math.inf,
        size: float = math.inf,
        limit_s: float = math.inf,
    ) -> None:
        self._runnable = runnable
        self._call = call
        self._send = send
        self._limit_s = limit_s
        self._values, self._size = values, size
        self._sent = self._bytes = 0
        self._blocked: asyncio.Future[None] | None = None
        self._ended = False  # by its owner
        self._late = False
        self._task: asyncio.Task[Any] | None = None

    def allow(self, values: float, size: float) -> None:
        """Give leave for so many values, and so many bytes, since its beginning."""
        self._values, self._size = max(self._values, values), max(self._size, size)
        if self._blocked is not None and not self._blocked.done() and self._may_step():
            self._blocked.set_result(None)

    def end(self) -> None:
        """Close the generator, at its next step where it is in the middle of one that cannot be interrupted."""
        if not self._ended:
            self._ended = True
            if self._task is not None:
                self._task.cancel()

    async def run(self) -> BaseException | None:
        """Step to the end; the error that it ended with, None where there was none or `end` was called."""
        self._task = asyncio.current_task()
        generator: Any = None
        try:
            generator = getattr(self._runnable, self._call.method.name)(*self._call.args, **self._call.kwargs)
            step = self._async_step if inspect.isasyncgen(generator) else _step
            while not self._ended:
                if not self._may_step():
                    self._blocked = asyncio.get_running_loop().create_future()
                    await self._blocked
                if (value := await step(generator)) is _END:
                    return None
                self._bytes += self._send(value)
                self._sent += 1
                await asyncio.sleep(0)
        except BaseException as error:  # noqa: BLE001  # the edge to user code, which may raise SystemExit and its like
            if isinstance(error, asyncio.CancelledError):
                if self._ended:
                    return None
                found = RemoteException(f"{self._call.method.name}() cancelled itself.")
                found.__cause__ = error
                return found
            return error
        finally:
            await self._close(generator)
        return None

    def _may_step(self) -> bool:
        return self._sent < self._values and self._bytes < self._size

    async def _async_step(self, generator: Any) -> Any:
        if self._limit_s == math.inf:
            return await anext(generator, _END)
        timer = asyncio.get_running_loop().call_later(self._limit_s, self._expire)
        try:
            return await anext(generator, _END)
        except asyncio.CancelledError:
            if self._late and not self._ended:
                raise DeadlineExceeded(
                    f"{self._call.method.name}() gave no value within {self._limit_s:g} s and was ended."
                ) from None
            raise
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._late = True
        if self._task is not None:
            self._task.cancel()

    async def _close(self, generator: Any) -> None:
        """Let the generator run what it has for its end; an error of that is nobody's any more."""
        self._ended = True
        if generator is None:
            return
        timer = asyncio.get_running_loop().call_later(_CLOSE_S, self._expire)
        try:
            if inspect.isasyncgen(generator):
                await generator.aclose()
            else:
                generator.close()
        except BaseException as error:  # noqa: BLE001  # user code
            logger.warning("%s() failed while it was closed: %s", self._call.method.name, sentence(error))
        finally:
            timer.cancel()


async def warm_up(runnable: Runnable, call: Call) -> None:
    """Take the first value of a call, and close the generator; StateException where that fails."""

    def taken(value: Any) -> int:
        stream.end()
        return 0

    stream = Stream(runnable, call, taken)
    if (error := await stream.run()) is not None:
        reason = message_of(error) if isinstance(error, AdapterError) else sentence(error)
        raise StateException(f"The warm-up call of {call.method.name}() failed: {reason}") from error


async def _step(generator: Any) -> Any:
    return next(generator, _END)


class LocalStreams:
    """Streams of a Runnable in this process, on a thread of their own with an event loop.

    A generator is stepped when its reader asks for a value, and each value goes the way it would go to Triton.
    """

    def __init__(self, make: Callable[[], Runnable], name: str) -> None:
        """`make` makes the object, on that thread."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()
        try:
            made = _on(self.loop, _made(make)).result()
            if made.error is not None:
                raise made.error
            self._runnable: Runnable = made.value
        except BaseException:
            self.close()
            raise

    def warm_up(self, call: Call) -> None:
        """Take the first value of a call; StateException where that fails."""
        _on(self.loop, warm_up(self._runnable, call)).result()

    async def values(self, call: Call) -> AsyncGenerator[Any, None]:
        """The values of a call; runs on the loop."""
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        def send(value: Any) -> int:
            arrived.put_nowait(b"".join(call.method.encode_result(value)))
            return 0

        stream = Stream(self._runnable, call, send, values=0)
        task = asyncio.ensure_future(stream.run())
        task.add_done_callback(lambda task: arrived.put_nowait(_END))
        try:
            for read in itertools.count(1):
                stream.allow(read, math.inf)
                if (blob := await arrived.get()) is _END:
                    break
                yield call.method.rebuild_result(payload.decode(blob))
            Outcome(error=task.result()).unwrap()
        finally:
            stream.end()
            await asyncio.wait([task])

    def close(self) -> None:
        """End the streams that are open, and the thread."""
        with contextlib.suppress(ServiceUnavailable):
            _on(self.loop, _end_all()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _made(make: Callable[[], Runnable]) -> Outcome:
    try:
        return Outcome(make())
    except BaseException as error:  # noqa: BLE001  # a SystemExit of user code would end the loop
        return Outcome(error=error)


async def _end_all() -> None:
    """Cancel every task of this loop but this one, and wait for their ends."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_S)
    await asyncio.get_running_loop().shutdown_asyncgens()


def stepped(values: AsyncGenerator[Any, None], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """The values of an async generator that belongs to an event loop, for a thread without one."""
    try:
        while (value := _on(loop, _next(values)).result()) is not _END:
            yield value
    finally:
        # not waited for: Python closes a generator that nobody has any more on any thread, that of the loop as well
        with contextlib.suppress(ServiceUnavailable):
            _on(loop, values.aclose())


async def async_stepped(
    values: AsyncGenerator[Any, None], loop: asyncio.AbstractEventLoop
) -> AsyncGenerator[Any, None]:
    """The values of an async generator that belongs to an event loop, for another one."""
    try:
        while (value := await asyncio.wrap_future(_on(loop, _next(values)))) is not _END:
            yield value
    finally:
        with contextlib.suppress(RuntimeError, ServiceUnavailable):
            await asyncio.wrap_future(_on(loop, values.aclose()))


def _on(loop: asyncio.AbstractEventLoop, step: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
    try:
        return asyncio.run_coroutine_threadsafe(step, loop)
    except RuntimeError:
        step.close()
        raise ServiceUnavailable("A stream cannot be read on: this server has stopped.") from None


async def _next(values: AsyncGenerator[Any, None]) -> Any:
    return await anext(values, _END)

"""Generators step by step: how far they go, what ends them, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.exceptions import DeadlineExceeded, RemoteException, StateException
from adapter.method import Call, methods_of
from adapter.model import BatchingConfig
from adapter.runnable import Runnable
from adapter.streaming import Stream, warm_up


class Counters(Runnable):
    def __init__(self) -> None:
        self.log: list[Any] = []

    @Runnable.method
    def sync(self, count: int) -> Iterator[int]:
        try:
            for i in range(count):
                self.log.append(i)
                yield i
        finally:
            self.log.append("closed")

    @Runnable.method
    async def nonstop(self, count: int) -> AsyncIterator[int]:
        """It never waits for anything."""
        for i in range(count):
            self.log.append(i)
            yield i

    @Runnable.method
    async def sleeping(self, seconds: float) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.sleep(seconds)
            yield 1
        finally:
            await asyncio.sleep(0)
            self.log.append("closed")

    @Runnable.method
    def raising(self, error: Any) -> Iterator[int]:
        yield 0
        raise error

    @Runnable.method
    async def async_raising(self, error: Any) -> AsyncIterator[int]:
        yield 0
        raise error

    @Runnable.method
    def stubborn(self) -> Iterator[int]:
        for i in range(2):
            try:
                yield i
            except GeneratorExit:
                self.log.append("no")

    @Runnable.method
    async def async_stubborn(self) -> AsyncIterator[int]:
        for i in range(2):
            try:
                yield i
                await asyncio.sleep(60)
            except (GeneratorExit, asyncio.CancelledError):
                self.log.append("no")


METHODS = methods_of(Counters, lambda name: BatchingConfig())


class Run:
    """One stream on the running loop, and what it has sent."""

    def __init__(self, name: str, *args: Any, runnable: Counters | None = None, size: int = 1, **options: Any) -> None:
        self.runnable = runnable or Counters()
        self.sent: list[Any] = []

        def send(value: Any) -> int:
            self.sent.append(value)
            return size

        self.stream = Stream(self.runnable, Call(METHODS[name], args, {}), send, **options)
        self.task = asyncio.create_task(self.stream.run())

    async def turns(self, count: int = 50) -> Run:
        for _ in range(count):
            await asyncio.sleep(0)
        return self


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.parametrize("name", ["sync", "nonstop"])
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 20),
    size=st.integers(0, 5),
    leaves=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 100)), max_size=5),
)
def test_generator_goes_as_far_as_it_has_leave(name: str, count: int, size: int, leaves: list[tuple[int, int]]) -> None:
    async def test() -> None:
        running = await Run(name, count, size=size, values=2).turns()
        values, total = 2.0, math.inf
        for leave in [(0, 0), *leaves]:
            running.stream.allow(*leave)
            await running.turns()
            values, total = max(values, leave[0]), max(total, leave[1])
            sent = len(running.sent)
            assert sent <= min(count, values)
            assert (sent - 1) * size < total or sent == 0
            assert sent == count or sent >= values or sent * size >= total
        running.stream.allow(math.inf, math.inf)
        assert await running.task is None
        assert running.sent == [*range(count)]

    run(test)


def test_generators_take_turns_however_little_they_wait() -> None:
    async def test() -> None:
        runnable = Counters()
        runs = [Run(name, 5, runnable=runnable) for name in ("sync", "nonstop", "sync")]
        for each in runs:
            assert await each.task is None
        assert runnable.log[:6] == [0, 0, 0, 1, 1, 1]

    run(test)


@pytest.mark.parametrize("name", ["raising", "async_raising"])
@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RemoteException("x")]
)
def test_error_is_what_the_stream_ended_with_and_hurts_no_other(name: str, error: BaseException) -> None:
    async def test() -> None:
        other, failed = Run("nonstop", 20), Run(name, error)
        assert await failed.task is error
        assert failed.sent == [0]
        assert await other.task is None

    run(test)


def test_generator_that_raises_what_ends_loops_has_an_error() -> None:
    async def test() -> None:
        for name, error in (("raising", StopIteration()), ("async_raising", StopAsyncIteration())):
            assert isinstance(await Run(name, error).task, RuntimeError)
        assert isinstance(await Run("async_raising", asyncio.CancelledError()).task, RemoteException)

    run(test)


@pytest.mark.parametrize(("name", "argument"), [("sync", 10), ("sleeping", 60.0)])
@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_stream_that_is_ended_closes_its_generator_wherever_it_is(name: str, argument: Any, turns: int) -> None:
    async def test() -> None:
        running = await Run(name, argument, values=1).turns(turns)
        running.stream.end()
        running.stream.end()
        assert await running.task is None
        assert running.runnable.log[-1:] == (["closed"] if running.sent else [])

    run(test)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python says so as well
@pytest.mark.parametrize("name", ["stubborn", "async_stubborn"])
def test_generator_that_does_not_let_itself_be_closed_is_left(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        running = await Run(name, values=1).turns()
        running.stream.end()
        assert await running.task is None
        assert running.runnable.log[0] == "no"

    run(test)
    assert f"{name}() failed while it was closed" in caplog.text


def test_step_of_an_async_generator_has_a_limit_and_the_whole_has_none() -> None:
    async def test() -> None:
        late = Run("sleeping", 60.0, limit_s=0.05)
        error = await late.task
        assert isinstance(error, DeadlineExceeded)
        assert "gave no value within 0.05 s" in str(error)
        assert late.runnable.log == ["closed"]
        patient = Run("sleeping", 0.2, values=1, limit_s=0.3)
        await asyncio.sleep(0.4)  # a reader has all the time in the world
        patient.stream.allow(10, 10)
        assert await patient.task is None

    run(test)


def test_warm_up_takes_one_value() -> None:
    async def test() -> None:
        runnable = Counters()
        await warm_up(runnable, Call(METHODS["sync"], (10,), {}))
        assert runnable.log == [0, "closed"]
        with pytest.raises(StateException, match=r"The warm-up call of sync\(\) failed: TypeError"):
            await warm_up(runnable, Call(METHODS["sync"], ("ten",), {}))

    run(test)

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator

import cloudpickle
import pytest

from adapter import metrics
from adapter.measured import Failures, InProgress, Timed


class _Told(list[float]):
    """What was told, in its order."""


def test_a_block_is_timed_with_an_error_and_without() -> None:
    told = _Told()
    with Timed(told.append):
        assert not told
    with pytest.raises(KeyError), Timed(told.append):
        raise KeyError
    assert len(told) == 2
    assert min(told) >= 0


def test_every_kind_of_function_stays_of_its_kind_and_is_measured_to_its_end() -> None:
    running = _Told()
    around = InProgress(lambda: running.append(1), running.pop)

    @around
    def plain(x: int) -> int:
        return x * len(running)

    @around
    async def awaited(x: int) -> int:
        await asyncio.sleep(0)
        return x * len(running)

    @around
    def generated(x: int) -> Iterator[int]:
        yield x * len(running)

    @around
    async def streamed(x: int) -> AsyncIterator[int]:
        yield x * len(running)

    async def both() -> list[int]:
        return [await awaited(3), *[item async for item in streamed(3)]]

    assert plain(3) == 3
    assert list(generated(3)) == [3]
    assert asyncio.run(both()) == [3, 3]
    assert not running
    assert inspect.iscoroutinefunction(awaited)
    assert inspect.isgeneratorfunction(generated)
    assert inspect.isasyncgenfunction(streamed)
    assert list(inspect.signature(plain).parameters) == ["x"]


def test_a_function_may_call_itself() -> None:
    told = _Told()

    @Timed(told.append)
    def count(n: int) -> int:
        return n and count(n - 1)

    assert count(3) == 0
    assert told == sorted(told)
    assert len(told) == 4


def test_a_stream_that_nobody_reads_to_its_end_is_measured() -> None:
    told, ended = _Told(), _Told()

    @Timed(told.append)
    async def streamed() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append(1)

    async def first() -> int:
        stream = streamed()
        found = await stream.__anext__()
        await stream.aclose()  # type: ignore[attr-defined]  # it is an async generator
        return found

    assert asyncio.run(first()) == 1
    assert len(told) == len(ended) == 1


def test_errors_of_some_kinds_are_counted() -> None:
    counted = _Told()
    some = Failures(lambda: counted.append(1), (KeyError, ValueError))
    for error in (KeyError(), ValueError(), TypeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), some:
            raise error
    assert len(counted) == 2


def test_a_function_that_is_measured_can_be_pickled() -> None:
    seconds = metrics.Summary("measured_pickled_seconds", "Seconds.")

    @seconds.time()
    def work() -> int:
        return 7

    assert cloudpickle.loads(cloudpickle.dumps(work))() == 7
    found = {s.name: s.value for f in metrics.text_string_to_metric_families() for s in f.samples}
    assert found["measured_pickled_seconds_count"] == 1

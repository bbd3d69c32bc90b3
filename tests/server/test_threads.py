from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from typing import Any

import pytest

from adapter.exceptions import ServiceUnavailable
from adapter.server.threads import Threads


def run(main: Any, count: int = 2) -> Any:
    async def with_threads() -> Any:
        threads = Threads(count)
        try:
            return await main(threads)
        finally:
            threads.stop()

    return asyncio.run(with_threads())


def test_results_and_errors_reach_their_own_callers() -> None:
    def work(n: int, *, by: int) -> int:
        if n % 10 == 0:
            raise ValueError(n)
        return n * by

    async def main(threads: Threads) -> list[Any]:
        return await asyncio.gather(*(threads.run(work, n, by=3) for n in range(100)), return_exceptions=True)

    found = run(main, count=8)
    assert [f if n % 10 else f.args[0] for n, f in enumerate(found)] == [n * 3 if n % 10 else n for n in range(100)]


def test_call_that_fails_keeps_nothing_that_it_was_given() -> None:
    class Given:
        pass

    def fail(given: Given) -> None:
        raise ValueError

    async def main(threads: Threads) -> None:
        given = Given()
        left = weakref.ref(given)
        with contextlib.suppress(ValueError):
            await threads.run(fail, given)
        del given
        until = time.monotonic() + 5
        while left() is not None:  # the thread may have it a moment longer
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


def test_function_sees_the_context_variables_of_its_caller() -> None:
    name = contextvars.ContextVar("name", default="nobody")

    async def one(threads: Threads, value: str) -> str:
        name.set(value)
        return str(await threads.run(name.get))

    async def main(threads: Threads) -> list[str]:
        return await asyncio.gather(*(one(threads, value) for value in "abc"))

    assert run(main) == ["a", "b", "c"]


def test_no_more_threads_than_asked_for_and_none_before_they_are_needed() -> None:
    names: set[str] = set()

    def work() -> None:
        names.add(threading.current_thread().name)
        threading.Event().wait(0.01)

    async def main(threads: Threads) -> None:
        await threads.run(work)
        assert len(names) == 1
        await asyncio.gather(*(threads.run(work) for _ in range(20)))
        assert len(names) == 3

    run(main, count=3)


@pytest.mark.parametrize("kind", [StopIteration, SystemExit, KeyboardInterrupt])
def test_what_would_end_the_loop_is_an_error_of_the_function(kind: type[BaseException]) -> None:
    def work() -> None:
        raise kind

    async def main(threads: Threads) -> Any:
        return await asyncio.create_task(threads.run(work))

    with pytest.raises(RuntimeError, match=kind.__name__):
        run(main)


def test_calls_are_refused_while_given_up_ones_hold_every_thread() -> None:
    held = threading.Event()

    async def main(threads: Threads) -> str:
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(threads.run(held.wait, 10), 0.05)
        assert threads.exhausted
        with pytest.raises(ServiceUnavailable, match="All 2 threads"):
            await threads.run(int)
        held.set()
        while threads.exhausted:
            await asyncio.sleep(0.001)
        return str(await threads.run(str, "again"))

    assert run(main) == "again"


def test_function_given_up_before_it_began_is_never_called() -> None:
    held = threading.Event()
    called: list[int] = []

    async def main(threads: Threads) -> None:
        first = asyncio.create_task(threads.run(held.wait, 10))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(threads.run(called.append, 1))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait([second])
        held.set()
        assert await first
        await threads.run(int)
        assert not threads.exhausted

    run(main, count=1)
    assert called == []


def test_giving_up_at_the_moment_of_the_result_leaves_no_thread_held() -> None:
    async def main(threads: Threads) -> None:
        for turns in range(300):
            task = asyncio.create_task(threads.run(int))
            for _ in range(turns % 40):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await asyncio.gather(*(threads.run(int) for _ in range(4)))
        assert threads._held == threads._unfinished == 0

    run(main)


def test_threads_serve_one_loop_after_another() -> None:
    threads = Threads(2)
    for n in range(3):
        assert asyncio.run(threads.run(str, n)) == str(n)
    threads.stop()


def test_arguments_and_results_are_not_kept_when_the_call_is_over() -> None:
    class Large:
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    async def main(threads: Threads) -> int:
        await threads.run(lambda large: large, Large())
        await asyncio.sleep(0.01)
        return Large.alive

    assert run(main) == 0

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from adapter.server.affinity import Affinity, Load
from adapter.server.threads import Threads

ALL = os.sched_getaffinity(0)  # two or more, as wherever the tests run
_LIMIT_S = 20.0
_PRINT = "import os; print(sorted(os.sched_getaffinity(0)))"


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(1.0, 5000, 0.0, 1.05, 0.3), True),
        (Load(1.0, 100, 0.0, 0.2, 0.0), False),  # few calls: nothing to win
        (Load(1.0, 5000, 0.0, 1.6, 0.0), False),  # it uses several CPUs
        (Load(1.0, 5000, 0.2, 0.9, 0.0), False),  # some functions take long
        (Load(0.05, 250, 0.0, 0.05, 0.0), True),
    ],
)
def test_threads_are_put_together_where_they_take_turns(load: Load, expected: bool) -> None:
    assert load.takes_turns is expected


@pytest.mark.parametrize(("ran_s", "waited_s", "expected"), [(1.0, 0.5, False), (0.4, 0.5, True), (0.4, 0.05, False)])
def test_cpu_is_crowded_where_the_process_waits_for_it_and_gets_little(
    ran_s: float, waited_s: float, expected: bool
) -> None:
    assert Load(1.0, 5000, 0.0, ran_s, waited_s).is_crowded is expected


class Busy:
    """Threads that run many short functions, and what decides where."""

    def __init__(self) -> None:
        self.threads = Threads(4)
        self.affinity = Affinity(self.threads)

    async def call(self, until: Callable[[], bool]) -> None:
        """Call short functions, several at a time, until something is so."""
        end = time.monotonic() + _LIMIT_S
        while not until():
            assert time.monotonic() < end
            await asyncio.gather(*(self.threads.run(int) for _ in range(8)))

    def cpus(self) -> list[set[int]]:
        """Those of each thread."""
        return [os.sched_getaffinity(n) for n in (threading.get_native_id(), *self.threads.native_ids())]

    @property
    def together(self) -> bool:
        return self.affinity.cpu >= 0

    async def call_together(self, function: Callable[[], set[int]]) -> int:
        """Call a function while the threads are on one CPU, as it has seen itself; the CPU."""
        end = time.monotonic() + _LIMIT_S
        while True:
            await self.call(lambda: self.together)
            cpu = self.affinity.cpu
            if await self.threads.run(function) == {cpu}:  # else they were let go in between
                return cpu
            assert time.monotonic() < end


def run(main: Callable[[Busy], Any]) -> None:
    async def between() -> None:
        busy = Busy()
        busy.affinity.start()
        try:
            await main(busy)
        finally:
            busy.affinity.stop()
            busy.threads.stop()
        assert os.sched_getaffinity(0) == ALL

    asyncio.run(between())


def test_threads_with_many_short_functions_are_on_one_cpu_and_on_all_when_these_end() -> None:
    async def main(busy: Busy) -> None:
        await busy.call(lambda: busy.together)
        assert len(busy.cpus()) == 5
        assert all(cpus == {busy.affinity.cpu} for cpus in busy.cpus())
        end = time.monotonic() + _LIMIT_S
        while busy.together:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert all(cpus == ALL for cpus in busy.cpus())

    run(main)


def test_process_that_a_function_starts_has_all_cpus() -> None:
    async def main(busy: Busy) -> None:
        printed = b""

        def start() -> set[int]:
            nonlocal printed
            own = os.sched_getaffinity(0)
            printed = subprocess.run([sys.executable, "-I", "-S", "-c", _PRINT], capture_output=True, check=True).stdout
            return own

        await busy.call_together(start)
        assert printed.decode().strip() == str(sorted(ALL))

    run(main)


def test_thread_that_a_function_begins_has_all_cpus_soon_and_one_that_was_put_somewhere_stays_there() -> None:
    async def main(busy: Busy) -> None:
        ended = threading.Event()
        begun: list[int] = []

        def begin() -> set[int]:
            for _ in range(2):
                thread = threading.Thread(target=ended.wait, daemon=True)
                thread.start()
                begun.append(thread.native_id or 0)
            return os.sched_getaffinity(begun[-1])

        cpu = await busy.call_together(begin)
        inherits, placed = begun[-2:]
        own, elsewhere = busy.threads.native_ids()[0], {min(ALL - {cpu})}
        for thread in (placed, own):  # as by an administrator
            os.sched_setaffinity(thread, elsewhere)
        await busy.call(lambda: not busy.together)
        assert os.sched_getaffinity(inherits) == ALL
        assert os.sched_getaffinity(placed) == os.sched_getaffinity(own) == elsewhere
        ended.set()

    run(main)


def test_two_services_on_one_event_loop_leave_all_cpus_behind() -> None:
    async def main(busy: Busy) -> None:
        other = Busy()
        other.affinity.start()
        try:
            await asyncio.gather(*(each.call(lambda: busy.together and other.together) for each in (busy, other)))
            busy.affinity.stop()
            assert other.together
        finally:
            other.affinity.stop()
        assert all(cpus == ALL for cpus in (*busy.cpus(), *other.cpus()))
        other.threads.stop()

    run(main)


def test_functions_that_take_long_keep_all_cpus() -> None:
    def long() -> None:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    async def main(busy: Busy) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            await asyncio.gather(busy.threads.run(long), *(busy.threads.run(int) for _ in range(50)))
            assert not busy.together

    run(main)

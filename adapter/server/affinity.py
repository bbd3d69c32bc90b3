"""Keeping the threads of a worker on one CPU while they take turns anyway.

Python runs one thread of a process at a time. Where plain functions are many and short, most of what they cost is that
the kernel wakes each of their threads on another CPU, where it finds that it has to wait. On one CPU, a service with a
plain function answers half as many requests again. Whatever could use several CPUs must not suffer from that: the
threads are together only while nothing of the kind is seen, and what they start has all CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from adapter.server.threads import Threads

_TOGETHER_S, _LOOK_S = 1.0, 0.05  # in turns: the kernel shows what it would do, and on which CPU there is room now
_GLANCE_S = 0.1
_APART_S, _LONG_APART_S = 0.5, 2.0
_MANY = 300  # calls a second
_SEVERAL = 1.2  # CPUs; threads that take turns on several of them use a little more than one
_MUCH = 0.05  # of a CPU, in functions that take long
_STARVED, _CROWDED = 0.7, 0.2  # the share of the time that the process ran, and that the event loop waited for its CPU
_STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}  # of processes; see sys.audit

_kept: dict[int, set[int]] = {}
"""The threads that are kept on one CPU for any event loop of this process, and the CPUs that they had before."""


@dataclass(frozen=True)
class Load:
    """What went on for some seconds.

    The calls of plain functions, and in seconds how long those that take long used a CPU, how long the process ran on
    any CPU, and how long its event loop waited for one.
    """

    seconds: float
    calls: int
    long_s: float
    ran_s: float
    waited_s: float

    @property
    def wants_several(self) -> bool:
        """Whether there is what several CPUs are for."""
        return self.long_s > _MUCH * self.seconds or self.ran_s > _SEVERAL * self.seconds

    @property
    def takes_turns(self) -> bool:
        """Whether its threads would do better on one CPU."""
        return self.calls > _MANY * self.seconds and not self.wants_several

    @property
    def is_crowded(self) -> bool:
        """Whether others want the CPU that the threads are on."""
        return self.ran_s < _STARVED * self.seconds and self.waited_s > _CROWDED * self.seconds


class Affinity:
    """Decides again and again whether an event loop and its `threads` stay on one CPU; all methods run on the loop."""

    def __init__(self, threads: Threads) -> None:
        self.cpu = -1
        """Where the threads are kept, -1 while they are not."""
        self._threads = threads
        self._timer: asyncio.TimerHandle | None = None
        self._own: dict[int, set[int]] = {}  # the threads that are kept, and the CPUs that they had before
        self._before: set[int] = set()  # all threads of the process at that time

    def start(self) -> None:
        """Begin; where there is one CPU, or a system that cannot keep threads on it, there is nothing to decide."""
        with contextlib.suppress(AttributeError, OSError):
            cpus = os.sched_getaffinity(0)
            os.sched_setaffinity(0, cpus)  # some sandboxes refuse
            if len(cpus) > 1 and _cpu() in cpus:
                self._loop = asyncio.get_running_loop()
                self._check_in(_APART_S)

    def stop(self) -> None:
        """Leave the threads to the kernel."""
        if self._timer is not None:
            self._timer.cancel()
            self._scatter()

    def _check_in(self, seconds: float) -> None:
        self._since = _times()
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        seconds, ran_s, waited_s = (now - since for now, since in zip(_times(), self._since, strict=True))
        load = Load(seconds, *self._threads.done(), ran_s, waited_s)
        if self.cpu < 0:
            if load.takes_turns:
                self._gather()
                self._until = time.monotonic() + _TOGETHER_S
                self._check_in(_GLANCE_S)
            else:
                self._check_in(_LONG_APART_S if load.wants_several else _APART_S)
        elif load.takes_turns and not load.is_crowded and time.monotonic() < self._until:
            self._check_in(_GLANCE_S)
        else:
            self._scatter()
            self._check_in(_LONG_APART_S if load.wants_several else _LOOK_S)

    def _gather(self) -> None:
        """Put the threads on the CPU that this one is on."""
        _let_go_before_starts()
        self.cpu = _cpu()
        self._before = _threads_of_this_process()
        for thread in (threading.get_native_id(), *self._threads.native_ids()):
            with contextlib.suppress(OSError):  # it has ended
                cpus = _kept.get(thread) or os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {self.cpu})
                _kept[thread] = self._own[thread] = cpus

    def _scatter(self) -> None:
        """Give the threads their CPUs back, and those as well that have been begun beside them and inherited theirs."""
        everywhere = set().union(*self._own.values())
        for thread in self._own.keys() | (_threads_of_this_process() - self._before):
            with contextlib.suppress(OSError):
                if os.sched_getaffinity(thread) == {self.cpu}:  # else somebody else has said where it runs
                    os.sched_setaffinity(thread, self._own.get(thread, everywhere))
            _kept.pop(thread, None)
        self._own.clear()
        self.cpu = -1


def _cpu() -> int:
    """The CPU that this thread is on, -1 where the system does not tell."""
    return int(ctypes.CDLL(None).sched_getcpu())


def _times() -> tuple[float, float, float]:
    """Now, how long this process ran on any CPU, and how long this thread waited for one, in seconds."""
    try:
        waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # not every kernel tells
        waited_ns = 0
    return time.monotonic(), time.process_time(), waited_ns / 1e9


def _threads_of_this_process() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@functools.cache  # there is no way to take a hook out again
def _let_go_before_starts() -> None:
    """See to it that a process that a kept thread starts does not inherit its one CPU."""
    sys.addaudithook(_let_go)


def _let_go(event: str, arguments: tuple[object, ...]) -> None:
    if event in _STARTS and _kept and (cpus := _kept.pop(threading.get_native_id(), None)) is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)

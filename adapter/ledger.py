"""Numbers in memory that a worker shares with its stub: what user code counts there is not lost when it is killed.

A ledger is a memfd: two words (the bytes in use, and whether anything has changed since it was read), then one record
after the other: the length of a JSON text, the text, and the numbers that it describes. Both ends import this.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SIZE = 64 << 20  # of addresses; memory is taken for what is written only
_WORD = 8
_USED, _CHANGED = 0, 1  # the words at the front
_FIRST = 2 * _WORD


def create() -> int:
    """Make the memory of a ledger; the file descriptor of it."""
    fd = os.memfd_create("adapter-metrics")
    os.ftruncate(fd, _SIZE)
    return fd


class Ledger:
    """The end that writes; `wake` is called when a reader may have gone to sleep."""

    def __init__(self, fd: int, wake: Callable[[], None]) -> None:
        self._memory = mmap.mmap(fd, _SIZE)
        self._wake = wake
        self._map()
        self._lock = threading.Lock()
        self._words[_USED] = _FIRST
        # a process that user code forks would write over the records of this one
        os.register_at_fork(after_in_child=self._leave)

    def _map(self) -> None:
        view = memoryview(self._memory)
        self._words = view.cast("Q")
        self._numbers: memoryview[float] = view.cast("d")

    def _leave(self) -> None:
        self._lock = threading.Lock()
        self._memory = mmap.mmap(-1, _SIZE)
        self._wake = lambda: None
        self._map()
        self._words[_USED] = _FIRST

    def record(self, about: Mapping[str, Any], numbers: int, first: float = 0.0) -> int | None:
        """Write what so many numbers are; where the first of them lies, None where the ledger is full.

        `first` is the value of the first; the others are 0.
        """
        text = json.dumps({**about, "numbers": numbers}).encode()
        padded = -(-len(text) // _WORD) * _WORD
        with self._lock:
            start = self._words[_USED]
            end = start + _WORD + padded + numbers * _WORD
            if end > _SIZE:
                return None
            self._words[start // _WORD] = len(text)
            self._memory[start + _WORD : start + _WORD + len(text)] = text
            place = (start + _WORD + padded) // _WORD
            self._numbers[place] = first
            self._words[_USED] = end
            self._tell()
        return place

    def add(self, *amounts: tuple[int, float]) -> None:
        """Add to numbers, each given by its place."""
        with self._lock:
            for place, amount in amounts:
                self._numbers[place] += amount
            self._tell()

    def put(self, place: int, value: float) -> None:
        """Set a number."""
        with self._lock:
            self._numbers[place] = value
            self._tell()

    def _tell(self) -> None:
        if not self._words[_CHANGED]:
            self._words[_CHANGED] = 1
            with contextlib.suppress(OSError):  # user code may close what it finds open
                self._wake()


@dataclass(frozen=True)
class Record:
    """What some numbers of a ledger are, and which of it they are."""

    about: Mapping[str, Any]
    place: int
    count: int


class Reader:
    """The end that reads."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _SIZE)
        view = memoryview(self._memory)
        self._words = view.cast("Q")
        self._numbers: memoryview[float] = view.cast("d")
        self._read = _FIRST
        self.records: list[Record] = []

    def changed(self) -> bool:
        """Tell whether anything was written since this was asked last."""
        # cleared before anything is read: what is written meanwhile is read now or told again
        found, self._words[_CHANGED] = bool(self._words[_CHANGED]), 0
        return found

    def read(self) -> Iterator[tuple[Record, list[float]]]:
        """Every record and its numbers."""
        used = self._words[_USED]
        while self._read < used:
            length = self._words[self._read // _WORD]
            start = self._read + _WORD
            about = json.loads(self._memory[start : start + length])
            place = (start + -(-length // _WORD) * _WORD) // _WORD
            self.records.append(Record(about, place, about["numbers"]))
            self._read = (place + about["numbers"]) * _WORD
        for record in self.records:
            yield record, list(self._numbers[record.place : record.place + record.count])

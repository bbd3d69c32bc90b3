"""From threads to an event loop: many items, one wake-up."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Hand items from any thread to a function on an event loop.

    Waking a loop from a thread is a system call that costs more than most items do; what is put in before the loop has
    woken up shares one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[T], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._items: collections.deque[T] = collections.deque()
        self._woken = False

    def put(self, item: T) -> None:
        """Hand over an item; RuntimeError where the loop is closed."""
        self._items.append(item)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._empty)
            except RuntimeError:
                self._woken = False  # so that the next one learns of it, too
                raise

    def _empty(self) -> None:
        self._woken = False  # before the items are taken: one that comes now finds it so, and wakes the loop again
        items = self._items
        while items:
            self._receive(items.popleft())

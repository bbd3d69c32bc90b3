from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from adapter.mailbox import Mailbox


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that counts how often a thread wakes it."""

    wakes = 0

    def call_soon_threadsafe(self, callback: Any, *args: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
        self.wakes += 1
        return super().call_soon_threadsafe(callback, *args, **options)


def test_items_that_come_while_the_loop_is_busy_share_one_wake_up() -> None:
    loop = CountingLoop()
    found: list[int] = []
    mailbox = Mailbox(loop, found.append)

    def put_all() -> None:
        for n in range(100):
            mailbox.put(n)

    async def main() -> None:
        thread = threading.Thread(target=put_all)
        thread.start()
        thread.join()  # the loop is busy
        assert found == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert found == list(range(100))
        assert loop.wakes == 1
        mailbox.put(100)  # and it wakes again for what comes later
        await asyncio.sleep(0)
        assert found[-1] == 100
        assert loop.wakes == 2

    loop.run_until_complete(main())
    loop.close()


def test_nothing_is_lost_between_threads_and_the_loop() -> None:
    found: list[tuple[int, int]] = []

    async def main() -> None:
        mailbox = Mailbox(asyncio.get_running_loop(), found.append)

        def work(thread: int) -> None:
            for n in range(2000):
                mailbox.put((thread, n))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    for thread in range(4):
        assert [n for t, n in found if t == thread] == list(range(2000))


def test_closed_loop_takes_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    mailbox: Mailbox[int] = Mailbox(loop, print)
    for n in range(2):
        with pytest.raises(RuntimeError):
            mailbox.put(n)

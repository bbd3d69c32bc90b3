from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from adapter import ledger
from adapter.ledger import Ledger, Reader


@pytest.fixture
def fd() -> Iterator[int]:
    made = ledger.create()
    yield made
    os.close(made)


def _numbers(reader: Reader) -> dict[str, list[float]]:
    return {record.about["name"]: numbers for record, numbers in reader.read()}


def test_what_is_written_is_read(fd: int) -> None:
    woken: list[int] = []
    book = Ledger(fd, lambda: woken.append(1))
    reader = Reader(fd)
    assert not reader.changed()
    one = book.record({"name": "é" * 3}, 1)
    three = book.record({"name": "three"}, 3)
    assert one is not None
    assert three is not None
    book.put(one, 2.5)
    book.add((three, 1), (three + 2, -1e9))
    book.add((three, 1))
    assert reader.changed()
    assert _numbers(reader) == {"ééé": [2.5], "three": [2, 0, -1e9]}
    assert not reader.changed()
    assert len(woken) == 1  # once until somebody reads
    book.put(one, 3)
    assert reader.changed()
    assert len(woken) == 2


def test_a_full_ledger_takes_no_more(fd: int) -> None:
    book = Ledger(fd, lambda: None)
    reader = Reader(fd)
    assert book.record({"name": "first"}, 1) is not None
    while book.record({"name": "x" * (1 << 20)}, 1 << 17) is not None:
        pass
    assert book.record({"name": "x"}, 1 << 23) is None
    assert _numbers(reader)["first"] == [0]


def test_threads_lose_nothing(fd: int) -> None:
    book = Ledger(fd, lambda: None)
    reader = Reader(fd)
    place = book.record({"name": "n"}, 1)
    assert place is not None

    def count() -> None:
        for _ in range(5000):
            book.add((place, 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _numbers(reader) == {"n": [20000]}


_KILLED = """
import os, signal, sys
from adapter.ledger import Ledger
book = Ledger(int(sys.argv[1]), lambda: None)
place = book.record({"name": "n"}, 1)
if os.fork() == 0:
    book.add((place, 100))
    book.record({"name": "forked"}, 1)
    os._exit(0)
os.wait()
for _ in range(7):
    book.add((place, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_wrote_is_there_and_what_it_forked_wrote_is_not(fd: int) -> None:
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(fd)], pass_fds=[fd], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert _numbers(Reader(fd)) == {"n": [7]}

"""What the launcher tells the fronts, and that none of them misses it."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.triton.notice import Board, Notice, Notices, Number

texts = st.dictionaries(st.text(), st.text(), max_size=3)
numbers = st.builds(
    Number,
    st.text(),
    st.text(),
    st.lists(st.tuples(st.text(), st.text()), max_size=2).map(tuple),
    st.floats(allow_nan=False),
    st.sampled_from(["counter", "gauge"]),
)


@given(
    st.builds(
        Notice,
        st.none() | st.text(),
        st.none() | st.text(),
        texts,
        texts,
        st.lists(numbers, max_size=3).map(tuple),
    )
)
def test_notice_is_the_same_after_it_was_written_and_read(notice: Notice) -> None:
    assert Notice.from_json(notice.to_json()) == notice


def rung(bell: int) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_every_front_is_rung_when_something_changes_for_it(tmp_path: Path) -> None:
    board = Board(tmp_path)
    bells = [board.bell(), board.bell()]
    board.post(url="127.0.0.1:1")
    assert [rung(bell) for bell in bells] == [True, True]
    for bell in bells:
        os.eventfd_read(bell)
    board.post(url="127.0.0.1:1")
    board.count("deaths_total", "How many died.", entry="e")
    board.post()
    assert [rung(bell) for bell in bells] == [False, False]  # numbers are read when the page is asked for
    assert Notices(board.path, bells[0]).read().numbers == (
        Number("deaths_total", "How many died.", (("entry", "e"),), 1.0),
    )
    board.silence(bells[0])
    board.post(refused={"e": "It died."})
    assert rung(bells[1])
    board.silence(bells[1])


def test_notice_that_could_not_be_written_is_put_up_by_the_next_post(tmp_path: Path) -> None:
    board = Board(tmp_path)
    bell = board.bell()
    in_the_way = board.path.with_suffix(".part")
    in_the_way.mkdir()  # as a disk that is full
    with pytest.raises(OSError, match="directory"):
        board.post(url="127.0.0.1:1")
    assert not rung(bell)
    in_the_way.rmdir()
    board.post(url="127.0.0.1:1")
    assert rung(bell)
    assert Notices(board.path, bell).read().url == "127.0.0.1:1"
    board.silence(bell)


def test_front_hears_the_newest_notice_however_many_there_were(tmp_path: Path) -> None:
    board = Board(tmp_path)
    bell = board.bell()
    heard: list[Notice] = []

    async def main() -> None:
        notices = Notices(board.path, bell)
        notices.follow(heard.append)
        for n in range(1000):
            board.post(url=f"127.0.0.1:{n}")
        await asyncio.sleep(0.05)
        notices.leave()
        board.post(url="nobody hears this")
        await asyncio.sleep(0.05)

    asyncio.run(main())
    assert heard[0] == Notice()
    assert heard[-1].url == "127.0.0.1:999"
    board.silence(bell)


def test_front_whose_launcher_has_gone_reads_an_empty_notice(tmp_path: Path) -> None:
    assert Notices(tmp_path / "gone", -1).read() == Notice()

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.io import SSE


async def cut(text: str, size: int) -> AsyncIterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def events(text: str, size: int = 1000) -> list[SSE]:
    async def collect() -> list[SSE]:
        return [event async for event in SSE.from_iterator(cut(text, size))]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (SSE("hello"), "data: hello\n\n"),
        (SSE(""), "data: \n\n"),
        (SSE("a\nb\r\nc\rd"), "data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (SSE("x", event="token", id="7", retry=100), "event: token\ndata: x\nid: 7\nretry: 100\n\n"),
    ],
)
def test_marshal_writes_one_event(event: SSE, expected: str) -> None:
    assert event.marshal() == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_from_iterator_reads_events_wherever_they_are_cut(line_end: str, size: int) -> None:
    several = [SSE("one"), SSE("two\nlines", event="my event", id="a1", retry=123), SSE("three")]
    text = "".join(event.marshal() for event in several).replace("\n", line_end)
    assert events(text, size) == several


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (": a comment\ndata:no space\n\n", [SSE("no space")]),
        ("data\n\n", [SSE("")]),
        ("event: ping\n\ndata: x\n\n", [SSE("x")]),
        ("retry: soon\ndata: x\n\n", [SSE("x")]),
        ("data: unfinished\n", []),
        ("", []),
    ],
)
def test_from_iterator_follows_the_standard(text: str, expected: list[SSE]) -> None:
    assert events(text) == expected


@given(st.text(), st.integers(1, 9))
def test_from_iterator_gives_back_what_marshal_wrote(data: str, size: int) -> None:
    lines = data.replace("\r\n", "\n").replace("\r", "\n")
    assert events(SSE(data, id="1").marshal(), size) == [SSE(lines, id="1")]


@pytest.mark.parametrize("field", ["event", "id"])
def test_event_is_refused_when_a_field_has_two_lines(field: str) -> None:
    with pytest.raises(ValueError, match=f"The {field} of a server-sent event is one line"):
        SSE("x", **{field: "a\nb"})  # type: ignore[arg-type]  # mypy cannot tell which field it is

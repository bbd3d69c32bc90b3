"""Server-sent events, the items of a stream of the type text/event-stream."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")
_COMPLETE_LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")  # a \r at the very end may be the first half of \r\n


@dataclass(frozen=True)
class SSE:
    r"""One server-sent event; `retry` is in milliseconds.

    >>> SSE("first\nsecond", event="token").marshal()
    'event: token\ndata: first\ndata: second\n\n'

    The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    data: str
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        # a ValueError, not an InvalidArgument: made while a request is served, that one would blame the client
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and _LINE_END.search(value):
                raise ValueError(
                    f"The {name} of a server-sent event is one line, not {value!r}; only data has several."
                )

    def marshal(self) -> str:
        """The event as it stands in the stream, with the blank line that ends it."""
        lines = [] if self.event is None else [f"event: {self.event}"]
        lines += [f"data: {line}" for line in _LINE_END.split(self.data)]
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        return "\n".join([*lines, "", ""])

    @classmethod
    async def from_iterator(cls, chunks: AsyncIterable[str]) -> AsyncIterator[SSE]:
        """Read the events from the text of a stream, wherever its chunks were cut.

        An event without data, or without the blank line at its end, is dropped, as browsers do.
        """
        fields: dict[str, str] = {}
        data: list[str] = []
        async for line in _lines(chunks):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif line:
                fields[name] = value.removeprefix(" ")
            else:
                if data:
                    yield cls._of("\n".join(data), fields)
                fields, data = {}, []

    @classmethod
    def _of(cls, data: str, fields: dict[str, str]) -> SSE:
        retry = fields.get("retry", "")
        return cls(data, fields.get("event"), fields.get("id"), int(retry) if retry.isdecimal() else None)


async def _lines(chunks: AsyncIterable[str]) -> AsyncIterator[str]:
    rest = ""
    async for chunk in chunks:
        *lines, rest = _COMPLETE_LINE_END.split(rest + chunk)
        for line in lines:
            yield line
    if rest.endswith("\r"):
        yield rest[:-1]

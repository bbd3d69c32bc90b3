"""Stream: the pieces of an answer, sent as they are made."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncIterable, Iterator
from typing import Any

from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import InternalServerError
from adapter.io.json import dumps
from adapter.io.sse import SSE
from adapter.io.text import Text


class Stream(Text):
    """Send what an iterator gives, piece by piece: text and bytes as they are, an `adapter.io.SSE` as an event.

    With `values` every other piece is JSON in an event of its own. A class-based service makes it of a method that
    is annotated as a generator.
    """

    def __init__(self, content_type: str = "text/event-stream", values: bool = False) -> None:
        super().__init__()
        self.content_type = content_type  # type: ignore[assignment]  # any, where Text has two
        self.mime_type = content_type
        self.values = values

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if not isinstance(obj, (AsyncIterable, Iterator)):
            raise InternalServerError(
                f"The result is a {type(obj).__qualname__} instead of a generator or an iterator: {reprlib.repr(obj)}."
            )
        return await super().to_http_response(obj, ctx)

    def _encoded(self, piece: Any) -> bytes:
        if isinstance(piece, (bytes, bytearray)):
            return bytes(piece)
        if isinstance(piece, SSE):
            return piece.marshal().encode()
        if self.values:
            return b"data: " + dumps(piece) + b"\n\n"
        return super()._encoded(piece)

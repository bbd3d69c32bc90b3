"""Text: plain text, and streams of it."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Literal

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import BadInput, InternalServerError, InvalidArgument
from adapter.io.base import IODescriptor
from adapter.io.sse import SSE

if TYPE_CHECKING:
    from typing_extensions import Self

_CONTENT_TYPES = ("text/plain", "text/event-stream")
_END = object()


class Text(IODescriptor[str]):
    """Read and send text in UTF-8.

    A function that returns a sync or async iterator of str (a generator) has it streamed, piece by piece; the first
    piece is awaited before the headers go, so that an error up to there is an error response, and headers that the
    function sets on `ctx.response` up to there are sent. With `content_type="text/event-stream"` an `adapter.io.SSE`
    may stand wherever a str may.
    """

    accepts = (
        "text/plain",
        "text/*",
        "application/text",  # seed 003
        "application/json",
        "application/*+json",
        "application/xml",
        "application/*+xml",
        "application/yaml",
        "application/x-yaml",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",  # what curl says when it is told nothing
    )

    def __init__(self, content_type: Literal["text/plain", "text/event-stream"] = "text/plain") -> None:
        if content_type not in _CONTENT_TYPES:
            raise InvalidArgument(f"The content_type of Text is {' or '.join(_CONTENT_TYPES)}, not {content_type!r}.")
        self.content_type = content_type
        self.mime_type = content_type

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor whose documentation shows `sample`, a str."""
        if not isinstance(sample, str):
            raise BadInput(f"Text.from_sample takes a str, not {reprlib.repr(sample)}.")
        descriptor = super().from_sample(sample, **kwargs)
        descriptor.example = sample
        return descriptor

    async def from_http_request(self, request: Request) -> str:
        body = await self.body_of(request)
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"The body is not text in UTF-8: {error.reason} at byte {error.start} "
                f"({body[error.start : error.start + 1]!r}); encode it in UTF-8."
            ) from error

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if isinstance(obj, (str, SSE)):
            return self.respond(self._encoded(obj), ctx)
        if isinstance(obj, AsyncIterable):
            pieces = aiter(obj)
        elif isinstance(obj, Iterator):
            pieces = iterate_in_threadpool(obj)
        else:
            raise InternalServerError(
                f"The API function returned a {type(obj).__qualname__} instead of a str or an iterator of str: "
                f"{reprlib.repr(obj)}."
            )
        first = await anext(pieces, _END)
        return self.stream(self._chunks(b"" if first is _END else self._encoded(first), pieces), ctx)

    def python_type(self) -> type:
        return str

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def _encoded(self, piece: Any) -> bytes:
        if isinstance(piece, SSE) and self.content_type == "text/event-stream":
            piece = piece.marshal()
        if not isinstance(piece, str):
            hint = "; Text(content_type='text/event-stream') sends events" if isinstance(piece, SSE) else ""
            raise InternalServerError(
                f"The API function gave a {type(piece).__qualname__} instead of a str: {reprlib.repr(piece)}{hint}."
            )
        try:
            return piece.encode()
        except UnicodeEncodeError as error:
            raise InternalServerError(f"The text is not valid Unicode: {error}.") from error

    async def _chunks(self, first: bytes, pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        try:
            yield first
            async for piece in pieces:
                yield self._encoded(piece)
        finally:
            # the client may have gone away: end the user's generator now, and not when it is collected
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

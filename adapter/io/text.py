"""Text: plain text, and streams of it."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import BadInput, InternalServerError, InvalidArgument
from adapter.io.base import IODescriptor, one_at_a_time, text_of
from adapter.io.sse import SSE

if TYPE_CHECKING:
    from typing_extensions import Self

_CONTENT_TYPES = ("text/plain", "text/event-stream")
_END = object()


class Text(IODescriptor[str]):
    """Read text in the charset that its content type names, UTF-8 without one, and send it in UTF-8.

    A function that returns a sync or async iterator of str (a generator) has it streamed, piece by piece; the first
    piece is awaited before the headers go, so that an error up to there is an error response, and headers that the
    function sets on `ctx.response` up to there are sent. An error after that breaks the connection off; a client that
    goes away closes the generator. With `content_type="text/event-stream"` an `adapter.io.SSE` may stand wherever a
    str may.
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
        return text_of(await self.body_of(request), request)

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if isinstance(obj, (str, SSE)):
            return self.respond(self._encoded(obj), ctx)
        on_thread = one_at_a_time()
        if isinstance(obj, AsyncIterable):
            pieces = aiter(obj)
        elif isinstance(obj, Iterator):
            pieces = _pieces(obj, on_thread)
        else:
            raise InternalServerError(
                f"The result is a {type(obj).__qualname__} instead of a str or an iterator of str: {reprlib.repr(obj)}."
            )

        async def close() -> None:
            if isinstance(obj, AsyncGenerator):
                await obj.aclose()
            elif isinstance(obj, Generator):
                await on_thread(obj.close)

        try:
            first = await anext(pieces, _END)
            start = b"" if first is _END else self._encoded(first)
            return self.stream(self._chunks(start, pieces), ctx, close=close)
        except BaseException:
            await close()
            raise

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
                f"The result is a {type(piece).__qualname__} instead of a str: {reprlib.repr(piece)}{hint}."
            )
        try:
            return piece.encode()
        except UnicodeEncodeError as error:
            raise InternalServerError(f"The text is not valid Unicode: {error}.") from error

    async def _chunks(self, first: bytes, pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield self._encoded(piece)


async def _pieces(iterator: Iterator[Any], on_thread: Callable[..., Awaitable[Any]]) -> AsyncIterator[Any]:
    while (piece := await on_thread(next, iterator, _END)) is not _END:
        yield piece

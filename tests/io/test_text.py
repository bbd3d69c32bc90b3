from __future__ import annotations

import asyncio
import encodings.aliases
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnsupportedMediaType
from adapter.io import SSE, Text
from tests.io.wire import read, request, send


def pieces() -> Iterator[str]:
    yield "ad"
    yield "apter"


async def async_pieces() -> AsyncIterator[str]:
    yield "ad"
    yield "apter"


class Countdown:
    """An async iterable that is no generator."""

    def __init__(self) -> None:
        self.left = 2

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> str:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return str(self.left)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/plain; charset=utf-8",
        "text/markdown",
        "application/text",
        "application/json",
        "application/ld+json",
        "application/x-www-form-urlencoded",
    ],
)
def test_text_is_read_when_the_content_type_is_some_text(content_type: str | None) -> None:
    assert read(Text(), "Grüße, 世界", content_type) == "Grüße, 世界"


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x", "application/octet-stream"])
def test_content_type_is_refused_when_it_is_no_text(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="send it with the header 'content-type: text/plain'"):
        read(Text(), "x", content_type)


def test_empty_body_is_an_empty_text() -> None:
    assert read(Text(), "", None) == ""


def test_body_is_refused_when_it_is_not_utf_8() -> None:
    with pytest.raises(BadInput, match=r"not text in UTF-8: invalid .* at byte 2 \(b'\\xfc'\); encode it in UTF-8"):
        read(Text(), "Grüße".encode("latin-1"), "text/plain")


def test_str_is_sent_with_its_length() -> None:
    sent = send(Text(), "Grüße")
    assert sent.body == "Grüße".encode()
    assert sent.all("content-length") == ["7"]
    assert sent.all("content-type") == ["text/plain; charset=utf-8"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (pieces, [b"ad", b"apter"]),
        (async_pieces, [b"ad", b"apter"]),
        (Countdown, [b"1", b"0"]),
        (lambda: iter(["x"]), [b"x"]),
        (lambda: iter([]), []),
    ],
)
def test_iterator_is_streamed(make: Callable[[], Any], expected: list[bytes]) -> None:
    sent = send(Text(), make())
    assert sent.chunks == expected
    assert sent.all("content-length") == []
    assert sent.all("content-type") == ["text/plain; charset=utf-8"]


def test_headers_set_before_the_first_piece_are_sent() -> None:
    ctx = Context({}, request())

    async def late() -> AsyncIterator[str]:
        ctx.response.status_code = 203
        ctx.response.headers["x-model"] = "llm"
        yield "token"

    sent = send(Text(), late(), ctx)
    assert (sent.status, sent.all("x-model"), sent.body) == (203, ["llm"], b"token")


def test_events_are_streamed_as_server_sent_events() -> None:
    async def events() -> AsyncIterator[SSE | str]:
        yield SSE("a", event="token")
        yield SSE("b").marshal()

    sent = send(Text(content_type="text/event-stream"), events())
    assert sent.body == b"event: token\ndata: a\n\ndata: b\n\n"
    assert sent.all("content-type") == ["text/event-stream; charset=utf-8"]


@pytest.mark.parametrize("result", [None, 3, b"bytes", ["a", "b"], {"a": 1}, iter([1]), SSE("x"), iter([SSE("x")])])
def test_result_is_an_error_of_the_service_when_it_is_no_text(result: Any) -> None:
    with pytest.raises(InternalServerError, match=r"The result is a .* instead of a str"):
        asyncio.run(Text().to_http_response(result))


def test_result_is_an_error_of_the_service_when_it_is_no_unicode() -> None:
    with pytest.raises(InternalServerError, match="not valid Unicode"):
        send(Text(), "\ud800")


def test_error_of_a_generator_comes_before_any_byte_when_the_first_piece_raises() -> None:
    def broken() -> Iterator[str]:
        raise KeyError("no model")
        yield ""

    with pytest.raises(KeyError, match="no model"):
        asyncio.run(Text().to_http_response(broken()))


@pytest.mark.parametrize("waits_for", ["the client", "the generator"])
@pytest.mark.parametrize("sync", [False, True])
def test_generator_is_closed_when_the_client_goes_away(waits_for: str, sync: bool) -> None:
    events: list[str] = []

    async def tokens() -> AsyncIterator[str]:
        try:
            yield "first"
            yield "second"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("closed")

    def sync_tokens() -> Iterator[str]:
        try:
            while True:
                yield "token"
        finally:
            events.append("closed")

    async def leave_early() -> None:
        response = await Text().to_http_response(sync_tokens() if sync else tokens())
        left = asyncio.Event()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        async def take(message: Any) -> None:
            events.append(message["type"])
            if len(events) == (1 if waits_for == "the client" else 3):
                left.set()
                if waits_for == "the client":
                    await asyncio.Event().wait()

        await response({"type": "http"}, receive, take)
        assert events[-1] == "closed"

    asyncio.run(asyncio.wait_for(leave_early(), 10))
    assert events.count("closed") == 1


@pytest.mark.parametrize("make", [pieces, async_pieces, lambda: iter([3])])
def test_generator_is_closed_when_its_stream_is_not_sent(make: Callable[[], Any]) -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 204
    source = make()
    try:
        sent = send(Text(), source, ctx)
        assert (sent.status, sent.body) == (204, b"")
    except InternalServerError:
        pass
    assert next(source, None) is None if isinstance(source, Iterator) else source.ag_frame is None


def test_error_after_the_first_piece_leaves_the_response() -> None:
    def broken() -> Iterator[str]:
        yield "first"
        raise KeyError("no model")

    with pytest.raises(KeyError, match="no model"):
        send(Text(), broken())


@pytest.mark.parametrize(
    ("charset", "text"),
    [("latin-1", "Grüße"), ('"UTF-16"', "世界"), ("utf-8-sig", "Grüße"), ("cp1252", "5 €"), ("shift_jis", "世界")],
)
def test_text_is_read_in_the_charset_of_its_content_type(charset: str, text: str) -> None:
    body = text.encode(charset.strip('"'))
    assert read(Text(), body, f"text/plain; charset={charset}") == text


@pytest.mark.parametrize("charset", ["klingon", "base64", "idna", "punycode", "unicode-escape", "x" * 200, "a\0b", "."])
def test_charset_that_is_none_is_refused(charset: str) -> None:
    with pytest.raises(BadInput, match=r"The charset '.*' of the body is not known; encode it in UTF-8"):
        read(Text(), b"abc", f"text/plain; charset={charset}")


@pytest.mark.parametrize(("charset", "body"), [("ascii", b"\xff"), ("utf-16", b"a"), ("shift_jis", b"\x81")])
def test_body_is_refused_when_it_is_not_in_its_charset(charset: str, body: bytes) -> None:
    with pytest.raises(BadInput, match=f"not text in {charset.upper()}: .* encode it in UTF-8"):
        read(Text(), body, f"text/plain; charset={charset}")


@settings(deadline=None)
@given(body=st.binary(max_size=50), charset=st.sampled_from([*set(encodings.aliases.aliases.values())]) | st.text())
def test_any_bytes_are_text_or_the_fault_of_their_sender(body: bytes, charset: str) -> None:
    header = f"text/plain; charset={charset}".encode().decode("latin-1")
    scope = {"type": "http", "headers": [(b"content-type", header.encode("latin-1"))]}

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    try:
        assert isinstance(asyncio.run(Text().from_http_request(Request(scope, receive))), str)
    except AdapterError as error:
        assert 400 <= error.error_code < 500  # noqa: PT017  # either is right


def test_from_sample_documents_the_text() -> None:
    descriptor = Text.from_sample("Triton is great")
    assert descriptor.schema() == {"type": "string", "example": "Triton is great"}
    assert (descriptor.sample, descriptor.python_type()) == ("Triton is great", str)
    with pytest.raises(BadInput, match="takes a str, not 3"):
        Text.from_sample(3)


def test_content_type_is_refused_when_text_does_not_send_it() -> None:
    with pytest.raises(InvalidArgument, match="text/plain or text/event-stream, not 'text/html'"):
        Text(content_type="text/html")  # type: ignore[arg-type]  # that is the point

"""Calls of a server that is the Python package of gRPC itself, and of peers that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.triton import rpc
from adapter.triton.rpc import Channel, Code, RpcError

ECHO = "/test.Service/Echo"


class Server:
    """A gRPC server on 127.0.0.1 whose methods are those of this class."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.reached = asyncio.Event()
        self.remaining: float | None = None
        self.written = 0
        self.over = asyncio.Event()

    async def echo(self, message: bytes, context: Any) -> bytes:
        return message

    async def fail(self, message: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message.decode())
        raise AssertionError

    async def crash(self, message: bytes, context: Any) -> bytes:
        raise ValueError("crashed")

    async def wait(self, message: bytes, context: Any) -> bytes:
        self.remaining = context.time_remaining()
        self.reached.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def metadata(self, message: bytes, context: Any) -> bytes:
        found: str = dict(context.invocation_metadata())[message.decode()]
        return found.encode()

    async def chat(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message with as many of its first byte as its number says, of the size that it says."""
        context.add_done_callback(lambda context: self.over.set())
        async for message in messages:
            count, size = (int(part) for part in message.split())
            for i in range(count):
                self.written = i + 1
                yield bytes([i % 256]) * size
            if not count:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no more")

    async def grow(self, message: bytes, context: Any) -> bytes:
        return b"x" * int(message)


@contextlib.asynccontextmanager
async def serving(server: Server, *options: tuple[str, int], port: int = 0) -> AsyncIterator[tuple[Any, int]]:
    methods = {
        name.capitalize(): grpc.unary_unary_rpc_method_handler(getattr(server, name))
        for name in ("echo", "fail", "crash", "wait", "metadata", "grow")
    }
    methods["Chat"] = grpc.stream_stream_rpc_method_handler(server.chat)
    made = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0), *options])
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
    port = made.add_insecure_port(f"127.0.0.1:{port}")
    await made.start()
    try:
        yield made, port
    finally:
        await made.stop(0)


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def policy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fronts run on uvloop, whose transports differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies go with Python 3.16
        if request.param == "uvloop":
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        yield
        asyncio.set_event_loop_policy(None)


def with_server(
    test: Callable[[Channel, Server], Awaitable[None]], *options: tuple[str, int], **channel_options: int
) -> None:
    async def main() -> None:
        server = Server()
        async with serving(server, *options) as (_, port):
            channel = Channel(f"127.0.0.1:{port}", **channel_options)  # type: ignore[arg-type]  # ssl is another option
            try:
                await asyncio.wait_for(test(channel, server), 30)
            finally:
                await channel.close()

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_535, 1 << 20, 40 << 20])
def test_message_of_any_size_comes_back_whole(size: int) -> None:
    message = os.urandom(size)

    async def test(channel: Channel, server: Server) -> None:
        assert await channel.call(ECHO, [message[:7], message[7:]]) == message

    with_server(test)


def test_many_calls_at_once_each_get_their_own_answer() -> None:
    async def test(channel: Channel, server: Server) -> None:
        messages = [os.urandom(n * 997 % 300_000) for n in range(200)]
        assert await asyncio.gather(*(channel.call(ECHO, [m]) for m in messages)) == messages

    with_server(test)


def test_calls_beyond_what_the_server_takes_at_a_time_wait_for_their_turn() -> None:
    async def test(channel: Channel, server: Server) -> None:
        messages = [str(n).encode() for n in range(50)]
        given_up = asyncio.create_task(channel.call("/test.Service/Wait", []))
        await server.reached.wait()
        others = [asyncio.create_task(channel.call(ECHO, [m])) for m in messages]
        await asyncio.sleep(0.05)
        others.pop().cancel()  # one of those that wait
        assert await asyncio.gather(*others) == messages[:-1]
        given_up.cancel()
        await asyncio.wait([given_up])

    with_server(test, ("grpc.max_concurrent_streams", 2))


@pytest.mark.parametrize("text", ["", "plain", "ümlaut % and\nline", "x" * 5000, "日本"])
def test_error_carries_the_servers_status_and_text(text: str) -> None:
    async def test(channel: Channel, server: Server) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.call("/test.Service/Fail", [text.encode()])
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.details == text
        assert await channel.call(ECHO, [b"after"]) == b"after"

    with_server(test)


@pytest.mark.parametrize(
    ("path", "code"), [("/test.Service/None", Code.UNIMPLEMENTED), ("/test.Service/Crash", Code.UNKNOWN)]
)
def test_other_failures_have_their_codes(path: str, code: Code) -> None:
    async def test(channel: Channel, server: Server) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.call(path, [b"x"])
        assert caught.value.code is code

    with_server(test)


def test_cancelled_call_is_cancelled_at_the_server() -> None:
    async def test(channel: Channel, server: Server) -> None:
        call = asyncio.create_task(channel.call("/test.Service/Wait", []))
        await server.reached.wait()
        call.cancel()
        await asyncio.wait_for(server.cancelled.wait(), 5)
        assert await channel.call(ECHO, [b"after"]) == b"after"

    with_server(test)


def test_server_knows_how_long_the_caller_waits() -> None:
    async def test(channel: Channel, server: Server) -> None:
        call = asyncio.create_task(channel.call("/test.Service/Wait", [], limit_s=20))
        await server.reached.wait()
        assert server.remaining is not None
        assert 10 < server.remaining <= 20
        call.cancel()
        await asyncio.wait([call])

    with_server(test)


def test_deadline_that_the_server_keeps_is_an_error() -> None:
    async def test(channel: Channel, server: Server) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.call("/test.Service/Wait", [], limit_s=0.05)
        assert caught.value.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED)

    with_server(test)


def test_metadata_reaches_the_server() -> None:
    async def test(channel: Channel, server: Server) -> None:
        found = await channel.call(
            "/test.Service/Metadata", [b"traceparent"], metadata=[("traceparent", "00-ab-cd-01")]
        )
        assert found == b"00-ab-cd-01"

    with_server(test)


def test_large_answers_do_not_run_out_of_window() -> None:
    async def test(channel: Channel, server: Server) -> None:
        for _ in range(30):  # more than the window in all
            assert len(await channel.call("/test.Service/Grow", [b"8000000"])) == 8_000_000

    with_server(test)


def test_nobody_there_is_unavailable_and_a_server_that_comes_later_is_found() -> None:
    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        channel = Channel(f"127.0.0.1:{port}")
        for _ in range(2):
            with pytest.raises(RpcError, match="cannot be connected to") as caught:
                await channel.call(ECHO, [b"x"])
            assert caught.value.code is Code.UNAVAILABLE
        for _ in range(2):  # and again after it has gone
            async with serving(Server(), port=port):
                assert await channel.call(ECHO, [b"x"]) == b"x"
            await asyncio.sleep(0.05)
            with pytest.raises(RpcError):
                await channel.call(ECHO, [b"x"])
        await channel.close()

    asyncio.run(main())


def test_waiting_calls_leave_when_the_server_takes_more() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\0")  # no call at all for now
            await asyncio.sleep(0.1)
            writer.write(b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\1")
            await reader.readuntil(ECHO.encode())
            asked.set()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        channel = Channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        call = asyncio.create_task(channel.call(ECHO, [b"x"]))
        await asyncio.wait_for(asked.wait(), 10)
        with pytest.raises(RpcError):
            await call
        await channel.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_server_that_shuts_down_ends_what_is_under_way_and_no_caller_hangs() -> None:
    async def main() -> None:
        server = Server()
        async with serving(server) as (made, port):
            channel = Channel(f"127.0.0.1:{port}")
            calls = [asyncio.create_task(channel.call("/test.Service/Wait", [])) for _ in range(3)]
            await server.reached.wait()
            await asyncio.sleep(0.1)
            await made.stop(0.1)
            found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert all(isinstance(each, RpcError) for each in found)
            await channel.close()

    asyncio.run(main())


def test_closed_channel_refuses_calls() -> None:
    async def test(channel: Channel, server: Server) -> None:
        call = asyncio.create_task(channel.call("/test.Service/Wait", []))
        await server.reached.wait()
        await channel.close()
        with pytest.raises(RpcError, match="was closed"):
            await call
        with pytest.raises(RpcError, match="was closed"):
            await channel.call(ECHO, [])

    with_server(test)


def test_retired_channel_still_answers_what_is_under_way() -> None:
    async def test(channel: Channel, server: Server) -> None:
        await channel.call(ECHO, [b"connect"])
        call = asyncio.create_task(channel.call("/test.Service/Grow", [b"20000000"]))
        await asyncio.sleep(0)
        channel.retire()
        with pytest.raises(RpcError, match="was closed"):
            await channel.call(ECHO, [])
        assert len(await call) == 20_000_000
        assert channel._connection is not None
        await asyncio.wait_for(channel._connection.lost, 5)

    with_server(test)


def test_retired_channel_that_is_idle_or_was_never_used_ends_at_once() -> None:
    async def test(channel: Channel, server: Server) -> None:
        await channel.call(ECHO, [b"connect"])
        channel.retire()
        assert channel._connection is not None
        await asyncio.wait_for(channel._connection.lost, 5)
        unused = Channel("127.0.0.1:1")
        unused.retire()
        with pytest.raises(RpcError, match="was closed"):
            await unused.call(ECHO, [])

    with_server(test)


# ---- streams ------------------------------------------------------------------------------------------------------

CHAT = "/test.Service/Chat"
WINDOW = 1 << 16


async def rest_of(stream: rpc.Stream) -> list[bytes]:
    found = []
    while (message := await stream.receive()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize(("count", "size"), [(1, 0), (3, 1), (1000, 100), (5, WINDOW - 5), (4, WINDOW), (3, 5_000_000)])
def test_stream_gives_each_message_whole_and_in_order(count: int, size: int) -> None:
    async def test(channel: Channel, server: Server) -> None:
        stream = await channel.stream(CHAT)
        stream.send([b"%d " % count, b"%d" % size], last=True)
        assert await rest_of(stream) == [bytes([i % 256]) * size for i in range(count)]
        assert await stream.receive() is None

    with_server(test, window=WINDOW)


def test_messages_go_both_ways_while_a_stream_is_open() -> None:
    async def test(channel: Channel, server: Server) -> None:
        stream = await channel.stream(CHAT)
        for size in (10, 200_000, 1):  # more than the window in all
            stream.send([b"2 %d" % size])
            assert [len(await stream.receive() or b"") for _ in range(2)] == [size, size]
        stream.finish()
        assert await stream.receive() is None

    with_server(test, window=WINDOW)


def test_long_message_of_the_client_waits_for_the_servers_window() -> None:
    async def test(channel: Channel, server: Server) -> None:
        stream = await channel.stream(CHAT)
        stream.send([b"1 5", b" " * 3_000_000])
        assert await stream.receive() == b"\0" * 5
        stream.cancel()

    with_server(test, window=WINDOW)


def test_reader_that_is_slow_holds_the_server_back() -> None:
    async def test(channel: Channel, server: Server) -> None:
        stream = await channel.stream(CHAT)
        stream.send([b"10000 10000"], last=True)
        assert await stream.receive() is not None
        await asyncio.sleep(0.5)
        held = server.written
        assert held < 1000  # what gRPC's own buffers take, beside the window
        await asyncio.sleep(0.2)
        assert server.written == held
        assert await channel.call(ECHO, [b"x"]) == b"x"  # and nobody else
        assert len(await rest_of(stream)) == 9_999

    with_server(test, window=WINDOW)


def test_error_in_the_middle_of_a_stream_comes_after_what_was_sent_before() -> None:
    async def test(channel: Channel, server: Server) -> None:
        stream = await channel.stream(CHAT)
        stream.send([b"2 3"])
        stream.send([b"0 0"])
        assert [await stream.receive(), await stream.receive()] == [b"\0\0\0", b"\1\1\1"]
        for _ in range(2):
            with pytest.raises(RpcError, match="no more") as caught:
                await stream.receive()
            assert caught.value.code is Code.FAILED_PRECONDITION

    with_server(test, window=WINDOW)


def test_cancelled_stream_is_cancelled_at_the_server_and_hurts_no_other() -> None:
    async def test(channel: Channel, server: Server) -> None:
        other = await channel.stream(CHAT)
        stream = await channel.stream(CHAT)
        stream.send([b"1000000 1000"])
        assert await stream.receive() is not None
        stream.cancel()
        await asyncio.wait_for(server.over.wait(), 5)
        assert server.written < 1_000_000
        with pytest.raises(RpcError) as caught:
            await stream.receive()
        assert caught.value.code is Code.CANCELLED
        other.send([b"1 1"], last=True)
        assert await rest_of(other) == [b"\0"]

    with_server(test, window=WINDOW)


def test_streams_end_with_their_connection() -> None:
    async def test(channel: Channel, server: Server) -> None:
        streams = [await channel.stream(CHAT) for _ in range(3)]
        for stream in streams:
            stream.send([b"1 1"])
            assert await stream.receive() is not None
        waiting = asyncio.create_task(streams[0].receive())
        await asyncio.sleep(0)
        await channel.close()
        for receiving in (waiting, streams[1].receive()):
            with pytest.raises(RpcError, match="was closed"):
                await receiving
        streams[2].cancel()  # without a word

    with_server(test, window=WINDOW)


@pytest.mark.parametrize("address", ["", "host", "host:port", ":8001", "host:99999"])
def test_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Channel(address)


PEERS = {
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
    "garbage": bytes(range(256)) * 8,
    "settings cut": b"\0\0\5\4\0\0\0\0\0abcde",
    "frame too long": b"\xff\xff\xff\1\4\0\0\0\1",
    "headers of nonsense": b"\0\0\0\4\0\0\0\0\0" + b"\0\0\2\1\5\0\0\0\1\xff\xff",
    "answer that is no gRPC": b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\5\0\0\0\1\x88",
    "continuation of nothing": b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\x09\4\0\0\0\1\x88",
    "reset": b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\3\0\0\0\0\1\0\0\0\7",
    "going away": b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\0",
}


async def call_of_a_peer_that_says(said: bytes, *, ends_at: int = 9) -> Any:
    """Call a server that says something, from `ends_at` on when the call waits, and ends the connection."""
    served = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(24)
            writer.write(said[:ends_at])  # what is sent later comes to a call that waits
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(said[ends_at:])
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        served.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    channel = Channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        return await asyncio.wait_for(channel.call(ECHO, [b"x"]), 10)
    except RpcError as error:
        return error
    finally:
        await channel.close()
        await served.wait()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("said", PEERS.values(), ids=PEERS)
def test_peer_that_does_not_speak_grpc_is_unavailable(said: bytes) -> None:
    found = asyncio.run(call_of_a_peer_that_says(said))
    assert isinstance(found, RpcError)
    assert found.code in (Code.UNAVAILABLE, Code.CANCELLED)


SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    ("said", "unbegun"),
    [
        (b"", True),  # nobody who speaks HTTP/2
        (SETTINGS, False),  # it may have begun, and ended since
        (SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\2", False),  # INTERNAL_ERROR
        (SETTINGS + b"\0\0\x08\7\0\0\0\0\0" + bytes(8), True),  # GOAWAY: it took no call
        (SETTINGS + b"\0\0\x08\7\0\0\0\0\0\0\0\0\1" + bytes(4), False),  # GOAWAY: it took the first
        (b"\0\0\6\4\0\0\0\0\0" + b"\0\4\0\0\0\0", True),  # a window of no bytes: it has not got the message
    ],
    ids=["nobody", "lost", "reset", "going away", "going away later", "no window"],
)
def test_call_that_was_certainly_not_begun_says_so(said: bytes, unbegun: bool) -> None:
    found = asyncio.run(call_of_a_peer_that_says(said, ends_at=15 if said[2:3] == b"\6" else 9))
    assert isinstance(found, RpcError)
    assert found.unbegun is unbegun, found


def test_loss_of_a_connection_is_told_once_and_so_is_each_attempt_that_fails() -> None:
    async def main() -> None:
        told: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        channel = Channel(f"127.0.0.1:{port}", lost=told.append, metadata=[("key", "value")])
        with pytest.raises(RpcError):
            await asyncio.gather(*(channel.call(ECHO, [b"x"]) for _ in range(3)))
        await asyncio.sleep(0.01)
        assert len(told) == 1  # one attempt for all three
        async with serving(Server(), port=port):
            await channel.connect()
            assert await channel.call("/test.Service/Metadata", [b"key"], metadata=[("b", "c")]) == b"value"
            assert len(told) == 1
        await asyncio.sleep(0.05)
        assert len(told) == 2
        assert "was lost" in told[1]
        async with serving(Server(), port=port):
            await channel.connect()
            await channel.close()
        await asyncio.sleep(0.05)
        assert len(told) == 2  # by us

    asyncio.run(main())


def test_channel_can_be_closed_while_it_connects() -> None:
    async def main() -> None:
        accepted = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        channel = Channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        call = asyncio.create_task(channel.call(ECHO, [b"x"]))
        await accepted.wait()
        await asyncio.wait_for(channel.close(), 2)
        with pytest.raises(RpcError, match="was closed"):
            await call
        server.close()
        await server.wait_closed()

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_peer_sends_the_call_ends(noise: bytes, greets: bool) -> None:
    found = asyncio.run(call_of_a_peer_that_says((b"\0\0\0\4\0\0\0\0\0" if greets else b"") + noise))
    assert isinstance(found, RpcError)


@pytest.mark.parametrize(("value", "prefix", "found"), [(10, 5, b"\x0a"), (1337, 5, b"\x1f\x9a\x0a"), (42, 8, b"\x2a")])
def test_integers_are_those_of_rfc_7541(value: int, prefix: int, found: bytes) -> None:
    assert rpc._integer(value, prefix) == found

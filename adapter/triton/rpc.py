"""gRPC calls over HTTP/2 on an event loop: what a front needs of gRPC on its way to Triton, and no more.

The Python package of gRPC spends 0.25 to 0.4 ms of a processor on each call, most of it on handing over between its own
threads and the event loop; this spends a fifth of that. Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK), and
PROTOCOL-HTTP2.md of gRPC.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import functools
import math
import socket
import ssl as tls
import struct
from collections.abc import Callable, Sequence
from typing import cast
from urllib.parse import unquote, urlsplit

from hpack import Decoder, HPACKError

Metadata = Sequence[tuple[str, str]]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_CANCEL = 0x8
_REFUSED_STREAM = 0x7
_MOST_REFUSALS, _REFUSED_S = 5, 0.01
_DEFAULT_WINDOW, _LARGEST_WINDOW = 65_535, 2**31 - 1
_DEFAULT_FRAME, _LARGEST_FRAME = 16_384, 2**24 - 1
_LAST_STREAM = 2**31 - 1
_WINDOW_STEP = 1 << 24  # bytes after which the server is told that they were read
_LONGEST_FRAME = 1 << 20  # but for data
_CONNECT_S, _CLOSE_S = 5.0, 1.0
_UNHEARD_MS = 20_000  # what was sent has not come: the machine is gone, and nothing says so
_PREFIX = 5  # bytes before a message of gRPC
_HEADER = struct.Struct(">HBBBI")  # the length of a frame has three bytes: two and one
_SETTING = struct.Struct(">HI")
_OURS = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_MAX_FRAME, _LARGEST_FRAME))
_KNOWN_BLOCKS = 1024


class Code(enum.IntEnum):
    """The status of a call."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that did not succeed: the server's status, or UNAVAILABLE where there is no connection.

    Where it is `unbegun`, the server has certainly not begun with it, so that it can be sent to another one.
    """

    def __init__(self, code: Code, details: str, *, unbegun: bool = False) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.unbegun = unbegun


class Channel:
    """Calls of one server. It connects when it is first used, and again when the connection is lost."""

    def __init__(
        self,
        address: str,
        *,
        ssl: tls.SSLContext | None = None,
        server_name: str | None = None,
        metadata: Metadata = (),
        window: int = _LARGEST_WINDOW,
        lost: Callable[[str], None] | None = None,
    ) -> None:
        """`address` is `host:port`; `window` the bytes that the server may send of a stream before they are read.

        A channel whose window is not the largest is for streams alone: an answer longer than that would not come.
        `server_name` is the one that the server's certificate is for, where that is not the host; `metadata` goes with
        every call. `lost` is told why whenever there is no connection any more, or none can be made.
        """
        parts = urlsplit(f"//{address}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if not parts.hostname or port is None:
            raise ValueError(f"{address!r} is not an address such as 127.0.0.1:8001")
        self._host, self._port = parts.hostname, port
        self._authority = address
        self._server_name = server_name or parts.hostname if ssl is not None else None
        self._metadata = metadata
        self._window = window
        self._ssl = ssl
        self._lost = lost
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        self._connection: _Connection | None = None
        self._connecting: asyncio.Future[_Connection] | None = None
        self.connections = 0
        self._closed = False

    async def call(
        self, path: str, message: Sequence[bytes], *, limit_s: float = math.inf, metadata: Metadata = ()
    ) -> bytes:
        """Send a message, in parts, to the method at `path`; the message that it answers.

        The server is told of `limit_s`; the caller stops waiting by cancelling this. RpcError where the call fails.
        """
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connected()
        return await connection.call(path, message, limit_s, metadata)

    def retire(self) -> None:
        """Take no new call; the connection ends when the last one under way is answered."""
        self._closed = True
        if self._connection is not None:
            self._connection.retire()

    async def stream(self, path: str, *, metadata: Metadata = ()) -> Stream:
        """Call the method at `path`, to which, and from which, any number of messages go."""
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connected()
        return connection.stream(path, metadata)

    async def close(self) -> None:
        """End the connection; calls under way fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            self._connection.end()
            await asyncio.wait([self._connection.lost], timeout=_CLOSE_S)
            if not self._connection.lost.done():  # such as a peer that does not answer the end of TLS
                self._connection.abort()
                await asyncio.wait([self._connection.lost], timeout=_CLOSE_S)

    async def connect(self) -> None:
        """Connect, where there is no connection; RpcError where none can be made."""
        if self._connection is None or not self._connection.usable:
            await self._connected()

    async def _connected(self) -> _Connection:
        closed = RpcError(Code.UNAVAILABLE, f"the connection to {self._authority} was closed", unbegun=True)
        if self._closed:
            raise closed
        if self._connecting is None:  # one attempt for all that wait
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._attempted)
        attempt = self._connecting
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():  # by `close`, and not the one who waits
                raise closed from None
            raise

    def _attempted(self, attempt: asyncio.Future[_Connection]) -> None:
        self._connecting = None
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is not None:
            self._tell(str(error.details if isinstance(error, RpcError) else error))
            return
        connection = self._connection = attempt.result()
        self.connections += 1
        if self._closed:
            connection.end()
        connection.lost.add_done_callback(functools.partial(self._ended, connection))

    def _ended(self, connection: _Connection, reason: asyncio.Future[str]) -> None:
        if connection is self._connection:  # else there is another one since
            self._tell(reason.result())

    def _tell(self, reason: str) -> None:
        if self._lost is not None and not self._closed:
            self._lost(reason)

    async def _connect(self) -> _Connection:
        scheme = "http" if self._ssl is None else "https"
        connection = _Connection(self._authority, scheme, self._window, self._metadata)
        try:
            await asyncio.wait_for(self._open(connection), _CONNECT_S)
        except asyncio.CancelledError:
            connection.abort()
            raise
        except (OSError, asyncio.TimeoutError) as error:
            connection.abort()
            reason = str(error) or f"no answer within {_CONNECT_S:g} s"
            text = f"{self._authority} cannot be connected to: {reason}"
            raise RpcError(Code.UNAVAILABLE, text, unbegun=True) from None
        return connection

    async def _open(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: connection, self._host, self._port, ssl=self._ssl, server_hostname=self._server_name
        )
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # where it is not, the system gives up after its own time, often 15 min
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
        await connection.greeted


class _Stream:
    """One call: its answer, and what has come of it."""

    __slots__ = ("answer", "chunks", "fields", "head", "number", "refusals", "unsent", "window")
    finished = True  # nothing will be sent but what is in `unsent`

    def __init__(self, answer: asyncio.Future[bytes], head: bytes, unsent: memoryview) -> None:
        self.answer = answer
        self.head = head
        self.unsent = unsent  # what the server's windows have not let through yet
        self.number = 0  # while it waits for another call to end
        self.window = 0
        self.refusals = 0
        self.chunks: list[bytes] = []
        self.fields: dict[str, str] = {}


class Stream(_Stream):
    """A call whose messages come and go one by one; whoever began it ends it with `cancel`."""

    __slots__ = ("_connection", "_messages", "_missing", "_ready", "_rest", "_unreturned", "finished")

    def __init__(self, connection: _Connection, answer: asyncio.Future[bytes], head: bytes) -> None:
        super().__init__(answer, head, memoryview(b""))
        self.finished = False
        self._connection = connection
        self._messages: collections.deque[bytes] = collections.deque()
        self._ready: asyncio.Future[None] | None = None
        self._rest = bytearray()  # of a message that has not come whole
        self._missing = _PREFIX  # bytes until it is, as far as is known
        self._unreturned = 0  # bytes of the window that the server can have back

    def send(self, message: Sequence[bytes], *, last: bool = False) -> None:
        """Send a message, in parts; where its `last` is sent, the server knows that no other will come."""
        size = sum(len(part) for part in message).to_bytes(4, "big")
        self._push(b"".join((b"\0", size, *message)), last)

    def finish(self) -> None:
        """Tell the server that no other message will come."""
        if not self.finished:
            self._push(b"", last=True)

    async def receive(self) -> bytes | None:
        """Wait for the next message, None at the end; RpcError where the call failed."""
        while not self._messages:
            if self.answer.done():
                self.answer.result()
                return None
            self._ready = self._connection.loop.create_future()
            await self._ready
        message = self._messages.popleft()
        self._unreturned += len(message) + _PREFIX
        self._return_window()
        return message

    def cancel(self) -> None:
        """Give the call up; what has not been received is lost."""
        self._messages.clear()
        if not self.answer.done():
            self._connection.give_up(self)
            _refuse(self, Code.CANCELLED, "the call was given up")

    def _push(self, data: bytes, last: bool) -> None:
        self.finished = last
        if not self.answer.done():
            self.unsent = memoryview(bytes(self.unsent) + data)
            self._connection.push(self)

    def take(self, piece: memoryview) -> None:
        """Take bytes as they come: messages are read one by one, and hold the window as long as they are not."""
        self._rest += piece
        self._unreturned += len(piece)
        while len(self._rest) >= self._missing:
            if self._missing == _PREFIX and (length := int.from_bytes(self._rest[1:_PREFIX], "big")):
                self._missing += length
                continue
            message = bytes(self._rest[_PREFIX : self._missing])
            compressed = self._rest[0]
            del self._rest[: self._missing]
            self._missing = _PREFIX
            if compressed:
                raise ValueError("a compressed message")
            self._messages.append(message)
            self._unreturned -= len(message) + _PREFIX
            self._wake()
        self._return_window()

    def ended(self, answer: asyncio.Future[bytes]) -> None:
        answer.exception()  # whoever would have asked may have gone
        self._wake()

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _return_window(self) -> None:
        if self._unreturned >= self._connection.stream_window // 2 and not self.answer.done():
            self._connection.widen(self.number, self._unreturned)
            self._unreturned = 0


class _Connection(asyncio.Protocol):
    """One HTTP/2 connection, whose every stream is one call."""

    def __init__(self, authority: str, scheme: str, stream_window: int, metadata: Metadata) -> None:
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.usable = True
        self.loop = loop
        self.stream_window = stream_window
        self._authority = authority
        # :method POST, :scheme; each field is written in full, so that neither side keeps a table
        self._always = (b"\x83\x86" if scheme == "http" else b"\x83\x87") + _indexed_name(1, authority.encode())
        self._always += _field("content-type", "application/grpc") + _field("te", "trailers")
        self._always += b"".join(_field(name, value) for name, value in metadata)
        self._transport: asyncio.Transport | None = None
        self._heads: dict[str, bytes] = {}
        self._known: dict[bytes, dict[str, str]] = {}
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._queue: collections.deque[_Stream] = collections.deque()  # more than the server takes at a time
        self._most_streams = _LARGEST_WINDOW
        self._window = self._initial = _DEFAULT_WINDOW
        self._largest = _DEFAULT_FRAME
        self._blocked: dict[int, _Stream] = {}
        self._read = 0  # bytes of data since the server was last told
        self._buffer = b""  # the beginning of a frame
        self._reading = (0, 0, 0)  # bytes to come of the frame of data that is being read, its flags and its stream
        self._headers: tuple[int, int, bytes] | None = None  # a block of headers that goes on

    # ---- calls -----------------------------------------------------------------------------------------------------

    async def call(self, path: str, message: Sequence[bytes], limit_s: float, metadata: Metadata) -> bytes:
        size = sum(len(part) for part in message).to_bytes(4, "big")
        answer: asyncio.Future[bytes] = self.loop.create_future()
        stream = _Stream(answer, self._head(path, limit_s, metadata), memoryview(b"".join((b"\0", size, *message))))
        self._start(stream)
        try:
            return await answer
        except asyncio.CancelledError:
            self.give_up(stream)
            raise
        finally:
            del answer, stream  # an error, whose traceback leads here, would be kept, with all that was sent

    def stream(self, path: str, metadata: Metadata) -> Stream:
        stream = Stream(self, self.loop.create_future(), self._head(path, math.inf, metadata))
        stream.answer.add_done_callback(stream.ended)
        self._start(stream)
        return stream

    def _head(self, path: str, limit_s: float, metadata: Metadata) -> bytes:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._always + _indexed_name(4, path.encode())
        if limit_s < math.inf:
            head += _field("grpc-timeout", f"{min(max(1, math.ceil(limit_s * 1000)), 99_999_999)}m")
        for name, value in metadata:
            head += _field(name, value)
        return head

    def _start(self, stream: _Stream) -> None:
        """Open a stream for a call, now or when another has ended."""
        if not self.usable:
            _refuse(stream, Code.UNAVAILABLE, f"the connection to {self._authority} is gone", unbegun=True)
        elif len(self._streams) >= self._most_streams:
            self._queue.append(stream)
        else:
            stream.number, stream.window = self._next, self._initial
            self._streams[stream.number] = stream
            self._next += 2
            if self._next > _LAST_STREAM:
                self.usable = False  # the numbers are used up: the next call gets another connection
            frames: list[bytes | memoryview] = [_frame(_HEADERS, _END_HEADERS, stream.number, stream.head)]
            self._send_data(stream, frames)
            self._write(frames)

    def _send_data(self, stream: _Stream, frames: list[bytes | memoryview]) -> None:
        """Add the frames of data that the windows allow."""
        if not stream.unsent and stream.finished:
            frames.append(_frame(_DATA, _END_STREAM, stream.number))
        while stream.unsent:
            size = min(len(stream.unsent), self._largest, stream.window, self._window)
            if size <= 0:
                self._blocked[stream.number] = stream
                return
            last = stream.finished and size == len(stream.unsent)
            frames += (_head_of(size, _DATA, _END_STREAM if last else 0, stream.number), stream.unsent[:size])
            stream.unsent = stream.unsent[size:]
            stream.window -= size
            self._window -= size
        self._blocked.pop(stream.number, None)

    def _unblock(self) -> None:
        frames: list[bytes | memoryview] = []
        for stream in list(self._blocked.values()):
            self._send_data(stream, frames)
        self._write(frames)

    def push(self, stream: Stream) -> None:
        """Send what a stream has to send, when it has begun."""
        if stream.number:
            frames: list[bytes | memoryview] = []
            self._send_data(stream, frames)
            self._write(frames)

    def widen(self, number: int, size: int) -> None:
        self._write([_frame(_WINDOW_UPDATE, 0, number, size.to_bytes(4, "big"))])

    def give_up(self, stream: _Stream) -> None:
        if self._streams.get(stream.number) is stream:
            self._reset(stream.number)
            self._forget(stream.number)
        elif stream in self._queue:
            self._queue.remove(stream)

    def _forget(self, number: int) -> _Stream | None:
        stream = self._streams.pop(number, None)
        self._blocked.pop(number, None)
        self._start_waiting()
        if not self.usable and not self._streams and self._transport is not None:
            self._transport.close()
        return stream

    def _start_waiting(self) -> None:
        while self._queue and len(self._streams) < self._most_streams:
            self._start(self._queue.popleft())

    def _reset(self, number: int) -> None:
        self._write([_frame(_RST_STREAM, 0, number, _CANCEL.to_bytes(4, "big"))])

    def _write(self, frames: Sequence[bytes | memoryview]) -> None:
        if frames and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(frames)

    # ---- the connection --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and no instance of it
        window = (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")
        settings = (*_OURS, (_INITIAL_WINDOW, self.stream_window))
        ours = _frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in settings))
        self._write([_PREFACE, ours, _frame(_WINDOW_UPDATE, 0, 0, window)])

    def connection_lost(self, error: Exception | None) -> None:
        reason = f"the connection to {self._authority} was lost" + (f": {error}" if error else "")
        if not self.greeted.done():
            reason += " at once, as by a server that wants TLS, or a certificate"
        self._fail(reason)
        self.lost.set_result(reason)

    def retire(self) -> None:
        self.usable = False
        if not self._streams and self._transport is not None:
            self._transport.close()

    def end(self) -> None:
        self._fail(f"the connection to {self._authority} was closed")
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once; there is nothing under way."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        self.usable = False
        if not self.greeted.done():
            self.greeted.set_exception(OSError(reason))
            self.greeted.exception()  # whoever would have asked may have gone
        streams = [*self._streams.values(), *self._queue]
        self._streams.clear()
        self._blocked.clear()
        self._queue.clear()
        for stream in streams:
            # the server cannot begin with a message that it has not got whole; of a stream it may have got others
            unbegun = not stream.number or (bool(stream.unsent) and not isinstance(stream, Stream))
            _refuse(stream, Code.UNAVAILABLE, reason, unbegun=unbegun)

    def _broken(self, reason: str) -> None:
        """The server does not keep to the protocol."""
        self._fail(f"{self._authority} does not speak HTTP/2 as gRPC does: {reason}")
        self.abort()

    # ---- frames ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        view = memoryview(self._buffer + data if self._buffer else data)
        position, end = 0, len(view)
        try:
            while self.usable or self._streams:
                rest, flags, number = self._reading
                if rest:  # data is taken as it comes, other frames when they are whole
                    size = min(rest, end - position)
                    if not size:
                        break
                    self._data(rest - size, flags, number, view[position : position + size])
                    position += size
                    continue
                if end - position < _HEADER.size:
                    break
                high, low, kind, flags, number = _HEADER.unpack_from(view, position)
                length, number = high << 8 | low, number & _LAST_STREAM
                if kind == _DATA and not flags & _PADDED:
                    position += _HEADER.size
                    self._data(length, flags, number, view[:0])
                    continue
                if length > _LONGEST_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                if end - position < _HEADER.size + length:
                    break
                start = position + _HEADER.size
                position = start + length
                self._control(kind, flags, number, bytes(view[start:position]))
        except (IndexError, struct.error, HPACKError, ValueError) as error:
            self._broken(f"{type(error).__name__}: {error}")
        self._buffer = bytes(view[position:])

    def _data(self, rest: int, flags: int, number: int, piece: memoryview) -> None:
        """Take a piece of a frame of data, of which `rest` bytes are still to come."""
        self._reading = (rest, flags, number)
        stream = self._streams.get(number)
        if stream is not None and piece:
            if isinstance(stream, Stream):
                stream.take(piece)
            else:
                stream.chunks.append(bytes(piece))
        self._count(len(piece))
        if not rest and flags & _END_STREAM:
            self._ended(number)

    def _count(self, size: int) -> None:
        self._read += size
        if self._read >= _WINDOW_STEP:
            self._write([_frame(_WINDOW_UPDATE, 0, 0, self._read.to_bytes(4, "big"))])
            self._read = 0

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _HEADERS:
            block = _without_padding(flags, payload)
            if flags & _PRIORITY:
                block = block[5:]
            self._block(flags, number, block)
        elif kind == _CONTINUATION:
            if self._headers is None or self._headers[1] != number:
                raise ValueError("a continuation of nothing")
            first, _, so_far = self._headers
            if len(so_far) > _LONGEST_FRAME:
                raise ValueError("headers without end")
            self._block(first | flags & _END_HEADERS, number, so_far + payload)
        elif kind == _DATA:
            piece = _without_padding(flags, payload)
            self._count(len(payload) - len(piece))
            self._data(0, flags, number, memoryview(piece))
        elif kind == _SETTINGS:
            if not flags & _ACK:
                self._settle(payload)
        elif kind == _PING:
            if not flags & _ACK:
                self._write([_frame(_PING, _ACK, 0, payload)])
        elif kind == _WINDOW_UPDATE:
            increment = int.from_bytes(payload[:4], "big") & _LARGEST_WINDOW
            if number == 0:
                self._window += increment
            elif (stream := self._streams.get(number)) is not None:
                stream.window += increment
            self._unblock()
        elif kind == _RST_STREAM:
            reset = self._forget(number)
            if reset is not None:
                reason = int.from_bytes(payload[:4], "big")
                if reason == _REFUSED_STREAM and reset.refusals < _MOST_REFUSALS and not isinstance(reset, Stream):
                    self._begin_again(reset)
                    return
                code = Code.CANCELLED if reason == _CANCEL else Code.UNAVAILABLE
                text = f"{self._authority} ended the call (HTTP/2 error {reason})"
                _refuse(reset, code, text, unbegun=reason == _REFUSED_STREAM)
        elif kind == _GOAWAY:
            self._go_away(int.from_bytes(payload[:4], "big") & _LAST_STREAM)

    def _begin_again(self, stream: _Stream) -> None:
        """Send a call once more, soon: the server has not looked at it, since it still counts one that has ended."""
        stream.refusals += 1
        stream.unsent = memoryview(stream.unsent.obj)  # all of it

        def start() -> None:
            if not stream.answer.done():
                self._start(stream)

        self.loop.call_later(_REFUSED_S, start)

    def _settle(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == _INITIAL_WINDOW:
                change, self._initial = value - self._initial, value
                for stream in self._streams.values():
                    stream.window += change
            elif key == _MAX_FRAME:
                self._largest = min(value, _LARGEST_FRAME)
            elif key == _MAX_STREAMS:
                self._most_streams = value
        self._write([_frame(_SETTINGS, _ACK, 0)])
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._unblock()
        self._start_waiting()

    def _go_away(self, last: int) -> None:
        """The server ends the connection: it goes on with calls up to `last`, and has not begun with the others."""
        self.usable = False
        unbegun = [*(stream for number, stream in self._streams.items() if number > last), *self._queue]
        self._queue.clear()
        for stream in unbegun:
            _refuse(stream, Code.UNAVAILABLE, f"{self._authority} is shutting down", unbegun=True)
            self._forget(stream.number)
        if not self._streams and self._transport is not None:
            self._transport.close()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _block(self, flags: int, number: int, block: bytes) -> None:
        if not flags & _END_HEADERS:
            self._headers = (flags, number, block)
            return
        self._headers = None
        fields = self._fields(block)
        stream = self._streams.get(number)
        if stream is not None:
            stream.fields = {**stream.fields, **fields} if stream.fields else fields
        if flags & _END_STREAM:
            self._ended(number)

    def _fields(self, block: bytes) -> dict[str, str]:
        """The fields of a block of headers; without a table, equal bytes always mean the same."""
        found = self._known.get(block)
        if found is None:
            decoder = Decoder(max_header_list_size=_LONGEST_FRAME)
            decoder.max_allowed_table_size = decoder.header_table_size = 0
            found = {_text(name): _text(value) for name, value in decoder.decode(block)}
            if len(self._known) >= _KNOWN_BLOCKS:  # messages of errors differ
                self._known.clear()
            self._known[block] = found
        return found

    def _ended(self, number: int) -> None:
        stream = self._forget(number)
        if stream is not None:
            if stream.unsent or not stream.finished:  # answered before all of it was read: the rest is not sent
                self._reset(number)
            _answer(stream)


def _answer(stream: _Stream) -> None:
    fields = stream.fields
    status = fields.get("grpc-status")
    if status is None:
        _refuse(stream, Code.UNAVAILABLE, f"the answer is no gRPC: HTTP status {fields.get(':status', 'unknown')}")
        return
    if status != "0":
        code = Code(int(status)) if status.isdigit() and int(status) <= max(Code) else Code.UNKNOWN
        _refuse(stream, code, unquote(fields.get("grpc-message", ""), errors="replace"))
        return
    if isinstance(stream, Stream):
        if not stream.answer.done():
            stream.answer.set_result(b"")
        return
    body = stream.chunks[0] if len(stream.chunks) == 1 else b"".join(stream.chunks)
    if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
        _refuse(stream, Code.INTERNAL, "the answer is not one plain message")
    elif not stream.answer.done():
        stream.answer.set_result(body[5:])


def _refuse(stream: _Stream, code: Code, details: str, *, unbegun: bool = False) -> None:
    if not stream.answer.done():
        stream.answer.set_exception(RpcError(code, details, unbegun=unbegun))


# ---- bytes --------------------------------------------------------------------------------------------------------


def _head_of(size: int, kind: int, flags: int, number: int) -> bytes:
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, number)


def _frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return _head_of(len(payload), kind, flags, number) + payload


def _without_padding(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload


def _integer(value: int, prefix: int, first: int = 0) -> bytes:
    """A number of HPACK, with `prefix` bits in its first byte."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((first | value,))
    found = [first | most]
    value -= most
    while value >= 128:
        found.append(value % 128 | 128)
        value >>= 7
    return bytes((*found, value))


def _string(value: bytes) -> bytes:
    return _integer(len(value), 7) + value


def _field(name: str, value: str) -> bytes:
    """A header that is not put into a table."""
    return b"\0" + _string(name.encode()) + _string(value.encode())


def _indexed_name(index: int, value: bytes) -> bytes:
    """A header whose name is that of an entry of the static table."""
    return _integer(index, 4) + _string(value)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")

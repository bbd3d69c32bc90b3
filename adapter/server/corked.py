"""Uvicorn's HTTP protocol with one write to the socket where it would make two, and heads of requests bounded."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LEFT = "adapter.left"
"""The key in the scope of what is called when the client has closed the connection."""
_MOST_KEPT = 64 << 10
_LONGEST_HEAD = 64 << 10  # beyond the piece that it began in


class CorkedHttpProtocol(HttpToolsProtocol):
    """Uvicorn writes the head of an answer and then its body, and each write is a system call.

    It also keeps the head of a request however long it grows, before anything else can refuse it.
    """

    _unread: Any = None  # the scope of a head that has not come whole
    _head = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Corked(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        scope: Any = self.scope
        if scope is not None and (left := scope.get(LEFT)) is not None:
            left()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        scope: Any = self.scope  # None before the first request
        if scope is None or "method" in scope:  # which it has when its head is whole
            return
        if scope is not self._unread:
            self._unread, self._head = scope, 0
            return
        self._head += len(data)
        if self._head > _LONGEST_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has at most {_LONGEST_HEAD} bytes.")


class _Corked:
    """A transport that keeps what is written until the task that writes it waits for something."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._kept:
            self._loop.call_soon(self._flush)
        self._kept.append(data)
        self._size += len(data)
        if self._size > _MOST_KEPT:  # a stream that never waits is told by the transport when to
            self._flush()

    def _flush(self) -> None:
        kept, self._kept, self._size = self._kept, [], 0
        if self.is_closing():  # the client went away in the meantime
            return
        if len(kept) == 1:
            self._transport.write(kept[0])
        elif kept:
            self._transport.writelines(kept)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

"""Uvicorn's HTTP protocol with one write to the socket where it would make two."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_KEPT = 64 << 10


class CorkedHttpProtocol(HttpToolsProtocol):
    """Uvicorn writes the head of an answer and then its body, and each write is a system call."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Corked(transport, self.loop)))


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
        if len(kept) == 1:
            self._transport.write(kept[0])
        elif kept:
            self._transport.writelines(kept)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

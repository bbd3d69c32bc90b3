"""Shared memory and a socket between Triton's python stub and the worker that runs user code.

Each side writes into a memfd of its own and reads the other's; a message on the socket says where in it a JSON header
lies. Nothing has a name in the file system, so nothing can be left behind. Both ends import this.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
from typing import Any

_MESSAGE = struct.Struct("<QQQ")  # where the header lies, its length, the size of the region
_FIRST_SIZE = 1 << 20
ALIGNMENT = 64


class Region:
    """A memfd that is mapped here; it grows with what is written."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._map()

    @classmethod
    def create(cls, name: str) -> Region:
        fd = os.memfd_create(name)
        os.ftruncate(fd, _FIRST_SIZE)
        return cls(fd)

    def _map(self) -> None:
        self.memory = mmap.mmap(self.fd, self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def grow(self, size: int) -> None:
        """Have room for `size` bytes; what was written stays."""
        if size > self.size:
            self.size = -(-max(size, 2 * self.size) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.fd, self.size)
            self._map()

    def follow(self, size: int) -> None:
        """Map what the other side has grown the region to."""
        if size != self.size:
            self.size = size
            self._map()

    def close(self) -> None:
        os.close(self.fd)


class Channel:
    """One end: headers and buffers go out through `out`, and come in through `into`."""

    def __init__(self, sock: socket.socket, out: Region, into: Region) -> None:
        self.sock = sock
        self.out = out
        self.into = into

    def send(self, header: Any, used: int = 0) -> None:
        """Send a JSON header; `used` bytes of the outgoing region are taken by the buffers that it names."""
        text = json.dumps(header, separators=(",", ":")).encode()
        self.out.grow(used + len(text))
        self.out.memory[used : used + len(text)] = text
        self.sock.send(_MESSAGE.pack(used, len(text), self.out.size))

    def receive(self) -> Any:
        """Wait for a header; EOFError when the other side is gone."""
        message = self.sock.recv(_MESSAGE.size)
        if not message:
            raise EOFError
        start, length, size = _MESSAGE.unpack(message)
        self.into.follow(size)
        return json.loads(self.into.memory[start : start + length])

    def close(self) -> None:
        self.sock.close()
        self.out.close()
        self.into.close()


def aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT

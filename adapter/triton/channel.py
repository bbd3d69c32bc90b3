"""What lies between Triton's python stub and the worker that runs user code; both ends import this.

For batches, shared memory and a socket: results lie in a memfd of the worker's, arguments in the memory that the stub
shares with Triton, where they are already, and a header on the socket says where. Nothing has a name in the file
system of its own, so nothing can be left behind. For streams, of which many are open at once, the socket alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import marshal
import mmap
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

_FORMAT = 4  # of marshal, which takes a fifth of the time that JSON does; every Python from 3.4 on reads it
_MESSAGE = struct.Struct("<QQ")  # where in the sender's region the header lies, and its length; 0: it follows at once
_FRAME = struct.Struct("<IQ")  # the length of a frame's header, and of the bytes behind it
_FIRST_SIZE = 1 << 20
_LONGEST_MESSAGE = 1 << 13
_WORTH_JOINING = 1 << 16
ALIGNMENT = 64
_KEY = re.compile(r"[0-9a-f]{32}")
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Region:
    """Memory that is shared with another process, mapped here; it grows with what is written.

    One that is only `read` here has no `address`.
    """

    def __init__(self, fd: int, *, read: bool = False) -> None:
        self.fd = fd
        self._access = mmap.ACCESS_READ if read else mmap.ACCESS_WRITE
        self._map()

    @classmethod
    def create(cls, name: str) -> Region:
        fd = os.memfd_create(name)
        os.ftruncate(fd, _FIRST_SIZE)
        return cls(fd)

    def _map(self) -> None:
        self.size = os.fstat(self.fd).st_size
        self.memory = mmap.mmap(self.fd, self.size, access=self._access)
        if self._access == mmap.ACCESS_WRITE:
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def grow(self, size: int) -> None:
        """Have room for `size` bytes; what was written stays."""
        if size > self.size:
            os.ftruncate(self.fd, -(-max(size, 2 * self.size) // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._map()

    def reach(self, size: int) -> None:
        """Map what another process has grown it to, where `size` bytes are more than is mapped."""
        if size > self.size:
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
        """Send a header of plain values; `used` bytes of the outgoing region are taken by the buffers that it names."""
        content = marshal.dumps(header, _FORMAT)
        if len(content) <= _LONGEST_MESSAGE:
            self.sock.send(_MESSAGE.pack(0, 0) + content)
            return
        self.out.grow(used + len(content))
        self.out.memory[used : used + len(content)] = content
        self.sock.send(_MESSAGE.pack(used, len(content)))

    def receive(self) -> Any:
        """Wait for a header; EOFError when the other side is gone."""
        message = self.sock.recv(_MESSAGE.size + _LONGEST_MESSAGE)
        if not message:
            raise EOFError
        start, length = _MESSAGE.unpack_from(message)
        if not length:
            return marshal.loads(message[_MESSAGE.size :])
        self.into.reach(start + length)
        return marshal.loads(self.into.memory[start : start + length])

    def close(self) -> None:
        self.sock.close()
        self.out.close()
        self.into.close()


class Frames:
    """One end of a stream socket: JSON headers, each with bytes behind it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        self._writing = select.poll()
        self._writing.register(sock, select.POLLOUT)

    @property
    def writable(self) -> bool:
        """Whether what is small can be sent without waiting for another thread or for the other side."""
        return not self._lock.locked() and bool(self._writing.poll(0))

    def send(self, header: Any, parts: Sequence[Any] = ()) -> None:
        """Send a header and bytes in parts; waits while the other side has not read what came before."""
        text = _encode(header).encode()
        size = sum(len(part) for part in parts)
        start = _FRAME.pack(len(text), size) + text
        with self._lock:
            if size <= _WORTH_JOINING:
                self.sock.sendall(b"".join((start, *parts)))
                return
            self.sock.sendall(start)
            for part in parts:
                self.sock.sendall(part)

    def receive(self) -> tuple[Any, bytearray]:
        """Wait for a header and its bytes; EOFError when the other side is gone."""
        length, size = _FRAME.unpack(self._read(_FRAME.size))
        return json.loads(self._read(length)), self._read(size)

    def _read(self, size: int) -> bytearray:
        found = bytearray(size)
        with memoryview(found) as view:
            position = 0
            while position < size:
                count = self.sock.recv_into(view[position:])
                if not count:
                    raise EOFError
                position += count
        return found


def leave_socket(key: str) -> socket.socket:
    """Where the worker that has a stream learns how far its reader lets it go: `<values> <bytes>`, in all.

    OSError where another stream has the key, ValueError where it is no key.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(_leave_address(key))
    except BaseException:
        sock.close()
        raise
    return sock


def send_leave(key: str, leave: str) -> None:
    """Let a stream of any instance on this machine go on; one that has ended does not mind."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        contextlib.suppress(OSError, ValueError),
    ):
        sock.sendto(leave.encode(), _leave_address(key))


def _leave_address(key: str) -> str:
    """An address in Linux's namespace of sockets that are no files."""
    if not _KEY.fullmatch(key):
        raise ValueError("it has 32 hexadecimal digits")
    return f"\0adapter-stream-{key}"


def aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT

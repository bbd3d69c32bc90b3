from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from adapter.triton.channel import Channel, Region


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """A channel as the stub has it, and as the worker has it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, into = Region.create("test-out"), Region.create("test-in")
    stub, worker = Channel(ours, out, into), Channel(theirs, out=Region(into.fd), into=Region(out.fd, read=True))
    yield stub, worker
    stub.close()
    theirs.close()


@pytest.mark.parametrize("text", ["", "short", "é\ud800\0", "x" * 8_000, "x" * 10_000, "y" * 3_000_000])
def test_header_arrives_as_it_was_sent(ends: tuple[Channel, Channel], text: str) -> None:
    stub, worker = ends
    header = [["method", text, [["FP32", [1, -1], 0, 64]]], {"ready": True}, None, 1 << 40]
    stub.send(header, 128)
    assert worker.receive() == header
    worker.send([0, text])
    assert stub.receive() == [0, text]


def test_header_that_is_long_stands_behind_the_buffers(ends: tuple[Channel, Channel]) -> None:
    stub, worker = ends
    stub.out.memory[:4] = b"data"
    stub.send(["x" * 2_000_000], 4)
    assert worker.receive() == ["x" * 2_000_000]
    assert worker.into.memory[:4] == b"data"


def test_receive_when_the_other_side_is_gone(ends: tuple[Channel, Channel]) -> None:
    stub, worker = ends
    stub.sock.close()
    with pytest.raises(EOFError):
        worker.receive()


def test_region_that_grows_is_reached_by_its_reader() -> None:
    writer = Region.create("test-region")
    reader = Region(writer.fd, read=True)
    before = np.frombuffer(reader.memory, np.uint8, 4)
    writer.grow(5_000_000)
    writer.memory[4_999_996:5_000_000] = b"last"
    assert reader.size < 5_000_000
    reader.reach(5_000_000)
    assert reader.memory[4_999_996:5_000_000] == b"last"
    writer.memory[:4] = b"abcd"
    assert before.tobytes() == b"abcd", "what was mapped before stays mapped"
    with pytest.raises(TypeError, match="modify"):
        reader.memory[0] = 1
    writer.close()

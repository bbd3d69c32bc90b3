"""The worker's side of a batch: where arguments lie, and what user code may do with them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pytest

import adapter
from adapter.method import MethodSpec, methods_of
from adapter.model import BatchingConfig
from adapter.tensor import Array
from adapter.triton.channel import Channel, Region
from adapter.triton.spec import EntrySpec
from adapter.triton.worker import Worker

Rows = Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1, -1))]


class Keeping(adapter.Runnable):
    """Keeps what it is given, and changes it."""

    def __init__(self) -> None:
        self.kept: list[Array] = []

    @adapter.Runnable.method(batchable=True)
    def keep(self, x: Rows) -> Rows:
        self.kept.append(x)
        x += 1
        return x


def _methods() -> dict[str, MethodSpec]:
    return methods_of(Keeping, lambda _: BatchingConfig(max_batch_size=8))


class Ends:
    """A worker, and the regions as its stub has them: that of the channel, and the one that is shared with Triton."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.regions = [Region.create("test-requests"), Region.create("test-triton")]
        self.stub = Channel(ours, self.regions[0], Region.create("test-results"))
        read = [Region(region.fd, read=True) for region in self.regions]
        channel = Channel(theirs, out=Region(self.stub.into.fd), into=read[0])
        spec = EntrySpec("keeping.r", "0", "3", typed=True, batched=True, methods=[])
        self.runnable = Keeping()
        self.worker = Worker(self.runnable, _methods(), spec, channel, read)

    def call(self, *placed: tuple[int, int, Array]) -> list[Any]:
        """Answer a batch whose arrays lie in a region, at a place."""
        header = []
        for region, start, array in placed:
            self.regions[region].grow(start + array.nbytes)
            self.regions[region].memory[start : start + array.nbytes] = array.tobytes()
            header.append(["keep", "", "id", [["FP32", list(array.shape), region, start]]])
        self.worker._send(self.worker.answer(header))
        answers = []
        for status, *rest in self.stub.receive():
            if status:
                answers.append((status, *rest))
                continue
            (((dtype, shape, size, start),),) = rest
            self.stub.into.reach(start + size)
            assert dtype == "FP32"
            answers.append(np.frombuffer(self.stub.into.memory, np.float32, size // 4, start).reshape(shape).copy())
        return answers


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.stub.close()
    made.worker._channel.sock.close()


@pytest.mark.parametrize("rows", [1, 300_000])
@pytest.mark.parametrize("region", [0, 1])
def test_arguments_are_read_where_they_lie(ends: Ends, region: int, rows: int) -> None:
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)[:1]
    (answer,) = ends.call((region, 64, x))
    np.testing.assert_array_equal(answer, x + 1)
    x = np.arange(rows, dtype=np.float32).reshape(1, rows)
    (answer,) = ends.call((region, 1_000_000, x))
    np.testing.assert_array_equal(answer, x + 1)


def test_arguments_of_one_batch_lie_in_both_regions(ends: Ends) -> None:
    one, other = np.array([[1, 2]], np.float32), np.array([[3, 4], [5, 6]], np.float32)
    answers = ends.call((0, 0, one), (1, 128, other), (1, 0, one))
    for answer, x in zip(answers, (one, other, one), strict=True):
        np.testing.assert_array_equal(answer, x + 1)
    assert [x.shape for x in ends.runnable.kept] == [(4, 2)], "they ran as one"


def test_argument_that_is_kept_and_changed_is_not_seen_in_shared_memory(ends: Ends) -> None:
    x = np.full((1, 100_000), 7, np.float32)
    ends.call((1, 0, x))
    assert ends.regions[1].memory[: x.nbytes] == x.tobytes()
    ends.call((1, 0, np.zeros_like(x)))
    np.testing.assert_array_equal(ends.runnable.kept[0], x + 1)


def test_argument_of_another_size_than_is_there_is_refused(ends: Ends) -> None:
    header = [["keep", "", "id", [["FP32", [1, 1 << 40], 1, 0]]]]
    ends.worker._send(ends.worker.answer(header))
    ((status, kind, message),) = ends.stub.receive()
    assert (status, kind) == (500, "RemoteException")
    assert "too small" in message
    np.testing.assert_array_equal(ends.call((0, 0, np.zeros((1, 1), np.float32)))[0], [[1.0]])

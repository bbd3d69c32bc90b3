"""User code in the stub: what is copied of arguments and results, and what an error is told as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
import pytest

import adapter
from adapter import payload
from adapter.exceptions import NotFound
from adapter.method import methods_of
from adapter.model import BatchingConfig
from adapter.tensor import Array
from adapter.triton.in_stub import InStub, _Answering
from adapter.triton.spec import EntrySpec
from adapter.triton.stub_metrics import StubMetrics

Rows = Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1, -1))]


class Keeping(adapter.Runnable):
    """Keeps what it is given and what it gives."""

    def __init__(self) -> None:
        self.given: list[Array] = []
        self.result: Any = None

    @adapter.Runnable.method(batchable=True)
    def keep(self, x: Rows) -> Rows:
        if (x < 0).any():
            raise NotFound("no such rows")
        self.given.append(x)
        x += 1
        self.result = x * 2
        return cast(Rows, self.result)


def _in_stub(runnable: adapter.Runnable, *, typed: bool) -> InStub:
    spec = EntrySpec("keeping.r", "0", "3", typed=typed, batched=True, methods=[], isolated=False)
    made = InStub(Path(), spec, {}, cast(StubMetrics, None))
    methods = methods_of(type(runnable), lambda _: BatchingConfig(max_batch_size=8))
    made._answering = _Answering(runnable, methods, spec)
    return made


def _request(array: Array, dtype: str = "FP32") -> list[Any]:
    return ["keep", "", "id", [(dtype, list(array.shape), array.ctypes.data, array.nbytes)]]


@pytest.mark.parametrize("length", [0, 3, 100_000])
def test_argument_is_copied_and_result_is_where_the_method_left_it(length: int) -> None:
    runnable, x = Keeping(), np.full((8, length), 7, np.float32)
    ((status, tensors),) = _in_stub(runnable, typed=True).run([_request(x)])
    ((dtype, shape, address, owner),) = tensors
    assert (status, dtype, shape) == (0, "FP32", (8, length))
    assert address == runnable.result.ctypes.data
    assert np.shares_memory(owner, runnable.result) or not length
    assert (x == 7).all()
    x[:] = 0
    assert (runnable.given[0] == 8).all()
    assert (runnable.result == 16).all()


def test_calls_of_a_batch_run_as_one_and_an_error_is_its_own_calls() -> None:
    runnable = Keeping()
    made = _in_stub(runnable, typed=True)
    one, bad, other = (np.full((n, 2), value, np.float32) for n, value in ((1, 1), (1, -1), (2, 3)))
    replies = made.run([_request(x) for x in (one, other)])
    assert [given.shape for given in runnable.given] == [(3, 2)]
    assert [tensors[0][3].tolist() for _, tensors in replies] == [[[4, 4]], [[8, 8], [8, 8]]]
    first, refused, last = made.run([_request(x) for x in (one, bad, other)])
    assert tuple(refused) == (404, "NotFound", "no such rows")
    assert [tensors[0][3].tolist() for _, tensors in (first, last)] == [[[4, 4]], [[8, 8], [8, 8]]]


def test_blob_comes_and_goes_as_one_tensor() -> None:
    blob = np.frombuffer(payload.encode(((np.ones((1, 2), np.float32),), {})), np.uint8)[None]
    ((status, tensors),) = _in_stub(Keeping(), typed=False).run([_request(blob, "UINT8")])
    ((dtype, shape, address, owner),) = tensors
    assert (status, dtype, shape, address) == (0, "UINT8", (1, owner.size), owner.ctypes.data)
    assert payload.decode(owner.tobytes()).tolist() == [[4, 4]]

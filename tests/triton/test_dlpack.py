from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from adapter.tensor import triton_dtype
from adapter.triton import dlpack
from adapter.triton.dlpack import read_dlpack, write_dlpack

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
]


class _Tensor:
    """What Triton's stub is to numpy: something with a capsule."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3), (1, 2, 3, 4, 5)])
def test_capsule_of_numpy_is_read_and_ours_is_read_by_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    name = triton_dtype(array.dtype)
    assert name is not None
    assert read_dlpack(array.__dlpack__())[:2] == (name, list(shape))
    if array.nbytes:
        assert read_dlpack(array.__dlpack__())[2:] == (array.ctypes.data, array.nbytes)
    found = np.from_dlpack(_Tensor(write_dlpack(name, shape, array.ctypes.data, array)))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_owner_is_kept_until_the_capsule_is_let_go_of() -> None:
    array = np.arange(4.0)
    kept = weakref.ref(array)
    found = np.from_dlpack(_Tensor(write_dlpack("FP64", [4], array.ctypes.data, array)))
    del array
    gc.collect()
    assert kept() is not None
    np.testing.assert_array_equal(found, [0.0, 1.0, 2.0, 3.0])
    before = len(dlpack._alive)
    del found
    gc.collect()
    assert kept() is None
    assert len(dlpack._alive) == before - 1


def test_capsule_of_another_name_is_refused() -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    with pytest.raises(ValueError, match="incorrect name"):
        read_dlpack(new(1, b"other", None))

"""Tensors read and written by address, through DLPack capsules.

numpy is not needed for that, and under NumPy 2 the conversion of Triton 2.51's own stub gives wrong data.
Source: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from typing import Any

# DLTensor: data, device (kind, number), axes, data type (code, bits, lanes), shape, strides, offset of the data
_TENSOR = struct.Struct("=QiiiBBHQQQ")
# DLManagedTensor: that, and whose it is, and what is called when it is let go of
_MANAGED = struct.Struct(f"={_TENSOR.size}sQQ")
_CPU = (1, 0)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_CAPSULE_NAME = b"dltensor"
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_TYPE_OF = {
    "BOOL": (6, 8),
    "INT8": (0, 8),
    "INT16": (0, 16),
    "INT32": (0, 32),
    "INT64": (0, 64),
    "UINT8": (1, 8),
    "UINT16": (1, 16),
    "UINT32": (1, 32),
    "UINT64": (1, 64),
    "FP16": (2, 16),
    "FP32": (2, 32),
    "FP64": (2, 64),
}
_NAME_OF = {kind: name for name, kind in _TYPE_OF.items()}
_Found = ctypes.c_char * _TENSOR.size
_Lengths = [ctypes.c_int64 * axes for axes in range(65)]
_alive: dict[int, tuple[Any, Any]] = {}


def _forget(address: int) -> None:
    _alive.pop(address, None)


_release = _Deleter(_forget)
_release_address = ctypes.cast(_release, ctypes.c_void_p).value or 0


def read_dlpack(capsule: Any) -> tuple[str, list[int], int, int]:
    """Triton's data type, the shape, the address and the bytes of a contiguous tensor in a capsule that stays whole."""
    found = _Found.from_address(_pointer_of(capsule, _CAPSULE_NAME))
    data, _, _, axes, code, bits, _, lengths, _, offset = _TENSOR.unpack_from(found)
    shape = _Lengths[axes].from_address(lengths)[:]
    return _NAME_OF[code, bits], shape, data + offset, math.prod(shape) * bits // 8


def write_dlpack(dtype: str, shape: Sequence[int], address: int, owner: Any) -> Any:
    """A capsule for a tensor at an address; `owner` is kept until Triton has let go of it."""
    axes = len(shape)
    memory = ctypes.create_string_buffer(_MANAGED.size + 8 * axes)
    where = ctypes.addressof(memory)
    tensor = _TENSOR.pack(address, *_CPU, axes, *_TYPE_OF[dtype], 1, where + _MANAGED.size, 0, 0)
    memory.raw = _MANAGED.pack(tensor, 0, _release_address) + bytes(_Lengths[axes](*shape))
    _alive[where] = memory, owner
    # no destructor of the capsule's own: Triton's stub calls the deleter, and Python code must not run under both
    return _new_capsule(where, _CAPSULE_NAME, None)

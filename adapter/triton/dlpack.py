"""Tensors read and written by address, through DLPack capsules.

numpy is not needed for that, and under NumPy 2 the conversion of Triton 2.51's own stub gives wrong data.
Source: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_CAPSULE_NAME = b"dltensor"
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)

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
_alive: dict[int, tuple[Any, ...]] = {}


def _forget(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_forget)


def read_dlpack(capsule: Any) -> tuple[str, list[int], int, int]:
    """Triton's data type, the shape, the address and the bytes of a contiguous tensor in a capsule that stays whole."""
    managed = ctypes.cast(_pointer_of(capsule, _CAPSULE_NAME), ctypes.POINTER(_ManagedTensor)).contents
    tensor = managed.tensor
    shape = [tensor.shape[i] for i in range(tensor.ndim)]
    count = 1
    for length in shape:
        count *= length
    address = (tensor.data or 0) + tensor.byte_offset
    return _NAME_OF[tensor.dtype.code, tensor.dtype.bits], shape, address, count * tensor.dtype.bits // 8


def write_dlpack(dtype: str, shape: Sequence[int], address: int, owner: Any) -> Any:
    """A capsule for a tensor at an address; `owner` is kept until Triton has let go of it."""
    managed = _ManagedTensor()
    extents = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    managed.tensor.data = address
    managed.tensor.device = _Device(1, 0)  # the CPU
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _DataType(*_TYPE_OF[dtype], 1)
    managed.tensor.shape = ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _release
    where = ctypes.addressof(managed)
    _alive[where] = (managed, extents, owner)
    # no destructor of the capsule's own: Triton's stub calls the deleter, and Python code must not run under both
    return _new_capsule(where, _CAPSULE_NAME, None)

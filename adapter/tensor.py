"""Tensors: their specifications, the data types of numpy and Triton, and the batch axis."""

from __future__ import annotations

import itertools
import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter.exceptions import InvalidArgument

Array = npt.NDArray[Any]

# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md#datatypes
_TRITON_OF_NUMPY = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_NUMPY_OF_TRITON = {triton: np.dtype(name) for name, triton in _TRITON_OF_NUMPY.items()}
_TRITON_OF_DTYPE: dict[Any, str] = {
    dtype: triton for triton, dtype in _NUMPY_OF_TRITON.items()
}  # numpy is slow to name


def triton_dtype(dtype: npt.DTypeLike) -> str | None:
    """Triton's name of a numpy data type (`float32` is `FP32`), None where Triton has none."""
    return _TRITON_OF_DTYPE.get(dtype) or _TRITON_OF_NUMPY.get(np.dtype(dtype).name)


def numpy_dtype(triton: str) -> np.dtype[Any]:
    """The numpy data type of one of Triton's (`FP32` is `float32`)."""
    return _NUMPY_OF_TRITON[triton]


@dataclass(frozen=True)
class TensorSpec:
    """The data type and the shape of one tensor; -1 stands for any length of an axis, the batch axis included.

    >>> TensorSpec("float32", (-1, 4), name="X")
    TensorSpec(dtype='float32', shape=(-1, 4), name='X')
    """

    dtype: str
    shape: tuple[int, ...]
    name: str = ""

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise InvalidArgument(f"{self.dtype!r} is not a numpy data type such as 'float32'.") from error
        # numpy cannot read its own name of a string type with a length ("str160"), so strings are of any length
        object.__setattr__(self, "dtype", {"U": "str", "S": "bytes"}.get(dtype.kind, dtype.name))
        try:
            shape = tuple(operator.index(n) for n in self.shape)
        except TypeError as error:
            raise InvalidArgument(f"{self.shape!r} is not a shape such as (-1, 4), where -1 is any length.") from error
        if any(n < -1 for n in shape):
            raise InvalidArgument(f"The shape {shape} has a negative length; -1 alone stands for any length.")
        object.__setattr__(self, "shape", shape)

    @classmethod
    def of(
        cls, spec: TensorSpec | Array | Sequence[Any], name: str = "", *, batch_dim: int | None = None
    ) -> TensorSpec:
        """Read a spec, a `(dtype, shape)` pair, or a sample array, whose batch axis (if any) may have any length."""
        if isinstance(spec, TensorSpec):
            return spec if spec.name else replace(spec, name=name)
        if isinstance(spec, np.ndarray):
            shape = list(spec.shape)
            if batch_dim is not None and spec.ndim:
                if batch_dim >= spec.ndim:
                    raise InvalidArgument(f"A sample of shape {spec.shape} has no axis {batch_dim} for the batch.")
                shape[batch_dim] = -1
            return cls(spec.dtype.str, tuple(shape), name)
        if isinstance(spec, (tuple, list)) and len(spec) == 2:
            return cls(spec[0], spec[1], name)
        raise InvalidArgument(
            f"{spec!r} does not describe a tensor: give adapter.TensorSpec('float32', (-1, 4)), a pair "
            "('float32', (-1, 4)) or a sample array."
        )

    @property
    def triton(self) -> str | None:
        """Triton's name of the data type, None where Triton has none (strings travel as a blob)."""
        return triton_dtype(self.dtype)

    def cast(self, value: Any) -> Array:
        """Return `value` as an array of this data type and shape, or raise InvalidArgument that says what differs.

        Data types are cast where each value stays what it is, but for rounding: see `cast`.
        """
        wanted = self._numpy
        if type(value) is np.ndarray and value.dtype == wanted and self._fits(value.shape):
            return value
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidArgument(f"{self._subject} is ragged: {error}") from error
        fitting = cast(array, wanted)
        if fitting is None:
            # numpy makes texts of all values where one is a text
            values = np.asarray(value, dtype=object) if array.dtype.kind == "U" else array
            raise InvalidArgument(
                f"{self._subject} takes an array of {self.dtype}, which {_first_misfit(values, wanted)} does not fit."
            )
        array = fitting
        if not self._fits(array.shape):
            raise InvalidArgument(
                f"{self._subject} takes an array of shape {self.shape} (-1: any length), but {array.shape} came."
            )
        return array

    @cached_property
    def _numpy(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @cached_property
    def _fixed(self) -> tuple[tuple[int, int], ...]:
        """The axes whose length is not free, with their lengths."""
        return tuple((axis, length) for axis, length in enumerate(self.shape) if length != -1)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != len(self.shape):
            return False
        for axis, length in self._fixed:  # noqa: SIM110  # a generator would cost more than all of this
            if shape[axis] != length:
                return False
        return True

    @property
    def _subject(self) -> str:
        return f"The tensor {self.name!r}" if self.name else "The tensor"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TensorSpec:
        return cls(record["dtype"], tuple(record["shape"]), record["name"])


def cast(array: Array, wanted: np.dtype[Any]) -> Array | None:
    """The array in another data type where each value stays what it is, but for rounding; None where one would not.

    By value and not by data type, since Python and JSON have neither unsigned nor small numbers, and JSON writes 1.0 as
    1. Rounding is what a float cannot hold exactly, never an overflow to infinity. A text is no number.
    """
    if array.dtype == wanted:
        return array
    if array.size == 0 or np.can_cast(array.dtype, wanted, casting="safe"):
        return array.astype(wanted)
    have, want = array.dtype.kind, wanted.kind
    if have in "iuf" and want in "fc":
        return _astype(array, wanted)
    if have in "iuf" and want in "iu":
        limits = np.iinfo(wanted)
        fits = limits.min <= array.min().item() and array.max().item() <= limits.max
        return array.astype(wanted) if fits and (have != "f" or (array == np.trunc(array)).all()) else None
    if have in "iufc" and want == "b":
        return array.astype(wanted) if ((array == 0) | (array == 1)).all() else None
    if have == "O":
        inferred = infer(array)
        return None if inferred.dtype == object else cast(inferred, wanted)
    if have == "U":
        return None  # numpy would cut a text that is too long
    return _astype(array, wanted) if np.can_cast(array.dtype, wanted, casting="same_kind") else None


def infer(array: Array) -> Array:
    """An array of objects in the data type that its values have, as it is where they have no common one."""
    try:
        return np.array(array.tolist())
    except ValueError:
        return array


def _astype(array: Array, wanted: np.dtype[Any]) -> Array | None:
    try:
        with np.errstate(over="raise"):
            return array.astype(wanted)
    except (ValueError, OverflowError, FloatingPointError):
        return None


def _first_misfit(array: Array, wanted: np.dtype[Any]) -> str:
    """The first value that `cast` refuses, found by halving, so that it costs no more than a few casts."""
    rest = array.ravel()
    while rest.size > 1:
        half = rest[: rest.size // 2]
        rest = half if cast(half, wanted) is None else rest[half.size :]
    # numpy's own times print as dates, and as a bare count from tolist
    return str(rest[0]) if array.dtype.kind in "Mm" else reprlib.repr(rest.tolist()[0])


def to_front(array: Array, axis: int) -> Array:
    """The array with its batch axis first, as Triton wants it."""
    return array if axis == 0 else np.ascontiguousarray(np.moveaxis(array, axis, 0))


def from_front(array: Array, axis: int) -> Array:
    """The array with its first axis put back where the method expects the batch."""
    return array if axis == 0 else np.ascontiguousarray(np.moveaxis(array, 0, axis))


def concat(arrays: Sequence[Array], axis: int) -> Array:
    return np.concatenate(arrays, axis=axis)


def split(array: Array, sizes: Sequence[int], axis: int) -> list[Array]:
    """Cut an array into pieces of `sizes` along an axis."""
    before = (slice(None),) * axis
    cuts = [(*before, slice(end - size, end)) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    return [array[cut] for cut in cuts]

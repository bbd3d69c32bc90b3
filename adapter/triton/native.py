"""Entries of Triton's own backends: their tensors, and how a method's arguments and results become these and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument, PayloadTypeError, RemoteException
from adapter.method import MethodSpec
from adapter.tensor import Array, cast, numpy_dtype

VALUES, CLASSES, PAIR = "values", "classes", "pair"


@dataclass(frozen=True)
class NativeTensor:
    """A tensor as `config.pbtxt` has it: its name there, Triton's data type, and its `dims`.

    With `scalar` the model itself has no axis beside the batch, which `dims` cannot say.
    `meaning` is that of an output: the method's own values, the index of a class, or the second of two probabilities.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    scalar: bool = False
    meaning: str = VALUES


@dataclass(frozen=True)
class Native:
    """How a backend of Triton's own serves one method: what its configuration says, and what the client must know.

    The tensors are those of the method in their order; `max_batch_size` is 0 where `dims` are whole shapes. `classes`
    are the labels of a classifier whose model answers their indices, `columns` the names that a data frame must have.
    With `finite` the model does not take NaN, to which the backend would give some answer.
    """

    backend: str
    inputs: tuple[NativeTensor, ...]
    outputs: tuple[NativeTensor, ...]
    platform: str = ""
    file: str = ""
    kind: str = ""
    max_batch_size: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()
    finite: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Native:
        def tensors(key: str) -> tuple[NativeTensor, ...]:
            return tuple(NativeTensor(**{**t, "dims": tuple(t["dims"])}) for t in record[key])

        more = {"classes": tuple(record["classes"]), "columns": tuple(record["columns"])}
        return cls(**{**record, "inputs": tensors("inputs"), "outputs": tensors("outputs"), **more})


def to_native(native: Native, method: MethodSpec, arrays: Sequence[Array], extra: Mapping[str, Any]) -> list[Array]:
    """The arrays of a packed call as the backend wants them; `extra` is what the call carries beside them.

    Raises InvalidArgument for a data frame with other columns, for a number that the backend's data type does not hold,
    and for NaN where the model takes none, PayloadTypeError for arguments beside the tensors.
    """
    if extra.get("kwargs"):
        raise PayloadTypeError(
            f"{method.name}() is served by Triton's {native.backend} backend, which takes tensors alone: leave out "
            f"{', '.join(extra['kwargs'])}, or export without `--backends {native.backend}`."
        )
    for name, columns in extra.get("columns", {}).items():
        if native.columns and tuple(map(str, columns)) != native.columns:
            raise InvalidArgument(
                f"{name} of {method.name}() has the columns {', '.join(map(str, columns))}, but the model was fitted "
                f"with {', '.join(native.columns)}."
            )
    if native.finite:
        for spec, array in zip(method.inputs, arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InvalidArgument(
                    f"{spec.name} of {method.name}() has NaN or infinite numbers, which the model refuses."
                )
    return [_sent(t, s.name, a) for t, s, a in zip(native.inputs, method.inputs, arrays, strict=True)]


def _sent(tensor: NativeTensor, name: str, array: Array) -> Array:
    found = cast(array, numpy_dtype(tensor.dtype))
    if found is None:
        raise InvalidArgument(f"The tensor {name!r} has a number that does not fit {tensor.dtype}, which Triton takes.")
    return np.ascontiguousarray(found)


def from_native(native: Native, method: MethodSpec, arrays: Sequence[Array]) -> list[Array]:
    """What the backend answered as the method's own tensors on the wire: their data types, shapes and labels.

    Raises RemoteException where an answer cannot be that.
    """
    found = []
    for tensor, spec, array in zip(native.outputs, method.outputs, arrays, strict=True):
        shape = method.wire_shape(spec, method.signature.batch_dim[1])
        try:
            values = _meant(native, tensor, array)
            # the batch, if any, is the first axis; the others are those of the signature, where it says them
            if values.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, values.shape, strict=True)):
                first = array.shape[:1] if shape[:1] == (-1,) else shape[:1]
                values = values.reshape((*first, *shape[1:]))
            found.append(values.astype(spec.dtype, copy=False))
        except (ValueError, IndexError) as error:
            raise RemoteException(
                f"Triton's {native.backend} backend answered {tensor.name} of shape {array.shape}, which is not what "
                f"{method.name}() returns: {error}."
            ) from error
    return found


def _meant(native: Native, tensor: NativeTensor, array: Array) -> Array:
    if tensor.meaning == CLASSES:
        return np.asarray(native.classes)[array.astype(np.int64)]
    if tensor.meaning == PAIR:
        second = array.reshape(array.shape[0])
        return np.stack([1 - second, second], axis=1)
    return array

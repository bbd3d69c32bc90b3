"""Python values as bytes and tensors, for both ends of the wire; pickle is never used.

A value becomes one blob: `ADP1`, the length of a JSON header (uint32, little endian), the header, and raw buffers that
begin at multiples of 64 bytes. In the header plain JSON values stand for themselves and everything else is an object
with one key that names its kind:

    {"t": […]} tuple   {"d": {…}} dict with string keys   {"m": [[k, v], …]} other dict   {"f": "nan"} non-finite float
    {"b": i} bytes     {"a": [i, dtype, shape]} array     {"o": [shape, […]]} object array   {"g": [i, dtype]} scalar
    {"S": …} Series    {"D": …} DataFrame                 {"I": …} PIL image                 {"T": …} torch tensor

`i` is the index of a buffer. A dataclass or a pydantic model travels as a dict; `rebuild` makes it anew from the
annotation of the parameter that receives it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union

import numpy as np

from adapter.exceptions import InvalidArgument, PayloadTypeError

Buffer = bytes | bytearray | memoryview
Node = Any

MAGIC = b"ADP1"
_HEAD = struct.Struct("<4sI")
_ALIGNMENT = 64
_ARRAY_KINDS = "biufcUSMm"
_TYPES = (
    "None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays and scalars, pandas DataFrame and Series, "
    "PIL images, torch tensors, dataclasses and pydantic models"
)


def encode(value: Any) -> bytes:
    """Write a value as one blob; PayloadTypeError names the type that cannot travel and what can."""
    return b"".join(encode_parts(value))


def encode_parts(value: Any) -> list[Buffer]:
    """The blob of `encode` in pieces, so that large arrays are copied once, into their destination."""
    buffers: list[Buffer] = []
    try:
        node = _encode(value, buffers)
        header = json.dumps([node, [len(b) for b in buffers]], separators=(",", ":"), allow_nan=False).encode()
    except RecursionError as error:
        raise PayloadTypeError("A value that contains itself, or is nested too deeply, cannot be sent.") from error
    parts: list[Buffer] = [_HEAD.pack(MAGIC, len(header)), header]
    position = _HEAD.size + len(header)
    for buffer in buffers:
        gap = -position % _ALIGNMENT
        parts += (bytes(gap), buffer)
        position += gap + len(buffer)
    return parts


def decode(blob: Buffer) -> Any:
    """Read a value back; its arrays are writable and share the blob's memory only where that is a bytearray."""
    memory = memoryview(blob if isinstance(blob, bytearray) else bytearray(blob))
    try:
        magic, length = _HEAD.unpack_from(memory)
        if magic != MAGIC:
            raise ValueError(f"it begins with {bytes(memory[:4])!r}")
        position = _HEAD.size + length
        node, sizes = json.loads(bytes(memory[_HEAD.size : position]))
        buffers = []
        for size in sizes:
            position += -position % _ALIGNMENT
            if not 0 <= size <= len(memory) - position:
                raise ValueError("it is cut short")
            buffers.append(memory[position : position + size])
            position += size
        return _decode(node, buffers)
    except (ValueError, TypeError, KeyError, IndexError, struct.error, RecursionError, AttributeError) as error:
        raise InvalidArgument(f"These {len(memory)} bytes are not a value that adapter wrote: {error}.") from error


# ---- writing ----------------------------------------------------------------------------------------------------


def _encode(value: Any, buffers: list[Buffer]) -> Node:
    writer = _WRITERS.get(type(value))
    if writer is not None:
        return writer(value, buffers)
    if value is None or value is True or value is False:
        return value
    for kind, write in _FAMILIES:
        if isinstance(value, kind):
            return write(value, buffers)
    for module, name, write in _OPTIONAL:
        library = sys.modules.get(module)  # a value of a library that was never imported cannot be at hand
        if library is not None and isinstance(value, getattr(library, name)):
            return write(value, buffers)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"d": {f.name: _encode(getattr(value, f.name), buffers) for f in dataclasses.fields(value)}}
    if _is_pydantic(type(value)):
        return _encode_pydantic(value, buffers)
    raise PayloadTypeError(
        f"A value of type {type(value).__module__}.{type(value).__qualname__} cannot be sent to or from a runner; "
        f"these can: {_TYPES}."
    )


def _float(value: float, _: list[Buffer]) -> Node:
    return value if math.isfinite(value) else {"f": repr(value)}


def _list(value: list[Any], buffers: list[Buffer]) -> Node:
    return [_encode(item, buffers) for item in value]


def _tuple(value: tuple[Any, ...], buffers: list[Buffer]) -> Node:
    return {"t": [_encode(item, buffers) for item in value]}


def _dict(value: Mapping[Any, Any], buffers: list[Buffer]) -> Node:
    if all(type(key) is str for key in value):
        return {"d": {key: _encode(item, buffers) for key, item in value.items()}}
    return {"m": [[_encode(key, buffers), _encode(item, buffers)] for key, item in value.items()]}


def _bytes(value: Buffer, buffers: list[Buffer]) -> Node:
    buffers.append(bytes(value))
    return {"b": len(buffers) - 1}


def _array(value: np.ndarray[Any, Any], buffers: list[Buffer]) -> Node:
    if isinstance(value, np.ma.MaskedArray):
        raise PayloadTypeError("A masked array cannot be sent to or from a runner: send .filled(…), or data and mask.")
    if value.dtype.kind in "OT":  # objects, and numpy's variable-width strings
        return {"o": [list(value.shape), [_encode(item, buffers) for item in value.astype(object).ravel().tolist()]]}
    if value.dtype.kind not in _ARRAY_KINDS:
        raise PayloadTypeError(f"An array of data type {value.dtype} cannot be sent to or from a runner.")
    shape = list(value.shape)
    buffers.append(_raw(value))
    return {"a": [len(buffers) - 1, value.dtype.str, shape]}


def _raw(value: np.ndarray[Any, Any]) -> Buffer:
    if not value.size:
        return b""
    flat = np.ascontiguousarray(value)
    # datetime64 and unicode have no buffer protocol of their own
    return flat.reshape(-1).view(np.uint8).data if flat.dtype.itemsize else b""


def _scalar(value: np.generic, buffers: list[Buffer]) -> Node:
    if value.dtype.kind not in _ARRAY_KINDS:
        raise PayloadTypeError(f"A numpy scalar of data type {value.dtype} cannot be sent to or from a runner.")
    buffers.append(value.tobytes())
    return {"g": [len(buffers) - 1, value.dtype.str]}


def _encode_pydantic(value: Any, buffers: list[Buffer]) -> Node:
    if getattr(type(value), "__pydantic_root_model__", False):
        return _encode(value.root, buffers)
    start = len(buffers)
    fields = {_key(name, field): getattr(value, name) for name, field in type(value).model_fields.items()}
    try:
        return _dict({**fields, **(value.model_extra or {})}, buffers)
    except PayloadTypeError:  # a datetime, an enum, a set …: pydantic knows how to write and to read them
        del buffers[start:]
        return _encode(value.model_dump(mode="json", by_alias=True), buffers)


def _key(name: str, field: Any) -> str:
    alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
    return alias or name


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate")


def _column(values: Any, buffers: list[Buffer]) -> Node:
    """One column or index of pandas: [how, data, …]."""
    dtype = values.dtype
    name = type(dtype).__name__
    if name == "CategoricalDtype":
        parts = values.array
        codes = _array(np.asarray(parts.codes), buffers)
        return ["category", codes, _column(parts.categories, buffers), bool(parts.ordered)]
    if name == "DatetimeTZDtype":
        plain = values.array.tz_convert("UTC").tz_localize(None)
        return ["zoned", _array(np.asarray(plain), buffers), str(dtype)]
    if isinstance(dtype, np.dtype):
        return ["numpy", _array(values.to_numpy(), buffers)]
    missing = values.isna()
    plain = [None if gone else item for item, gone in zip(values.tolist(), missing.tolist(), strict=True)]
    return ["extension", _encode(plain, buffers), str(dtype)]


def _index(index: Any, buffers: list[Buffer]) -> Node:
    kind = type(index).__name__
    if kind == "RangeIndex":
        return ["range", [index.start, index.stop, index.step], _encode(index.name, buffers)]
    if kind == "MultiIndex":
        levels = [_index(index.get_level_values(i), buffers) for i in range(index.nlevels)]
        return ["multi", levels, _encode(list(index.names), buffers)]
    return ["plain", _column(index, buffers), _encode(index.name, buffers)]


def _series(value: Any, buffers: list[Buffer]) -> Node:
    return {"S": [_column(value, buffers), _index(value.index, buffers), _encode(value.name, buffers)]}


def _frame(value: Any, buffers: list[Buffer]) -> Node:
    columns, index = _index(value.columns, buffers), _index(value.index, buffers)
    kinds = {str(dtype) for dtype in value.dtypes}
    if len(kinds) == 1 and isinstance(value.dtypes.iloc[0], np.dtype):
        return {"D": ["block", _array(value.to_numpy(), buffers), columns, index]}
    cells = [_column(value.iloc[:, i], buffers) for i in range(value.shape[1])]
    return {"D": ["columns", cells, columns, index]}


def _image(value: Any, buffers: list[Buffer]) -> Node:
    palette = value.getpalette("RGBA") if value.mode == "P" else None
    buffers.append(value.tobytes())
    return {"I": [len(buffers) - 1, value.mode, list(value.size), palette]}


def _tensor(value: Any, buffers: list[Buffer]) -> Node:
    plain = value.detach().cpu().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    if name == "bfloat16":  # unknown to numpy: its 16 bits travel as int16
        plain = plain.view(sys.modules["torch"].int16)
    return {"T": [_array(plain.numpy(), buffers), name]}


def _plain(value: Any, _: list[Buffer]) -> Node:
    return value


_Writer = Callable[[Any, list[Buffer]], Node]
_WRITERS: dict[type, _Writer] = {
    int: _plain,
    str: _plain,
    float: _float,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    np.ndarray: _array,
}
# numpy's float64 is a float and its str_ a str, so numpy's scalars come before Python's own families
_FAMILIES: list[tuple[type, _Writer]] = [
    (np.ndarray, _array),
    (np.generic, _scalar),
    (tuple, _tuple),
    (list, _list),
    (dict, _dict),
]
_OPTIONAL: list[tuple[str, str, _Writer]] = [
    ("pandas", "DataFrame", _frame),
    ("pandas", "Series", _series),
    ("PIL.Image", "Image", _image),
    ("torch", "Tensor", _tensor),
]


# ---- reading ----------------------------------------------------------------------------------------------------


def _decode(node: Node, buffers: Sequence[memoryview]) -> Any:
    if isinstance(node, list):
        return [_decode(item, buffers) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    return _READERS[kind](body, buffers)


def _read_array(body: Node, buffers: Sequence[memoryview]) -> Any:
    index, name, shape = body
    dtype = np.dtype(name)
    if dtype.kind not in _ARRAY_KINDS:
        raise ValueError(f"it has an array of data type {dtype}")
    if not len(buffers[index]):
        return np.zeros(shape, dtype)
    return np.frombuffer(buffers[index], dtype).reshape(shape)


def _read_objects(body: Node, buffers: Sequence[memoryview]) -> Any:
    shape, items = body
    flat: np.ndarray[Any, Any] = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        flat[i] = _decode(item, buffers)
    return np.reshape(flat, shape)


def _read_scalar(body: Node, buffers: Sequence[memoryview]) -> Any:
    array = _read_array([body[0], body[1], []], buffers)
    return array[()]


# The readers below import pandas, PIL and torch when such a value has come: a worker need not have them otherwise.


def _read_column(node: Node, buffers: Sequence[memoryview]) -> Any:
    import pandas as pd

    how, data = node[0], node[1]
    if how == "numpy":
        return _decode(data, buffers)
    if how == "category":
        return pd.Categorical.from_codes(
            _decode(data, buffers), categories=pd.Index(_read_column(node[2], buffers)), ordered=node[3]
        )
    if how == "zoned":
        return pd.Series(_decode(data, buffers)).dt.tz_localize("UTC").astype(node[2]).array
    if how == "extension":
        return pd.array(_decode(data, buffers), dtype=node[2])
    raise ValueError(f"it has a column of kind {how!r}")


def _read_index(node: Node, buffers: Sequence[memoryview]) -> Any:
    import pandas as pd

    how, data, name = node
    if how == "range":
        return pd.RangeIndex(data[0], data[1], data[2], name=_decode(name, buffers))
    if how == "multi":
        return pd.MultiIndex.from_arrays([_read_index(level, buffers) for level in data], names=_decode(name, buffers))
    values = _read_column(data, buffers)
    dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
    return pd.Index(values, name=_decode(name, buffers), dtype=dtype)


def _read_series(body: Node, buffers: Sequence[memoryview]) -> Any:
    import pandas as pd

    values = _read_column(body[0], buffers)
    return pd.Series(
        values, index=_read_index(body[1], buffers), name=_decode(body[2], buffers), dtype=_dtype_of(values), copy=False
    )


def _read_frame(body: Node, buffers: Sequence[memoryview]) -> Any:
    import pandas as pd

    how, data, columns, index = body
    labels, rows = _read_index(columns, buffers), _read_index(index, buffers)
    if how == "block":
        block = _decode(data, buffers)
        return pd.DataFrame(block, columns=labels, index=rows, dtype=_dtype_of(block), copy=False)
    cells = [_read_column(cell, buffers) for cell in data]
    frame = pd.DataFrame({i: pd.Series(c, index=rows, dtype=_dtype_of(c)) for i, c in enumerate(cells)}, index=rows)
    frame.columns = labels
    return frame


def _dtype_of(values: Any) -> Any:
    """Keep object columns as they were: pandas 3 would turn strings in them into its own type."""
    return object if values.dtype == object else None


def _read_image(body: Node, buffers: Sequence[memoryview]) -> Any:
    from PIL import Image

    index, mode, size, palette = body
    image = Image.frombytes(mode, tuple(size), bytes(buffers[index]))
    if palette:
        image.putpalette(palette, "RGBA")
    return image


def _read_tensor(body: Node, buffers: Sequence[memoryview]) -> Any:
    import torch

    array, name = body
    tensor = torch.from_numpy(_decode(array, buffers))
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


_READERS: dict[str, Callable[[Node, Sequence[memoryview]], Any]] = {
    "t": lambda body, buffers: tuple(_decode(item, buffers) for item in body),
    "d": lambda body, buffers: {key: _decode(item, buffers) for key, item in body.items()},
    "m": lambda body, buffers: {_decode(key, buffers): _decode(item, buffers) for key, item in body},
    "f": lambda body, _: float(body),
    "b": lambda body, buffers: bytes(buffers[body]),
    "a": _read_array,
    "o": _read_objects,
    "g": _read_scalar,
    "S": _read_series,
    "D": _read_frame,
    "I": _read_image,
    "T": _read_tensor,
}


# ---- dataclasses and pydantic models ------------------------------------------------------------------------------


def rebuild(value: Any, annotation: Any) -> Any:
    """Make dataclasses and pydantic models anew from the dicts they travelled as, guided by an annotation.

    Containers (`list[Row]`, `dict[str, Row]`, `Row | None`) are looked into; a value whose annotation says nothing is
    returned as it is. InvalidArgument where pydantic refuses the value.
    """
    if value is None or annotation is Any or annotation is None:
        return value
    if isinstance(annotation, type):
        return _rebuild_class(value, annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return rebuild(value, arguments[0])
    if origin is Union or origin is types.UnionType:
        return _rebuild_union(value, arguments)
    if isinstance(value, list) and arguments and issubclass(list, origin or object):
        return [rebuild(item, arguments[0]) for item in value]
    if isinstance(value, tuple) and origin is tuple and arguments:
        every = arguments[-1] is Ellipsis
        kinds = [arguments[0]] * len(value) if every else arguments
        return tuple(rebuild(item, kind) for item, kind in zip(value, kinds, strict=True))
    if isinstance(value, dict) and len(arguments) == 2 and issubclass(dict, origin or object):
        return {key: rebuild(item, arguments[1]) for key, item in value.items()}
    return value


def _rebuild_class(value: Any, annotation: type) -> Any:
    if isinstance(value, annotation):
        return value
    if _is_pydantic(annotation):
        try:
            return annotation.model_validate(value)  # type: ignore[attr-defined]  # a pydantic model, seen above
        except ValueError as error:
            raise InvalidArgument(f"The value cannot be read as {annotation.__name__}: {error}") from error
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        hints = typing.get_type_hints(annotation)
        made = [f for f in dataclasses.fields(annotation) if f.name in value]
        arguments = {f.name: rebuild(value[f.name], hints.get(f.name, Any)) for f in made}
        built = annotation(**{f.name: arguments[f.name] for f in made if f.init})
        for f in made:
            if not f.init:
                object.__setattr__(built, f.name, arguments[f.name])
        return built
    return value


def _rebuild_union(value: Any, kinds: Sequence[Any]) -> Any:
    plain = [k for k in kinds if isinstance(k, type) and not _is_pydantic(k) and not dataclasses.is_dataclass(k)]
    if any(isinstance(value, kind) for kind in plain):
        return value
    for kind in kinds:
        try:
            built = rebuild(value, kind)
        except (InvalidArgument, TypeError):
            continue
        if built is not value:
            return built
    return value

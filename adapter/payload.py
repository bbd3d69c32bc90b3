"""Python values as bytes and tensors, for both ends of the wire; pickle is never used.

A value becomes one blob: `ADP1`, the length of a JSON header (uint32, little endian), the header, and raw buffers that
begin at multiples of 64 bytes. In the header plain JSON values stand for themselves and everything else is an object
with one key that names its kind:

    {"t": […]} tuple   {"d": {…}} dict with string keys   {"m": [[k, v], …]} other dict   {"f": "nan"} non-finite float
    {"b": i} bytes     {"a": [i, dtype, shape]} array     {"o": [shape, […]]} object array   {"g": [i, dtype]} scalar
    {"i": "0x…"} int too long for JSON                    {"w": [type, text]} date, time, UUID or Decimal
    {"s": [type, […]]} set
    {"S": …} Series    {"D": …} DataFrame                 {"I": …} PIL image                 {"T": …} torch tensor

`i` is the index of a buffer, each of which belongs to one value. Lone surrogates stay in strings, so the header is
UTF-8 with "surrogatepass". A dataclass or a pydantic model travels as a dict, an enum as its value; `rebuild` makes
it anew from the annotation of the parameter that receives it.

Several blobs travel as one bundle: `ADPN`, their number (uint32), for each the length of a note (uint32) and of the
blob (uint64), and then note and blob of each.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import math
import re
import struct
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Union

import numpy as np

from adapter.exceptions import InvalidArgument, PayloadTypeError

Buffer = bytes | bytearray | memoryview
Node = Any

MAGIC, BUNDLE = b"ADP1", b"ADPN"
_HEAD, _SIZES = struct.Struct("<4sI"), struct.Struct("<IQ")
_ALIGNMENT = 64
_ARRAY_KINDS = "biufcUSMm"
_DTYPE = re.compile(r"[<>|=][biufcUSMm]\d*(\[\d*\w+\])?")
# what pydantic derives from a class's fields; the schemas of classes that name each other cannot be read from a pickle
DERIVED = ("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__")
_JSON_BITS = 4096  # Python reads and writes longer integers as decimal text only up to a limit
_TYPES = (
    "None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays and scalars, pandas DataFrame and Series, "
    "PIL images, torch tensors, enums, dates and times, UUID, Decimal, sets, dataclasses and pydantic models"
)


def encode(value: Any) -> bytes:
    """Write a value as one blob; PayloadTypeError names the type that cannot travel and what can."""
    return b"".join(encode_parts(value))


def encode_parts(value: Any) -> list[Buffer]:
    """The blob of `encode` in pieces, so that large arrays are copied once, into their destination."""
    buffers: list[Buffer] = []
    try:
        node = _encode(value, buffers)
        content = [node, [len(b) for b in buffers]]
        text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except RecursionError as error:
        raise PayloadTypeError("A value that contains itself, or is nested too deeply, cannot be sent.") from error
    header = text.encode("utf-8", "surrogatepass")
    parts: list[Buffer] = [_HEAD.pack(MAGIC, len(header)), header]
    position = _HEAD.size + len(header)
    for buffer in buffers:
        gap = -position % _ALIGNMENT
        parts += (bytes(gap), buffer)
        position += gap + len(buffer)
    return parts


def decode(blob: Buffer) -> Any:
    """Read a value back; its arrays are writable, and share the blob's memory where that is."""
    memory = memoryview(blob)
    if memory.readonly:
        memory = memoryview(bytearray(blob))
    try:
        magic, length = _HEAD.unpack_from(memory)
        if magic != MAGIC:
            raise ValueError(f"it begins with {bytes(memory[:4])!r}")
        position = _HEAD.size + length
        node, sizes = json.loads(str(memory[_HEAD.size : position], "utf-8", "surrogatepass"))
        buffers: list[memoryview | None] = []
        for size in sizes:
            position += -position % _ALIGNMENT
            if not 0 <= size <= len(memory) - position:
                raise ValueError("it is cut short")
            buffers.append(memory[position : position + size])
            position += size
        return _decode(node, buffers)
    except ImportError as error:
        raise InvalidArgument(f"A value came that needs {error.name}, which is not installed here: {error}.") from error
    except Exception as error:  # pandas and PIL raise anything on what is broken
        raise InvalidArgument(f"These {len(memory)} bytes are not a value that adapter wrote: {error}.") from error


# ---- several blobs as one -----------------------------------------------------------------------------------------


def bundle(blobs: Sequence[tuple[str, Buffer]]) -> bytes:
    """Several blobs as one, each with a note."""
    notes = [note.encode() for note, _ in blobs]
    sizes = [_SIZES.pack(len(note), len(blob)) for note, (_, blob) in zip(notes, blobs, strict=True)]
    contents = itertools.chain.from_iterable(zip(notes, (blob for _, blob in blobs), strict=True))
    return b"".join([_HEAD.pack(BUNDLE, len(blobs)), *sizes, *contents])


def is_bundle(blob: Buffer) -> bool:
    """Whether `bundle` made this, and not `encode`."""
    return bytes(blob[:4]) == BUNDLE


def unbundle(blob: Buffer) -> list[tuple[str, memoryview]]:
    """The blobs of a bundle with their notes; InvalidArgument where it is none."""
    memory = memoryview(blob)
    try:
        magic, count = _HEAD.unpack_from(memory)
        if magic != BUNDLE or count * _SIZES.size > len(memory):
            raise ValueError(f"it begins with {bytes(memory[: _HEAD.size])!r}")
        sizes = list(_SIZES.iter_unpack(memory[_HEAD.size : _HEAD.size + count * _SIZES.size]))
        position = _HEAD.size + count * _SIZES.size
        if position + sum(a + b for a, b in sizes) != len(memory):
            raise ValueError("it is cut short")
        found = []
        for note, size in sizes:
            middle = position + note
            found.append((str(memory[position:middle], "utf-8"), memory[middle : middle + size]))
            position = middle + size
        return found
    except (ValueError, struct.error) as error:
        raise InvalidArgument(f"These {len(memory)} bytes are not a bundle of calls: {error}.") from error


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
        # … and one that another thread is importing has no such name yet
        if library is not None and isinstance(value, getattr(library, name, ())):
            return write(value, buffers)
    if isinstance(value, enum.Enum):
        return _encode(value.value, buffers)
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


def _int(value: int, _: list[Buffer]) -> Node:
    return value if value.bit_length() <= _JSON_BITS else {"i": hex(value)}


def _written(value: Any, _: list[Buffer]) -> Node:
    kind = type(value).__name__
    return {"w": [kind, str(value) if kind in ("UUID", "Decimal") else value.isoformat()]}


def _duration(value: datetime.timedelta, _: list[Buffer]) -> Node:
    return {"w": ["timedelta", [value.days, value.seconds, value.microseconds]]}


def _set(value: AbstractSet[Any], buffers: list[Buffer]) -> Node:
    return {"s": [type(value).__name__, [_encode(item, buffers) for item in value]]}


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
    if not value.dtype.itemsize:  # strings of no length at all: a shape without bytes could claim any size
        value = np.zeros(shape, f"{value.dtype.kind}1")
    buffers.append(_raw(value))
    return {"a": [len(buffers) - 1, value.dtype.str, shape]}


def _raw(value: np.ndarray[Any, Any]) -> Buffer:
    if not value.size:
        return b""
    flat = np.ascontiguousarray(value)
    # datetime64 and unicode have no buffer protocol of their own
    return flat.reshape(-1).view(np.uint8).data


def _scalar(value: np.generic, buffers: list[Buffer]) -> Node:
    if value.dtype.kind not in _ARRAY_KINDS:
        raise PayloadTypeError(f"A numpy scalar of data type {value.dtype} cannot be sent to or from a runner.")
    array = np.asarray(value)  # an empty string has a data type without length, its array has one
    buffers.append(array.tobytes())
    return {"g": [len(buffers) - 1, array.dtype.str]}


def _encode_pydantic(value: Any, buffers: list[Buffer]) -> Node:
    if getattr(type(value), "__pydantic_root_model__", False):
        return _encode(value.root, buffers)
    node = {
        _key(name, field): _pydantic_field(value, name, getattr(value, name), buffers)
        for name, field in type(value).model_fields.items()
    }
    return {"d": node | {key: _encode(item, buffers) for key, item in (value.model_extra or {}).items()}}


def _pydantic_field(model: Any, name: str, value: Any, buffers: list[Buffer]) -> Node:
    start = len(buffers)
    try:
        return _encode(value, buffers)
    except PayloadTypeError as refused:  # a datetime, an enum, a set …: pydantic knows how to write and to read them
        del buffers[start:]
        try:
            (written,) = model.model_dump(mode="json", by_alias=True, include={name}).values()
        except ValueError:
            raise refused from None
        return _encode(written, buffers)


def _key(name: str, field: Any) -> str:
    """The key that a pydantic model reads a field from."""
    alias = field.validation_alias or field.alias
    return next((choice for choice in getattr(alias, "choices", [alias]) if isinstance(choice, str)), name)


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
        levels = [_column(index.get_level_values(i), buffers) for i in range(index.nlevels)]
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
    buffers.append(value.tobytes())
    index, palette = len(buffers) - 1, value.getpalette("RGBA") if value.mode in ("P", "PA") else None
    transparency = _encode(value.info.get("transparency"), buffers)
    return {"I": [index, value.mode, list(value.size), palette, transparency]}


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
    int: _int,
    str: _plain,
    float: _float,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    np.ndarray: _array,
    **dict.fromkeys((datetime.datetime, datetime.date, datetime.time, uuid.UUID, decimal.Decimal), _written),
    datetime.timedelta: _duration,
    set: _set,
    frozenset: _set,
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


_Buffers = list[memoryview | None]


def _decode(node: Node, buffers: _Buffers) -> Any:
    if isinstance(node, list):
        return [_decode(item, buffers) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    return _READERS[kind](body, buffers)


def _take(index: int, buffers: _Buffers) -> memoryview:
    """A buffer, once: a small blob whose values all name one buffer would grow without limit."""
    found, buffers[index] = buffers[index], None
    if found is None:
        raise ValueError("two of its values share a buffer")
    return found


def _read_array(body: Node, buffers: _Buffers) -> Any:
    index, name, shape = body
    if not _DTYPE.fullmatch(name):
        raise ValueError(f"it has an array of data type {name!r}")
    dtype, buffer = np.dtype(name), _take(index, buffers)
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(buffer):
        raise ValueError(f"it has an array of shape {shape} in {len(buffer)} bytes")
    if not len(buffer):
        return np.zeros(shape, dtype)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _read_objects(body: Node, buffers: _Buffers) -> Any:
    shape, items = body
    flat: np.ndarray[Any, Any] = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        flat[i] = _decode(item, buffers)
    return np.reshape(flat, shape)


def _read_scalar(body: Node, buffers: _Buffers) -> Any:
    array = _read_array([body[0], body[1], []], buffers)
    return array[()]


# The readers below import pandas, PIL and torch when such a value has come: a worker need not have them otherwise.


def _read_column(node: Node, buffers: _Buffers) -> Any:
    import pandas as pd

    how, data = node[0], _decode(node[1], buffers)
    if how == "extension":
        if not isinstance(data, list):
            raise ValueError(f"it has a column of type {type(data).__name__}")
        dtype: Any = pd.api.types.pandas_dtype(node[2])
        # "str" is numpy's before pandas 3
        return pd.array(data, dtype=object if isinstance(dtype, np.dtype) else dtype)
    # pandas repeats what has no axis as often as the index is long
    if not (isinstance(data, np.ndarray) and data.ndim == 1):
        raise ValueError(f"it has a column of type {type(data).__name__}")
    if how == "numpy":
        return data
    if how == "category":
        categories = pd.Index(_read_column(node[2], buffers))
        return pd.Categorical.from_codes(data, categories=categories, ordered=node[3])
    if how == "zoned":
        return pd.Series(data).dt.tz_localize("UTC").astype(node[2]).array
    raise ValueError(f"it has a column of kind {how!r}")


def _read_index(node: Node, buffers: _Buffers) -> Any:
    import pandas as pd

    how, data, name = node
    if how == "range":
        return pd.RangeIndex(data[0], data[1], data[2], name=_decode(name, buffers))
    if how == "multi":
        levels = [_labels(_read_column(level, buffers), None) for level in data]
        return pd.MultiIndex.from_arrays(levels, names=_decode(name, buffers))
    if how == "plain":
        return _labels(_read_column(data, buffers), _decode(name, buffers))
    raise ValueError(f"it has an index of kind {how!r}")


def _labels(values: Any, name: Any) -> Any:
    import pandas as pd

    # tuples among the labels would make a MultiIndex of them
    return pd.Index(values, name=name, dtype=_dtype_of(values), tupleize_cols=False)


def _read_series(body: Node, buffers: _Buffers) -> Any:
    import pandas as pd

    values = _read_column(body[0], buffers)
    return pd.Series(
        values, index=_read_index(body[1], buffers), name=_decode(body[2], buffers), dtype=_dtype_of(values), copy=False
    )


def _read_frame(body: Node, buffers: _Buffers) -> Any:
    import pandas as pd

    how, data, columns, index = body
    labels, rows = _read_index(columns, buffers), _read_index(index, buffers)
    if how == "block":
        block = _decode(data, buffers)
        if not (isinstance(block, np.ndarray) and block.ndim == 2):
            raise ValueError(f"it has the data of a frame as {type(block).__name__}")
        return pd.DataFrame(block, columns=labels, index=rows, dtype=_dtype_of(block), copy=False)
    cells = [_read_column(cell, buffers) for cell in data]
    frame = pd.DataFrame({i: pd.Series(c, index=rows, dtype=_dtype_of(c)) for i, c in enumerate(cells)}, index=rows)
    frame.columns = labels
    return frame


def _dtype_of(values: Any) -> Any:
    """Keep object columns as they were: pandas 3 would turn strings in them into its own type."""
    return object if values.dtype == object else None


def _read_image(body: Node, buffers: _Buffers) -> Any:
    from PIL import Image, ImageMode

    index, mode, (width, height), palette, transparency = body
    buffer, described = _take(index, buffers), ImageMode.getmode(mode)
    row = (width + 7) // 8 if mode == "1" else width * len(described.bands) * np.dtype(described.typestr).itemsize
    if row * height != len(buffer):  # PIL would make the image before it looks at the data
        raise ValueError(f"it has an image of {width} x {height} pixels in {len(buffer)} bytes")
    image = Image.frombytes(mode, (width, height), bytes(buffer))
    if palette:
        image.putpalette(palette, "RGBA")
    if transparency is not None:
        image.info["transparency"] = _decode(transparency, buffers)
    return image


def _read_tensor(body: Node, buffers: _Buffers) -> Any:
    import torch

    array, name = body
    tensor = torch.from_numpy(_decode(array, buffers))
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


_SETS: dict[str, Callable[[Iterable[Any]], Any]] = {"set": set, "frozenset": frozenset}
_WRITTEN: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
    "UUID": uuid.UUID,
    "Decimal": decimal.Decimal,
}
_READERS: dict[str, Callable[[Node, _Buffers], Any]] = {
    "t": lambda body, buffers: tuple(_decode(item, buffers) for item in body),
    "d": lambda body, buffers: {key: _decode(item, buffers) for key, item in body.items()},
    "m": lambda body, buffers: {_decode(key, buffers): _decode(item, buffers) for key, item in body},
    "f": lambda body, _: float(body),
    "i": lambda body, _: int(body, 16),
    "w": lambda body, _: _WRITTEN[body[0]](body[1]),
    "s": lambda body, buffers: _SETS[body[0]](_decode(item, buffers) for item in body[1]),
    "b": lambda body, buffers: bytes(_take(body, buffers)),
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
    """Make dataclasses, pydantic models and enums anew from what they travelled as, guided by an annotation.

    Containers (`list[Row]`, `dict[str, Row]`, `Row | None`) are looked into; a value whose annotation says nothing is
    returned as it is. InvalidArgument where pydantic refuses the value.
    """
    if value is None or annotation is Any or annotation is None:
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return rebuild(value, arguments[0])
    if origin is Union or origin is types.UnionType:
        return _rebuild_union(value, arguments)
    kind = origin or annotation
    if not isinstance(kind, type):
        return value
    if issubclass(kind, enum.Enum):
        return _rebuild_enum(value, kind)
    if _is_pydantic(kind) or dataclasses.is_dataclass(kind):
        return _rebuild_class(value, kind)
    if isinstance(value, list) and arguments and issubclass(list, kind):
        return [rebuild(item, arguments[0]) for item in value]
    if isinstance(value, tuple) and kind is tuple and arguments:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        fits = len(kinds) == len(value)
        return tuple(rebuild(item, k) for item, k in zip(value, kinds, strict=True)) if fits else value
    if isinstance(value, dict) and len(arguments) == 2 and issubclass(dict, kind):
        return {rebuild(key, arguments[0]): rebuild(item, arguments[1]) for key, item in value.items()}
    return value


def completed(value: Any, records: Sequence[Any]) -> Any:
    """Let pydantic classes that were read from a pickle derive their validators from their fields; return `value`."""
    for record in records:
        for name in DERIVED:  # those of a class without fields, as which a pickle begins to make it
            if name in vars(record):
                delattr(record, name)
        record.__pydantic_complete__ = False
    for record in records:
        if hasattr(record, "model_rebuild"):
            record.model_rebuild(force=True)
        else:
            from pydantic.dataclasses import rebuild_dataclass  # as pandas above: only where such a class has come

            rebuild_dataclass(record, force=True)
    return value


def _rebuild_enum(value: Any, kind: type[enum.Enum]) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidArgument(f"The value cannot be read as {kind.__name__}: {error}.") from error


def _rebuild_class(value: Any, kind: Any) -> Any:
    if isinstance(value, kind):
        return value
    try:
        if _is_pydantic(kind):
            return kind.model_validate(value)
        return _rebuild_dataclass(value, kind) if isinstance(value, dict) else value
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"The value cannot be read as {kind.__name__}: {error}") from error


def _rebuild_dataclass(value: dict[Any, Any], kind: Any) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ValueError(f"it has no field {key!r}")
    hints = _hints(kind)
    given = {name: rebuild(item, hints.get(name, Any)) for name, item in value.items()}
    built = kind(**{name: item for name, item in given.items() if fields[name].init})
    for name, item in given.items():  # a __post_init__ that changes its fields has done so at the sender already
        object.__setattr__(built, name, item)
    return built


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001  # annotations are the user's own code, and may name what is not imported
        return {}


def _rebuild_union(value: Any, kinds: Sequence[Any]) -> Any:
    if any(_is_instance(value, kind) for kind in kinds):
        return value
    # what has just the value's keys comes first, for others may take it too, and leave some out
    for kind in sorted(kinds, key=lambda k: _keys(k) != set(value) if isinstance(value, dict) else False):
        try:
            built = rebuild(value, kind)
        except InvalidArgument:
            continue
        if built is not value:
            return built
    return value


def _is_instance(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # list[Row], a Protocol, a TypedDict …
        return False


def _keys(kind: Any) -> set[str]:
    kind = typing.get_origin(kind) or kind
    if _is_pydantic(kind):
        return {_key(name, field) for name, field in kind.model_fields.items()}
    return {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()

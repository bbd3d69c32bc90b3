# ruff: noqa: UP007, UP045  # older code writes Optional[…] and Union[…], which are read another way
from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
import math
import struct
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Optional, Protocol, TypedDict, TypeVar, Union

import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel

from adapter import payload
from adapter.exceptions import InvalidArgument, PayloadTypeError
from adapter.payload import decode, encode, encode_parts, rebuild

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")


def sent(value: Any) -> Any:
    return decode(encode(value))


def same(left: Any, right: Any) -> bool:
    """Whether two plain values are equal, and of equal types all the way down; nan equals nan, -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (np.ndarray, np.generic)):
        return same_array(np.asarray(left), np.asarray(right))
    return bool(left == right)


def same_array(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return same(left.ravel().tolist(), right.ravel().tolist())
    return left.tobytes() == right.tobytes()


# ---- plain values ---------------------------------------------------------------------------------------------------

text = st.text(st.characters())  # lone surrogates too
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text, st.binary())
leaves = st.one_of(keys, st.floats(), st.integers(-(10**30), 10**30))
plain = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(text, inner, max_size=4),
        st.dictionaries(st.one_of(keys, st.tuples(keys, keys)), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(plain)
@settings(deadline=None, max_examples=300)
def test_plain_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    assert same(sent(value), value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        2**63,
        -(2**200),
        7**6000,  # more digits than Python turns into text
        -(7**6000),
        0.0,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        5e-324,
        "",
        "naïve 🐍 \0 \u2028",
        "\ud800",
        "\ud83d\ude00",  # two surrogates are not the one character that JSON would make of them
        b"",
        b"\0\xff" * 100,
        [],
        (),
        {},
        {"t": 1, "d": {"a": [1]}, "b": 0},  # keys that the header uses itself
        {1: "a", "1": "b", None: "c", (1, 2): "d", 1.5: "e", b"x": "f", math.inf: "g"},
        [[1, (2, [3, {"x": (4,)}])]],
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_value_comes_back_when_it_is_a_corner_case(value: Any) -> None:
    assert same(sent(value), value)


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"a-b-")[::2]])
def test_buffers_come_back_as_bytes(value: Any) -> None:
    assert sent(value) == b"ab"


def test_dict_keeps_its_order() -> None:
    assert list(sent({"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]


def test_parts_make_the_blob_and_buffers_are_aligned() -> None:
    value = {"a": np.arange(5.0), "b": b"xyz", "c": np.ones(3, np.float32)}
    blob = b"".join(encode_parts(value))
    assert blob == encode(value)
    received = decode(blob)
    assert same(received, value)
    header = 8 + struct.unpack_from("<I", blob, 4)[0]
    assert blob.index(np.arange(5.0).tobytes()) == header + -header % 64


# ---- numpy ----------------------------------------------------------------------------------------------------------

dtypes = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(endianness="?"),
    arrays_of.unsigned_integer_dtypes(endianness="?"),
    arrays_of.floating_dtypes(endianness="?"),
    arrays_of.complex_number_dtypes(endianness="?"),
    arrays_of.datetime64_dtypes(endianness="?"),
    arrays_of.timedelta64_dtypes(endianness="?"),
    arrays_of.byte_string_dtypes(min_len=1, max_len=5),
    arrays_of.unicode_string_dtypes(endianness="?", min_len=1, max_len=5),
)
shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@given(arrays_of.arrays(dtypes, shapes))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_array_comes_back_with_dtype_and_shape(array: np.ndarray[Any, Any]) -> None:
    received = sent(array)
    assert type(received) is np.ndarray
    assert same_array(received, array)
    assert received.flags.writeable
    assert not np.shares_memory(received, array)


@given(arrays_of.arrays(object, shapes, elements=leaves))
@settings(deadline=None)
def test_object_array_comes_back_with_its_values(array: np.ndarray[Any, Any]) -> None:
    assert same_array(sent(array), array)


SQUARE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(SQUARE),
        SQUARE[::2, ::-1],
        SQUARE.T,
        np.broadcast_to(np.float32(3), (2, 3)),
        np.array(7),
        np.zeros((0, 3), np.int8),
        np.zeros((3, 0), "U4"),
        np.array([], dtype="datetime64[ns]"),
        np.array(["2024-01-01", "NaT"], "datetime64[D]"),
        np.array([1, 2], "timedelta64[25s]"),
        np.arange(3, dtype=">i4"),
        np.array(["é🐍", ""], ">U3"),
        np.array([b"a\0b", b""]),
        np.array([[None, "a"], [1.5, b"x"]], dtype=object),
        np.array([np.arange(2), np.arange(3), None], dtype=object),
        np.arange(3, dtype=np.longdouble),
        np.array([math.nan, -0.0, math.inf], np.float16),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_array_comes_back_when_its_layout_is_unusual(array: np.ndarray[Any, Any]) -> None:
    received = sent(array)
    assert same_array(received, array)
    assert received.flags.writeable


def test_array_of_strings_without_length_comes_back_as_empty_strings() -> None:
    assert sent(np.ndarray((3,), "S0")).tolist() == [b"", b"", b""]


if np.__version__ >= "2":  # NumPy 1 has no variable-width strings

    def test_array_of_variable_width_strings_comes_back_as_objects() -> None:
        array = np.array(["a", "bcd"], dtype=np.dtypes.StringDType())
        assert same_array(sent(array), np.array(["a", "bcd"], dtype=object))


@pytest.mark.parametrize(
    "scalar",
    [
        np.bool_(True),
        np.int8(-3),
        np.uint64(2**64 - 1),
        np.float16(0.5),
        np.float64(math.nan),
        np.complex64(1 + 2j),
        np.str_("né🐍"),
        np.str_(""),
        np.bytes_(b"ab"),
        np.bytes_(b""),
        np.datetime64("2024-02-29T12:00:00.5"),
        np.datetime64("NaT", "s"),
        np.timedelta64(3, "D"),
    ],
    ids=repr,
)
def test_numpy_scalar_comes_back(scalar: np.generic) -> None:
    received = sent(scalar)
    assert type(received) is type(scalar)
    assert np.asarray(received).dtype == np.asarray(scalar).dtype
    assert received.tobytes() == scalar.tobytes()


def test_numpy_scalar_as_key_comes_back() -> None:
    assert same(sent({np.int64(1): "a", np.str_("b"): 2}), {np.int64(1): "a", np.str_("b"): 2})


def test_received_arrays_share_memory_with_nothing_else() -> None:
    array = np.zeros(3)
    first, second = sent([array, array])
    first[:] = 1
    assert array.tolist() == second.tolist() == [0, 0, 0]
    blob = encode(array)
    decode(blob)[:] = 5
    assert decode(blob).tolist() == [0, 0, 0]


def test_arrays_lie_in_the_blob_when_that_is_a_bytearray() -> None:
    blob = bytearray(encode(np.zeros(100)))
    received = decode(blob)
    assert np.shares_memory(received, np.frombuffer(blob, np.uint8))
    assert received.flags.writeable


# ---- pandas ---------------------------------------------------------------------------------------------------------

ZONED = pd.Series(pd.to_datetime(["2024-03-31T00:30:00Z", "NaT"]))
MIXED = pd.DataFrame(
    {
        "i": np.array([1, 2], np.int16),
        "f": [0.5, math.nan],
        "b": [True, False],
        "o": np.array(["x", None], dtype=object),
        "s": ["x", "y"],
        "when": pd.to_datetime(["2024-01-01", "NaT"]),
        "span": pd.to_timedelta([1, 2], unit="s"),
        "cat": pd.Categorical(["a", None], categories=["b", "a"], ordered=True),
        "tz": ZONED.dt.tz_convert("Europe/Berlin"),
        "off": ZONED.dt.tz_convert("+05:30"),
        "Int": pd.array([1, None], dtype="Int64"),
        "Float": pd.array([1.5, None], dtype="Float32"),
        "bool": pd.array([True, None], dtype="boolean"),
        "str": pd.array(["a", None], dtype="string"),
        "c": np.array([1j, 2], np.complex64),
    }
)
FRAMES: dict[str, pd.DataFrame] = {
    "mixed": MIXED,
    "one block": pd.DataFrame(SQUARE, columns=list("abcd")),
    "float32": pd.DataFrame(SQUARE.astype(np.float32)),
    "strings": pd.DataFrame({"a": ["x", "y"]}),
    "objects": pd.DataFrame({"a": [1, "y"], "b": [None, 2.5]}, dtype=object),
    "lists in cells": pd.DataFrame({"a": [[1, 2], {"x": 3}]}),
    "empty": pd.DataFrame(),
    "no rows": MIXED.iloc[:0],
    "no columns": pd.DataFrame(index=pd.Index([3, 4], name="i")),
    "duplicate columns": pd.DataFrame([[1, "x", 2.5]], columns=["a", "a", "b"]),
    "duplicate numbers": pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "labels of several types": pd.DataFrame([[1, 2, 3]], columns=[1, "a", (2, "b")]),
    "named axes": pd.DataFrame({"a": [1]}, index=pd.Index(["r"], name="row")).rename_axis(columns="col"),
    "rows in another order": MIXED.iloc[::-1],
    "steps": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(4, 0, -2, name="r")),
    "duplicate rows": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[7, 7]),
    "times as rows": pd.DataFrame({"a": [1, 2]}, index=pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True)),
    "categories as rows": pd.DataFrame({"a": [1, 2]}, index=pd.CategoricalIndex(["x", "y"], name="c")),
    "several levels": pd.DataFrame(
        {("x", 1): [1, 2], ("x", 2): [3.5, 4.5]},
        index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["k", None]),
    ),
    "levels without rows": pd.DataFrame({"a": []}, index=pd.MultiIndex.from_arrays([[], []], names=["k", "l"])),
    "categories of numbers": pd.DataFrame({"a": pd.Categorical([1, 2, 1])}),
    "categories of times": pd.DataFrame({"a": pd.Categorical(pd.to_datetime(["2024-01-01", "2024-01-01"]))}),
    "sparse": pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])}),
    "seconds": pd.DataFrame({"a": np.array(["2024-01-01"], "datetime64[s]")}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_comes_back_with_dtypes_labels_and_rows(name: str) -> None:
    frame = FRAMES[name]
    received = sent(frame)
    pd.testing.assert_frame_equal(received, frame, check_freq=False, check_column_type=True, check_index_type=True)
    assert [str(d) for d in received.dtypes] == [str(d) for d in frame.dtypes]
    assert type(received.index) is type(frame.index)


@pytest.mark.parametrize("column", MIXED.columns)
def test_series_comes_back_with_its_name_and_rows(column: str) -> None:
    series = MIXED[column].set_axis(["p", "q"])
    pd.testing.assert_series_equal(sent(series), series)


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([], dtype=object),
        pd.Series([1, 2], name=("a", 1)),
        pd.Series([1, 2], name=np.int64(3)),
        pd.Series([b"x", None]),
        pd.Series(["a", None], dtype="category"),
    ],
    ids=lambda series: f"{series.dtype} {series.name}",
)
def test_series_comes_back_when_it_is_a_corner_case(series: pd.Series[Any]) -> None:
    received = sent(series)
    pd.testing.assert_series_equal(received, series)
    assert type(received.name) is type(series.name)


def test_received_frame_can_be_changed_without_the_sender_noticing() -> None:
    frame = FRAMES["one block"].copy()
    received = sent(frame)
    received.iloc[0, 0] = 99
    received["new"] = 1
    assert frame.iloc[0, 0] == 0
    assert list(frame.columns) == list("abcd")


values = st.one_of(
    arrays_of.arrays(np.int64, 4),
    arrays_of.arrays(np.float32, 4),
    arrays_of.arrays(np.bool_, 4),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=4, max_size=4).map(lambda v: np.array(v, object)),
    st.lists(st.sampled_from("abc"), min_size=4, max_size=4).map(pd.Categorical),
    st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=4, max_size=4).map(lambda v: pd.array(v, "Int8")),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", 1, (2, 3)]), values), max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_frame_comes_back_whatever_its_columns(columns: list[tuple[Any, Any]]) -> None:
    frame = pd.DataFrame(dict(enumerate(v for _, v in columns)), index=range(4))
    frame.columns = pd.Index([name for name, _ in columns], dtype=object, tupleize_cols=False)
    pd.testing.assert_frame_equal(sent(frame), frame)


# ---- images ---------------------------------------------------------------------------------------------------------

MODES = ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(11, 3), (1, 1), (0, 4)])
def test_image_comes_back_pixel_by_pixel(mode: str, size: tuple[int, int]) -> None:
    blank = Image.new(mode, size)
    image = Image.frombytes(mode, size, bytes(i % 251 for i in range(len(blank.tobytes()))))
    received = sent(image)
    assert (received.mode, received.size, received.tobytes()) == (mode, size, image.tobytes())


@pytest.mark.parametrize("transparency", [None, 1, b"\0\x80\xff"])
def test_image_with_a_palette_comes_back_with_colours_and_transparency(transparency: Any) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    if transparency is not None:
        image.info["transparency"] = transparency
    received = sent(image)
    assert received.mode == "P"
    assert received.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


# ---- what cannot travel ---------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    pass


class Thing:
    pass


def _itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Thing(), "tests.test_payload.Thing"),
        (Thing, "builtins.type"),
        (Text("a"), "Text"),
        (1 + 2j, "builtins.complex"),
        (range(3), "builtins.range"),
        ((i for i in [1]), "builtins.generator"),
        (threading.Lock(), "lock"),
        (len, "builtin_function"),
        ([1, {"a": (Thing(),)}], "tests.test_payload.Thing"),
        (np.array([Thing()], dtype=object), "Thing"),
        (np.zeros(2, [("a", "i4")]), "data type"),
        (np.zeros(2, [("a", "i4")])[0], "data type"),
        (np.ma.masked_array([1, 2], [True, False]), "masked"),
        (pd.DataFrame({"a": [Thing()]}), "Thing"),
        (pd.Series(pd.period_range("2024-01", periods=2, freq="M")), "Period"),
        (pd.Timestamp("2024-01-01"), "Timestamp"),
        (_itself(), "contains itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_value_is_refused_with_a_sentence(value: Any, named: str) -> None:
    with pytest.raises(PayloadTypeError) as caught:
        encode(value)
    assert named in caught.value.message
    assert caught.value.message.endswith(".")
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 2, 29, 12, 0, 0, 5),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=-3))),
        datetime.date(1, 1, 1),
        datetime.time(23, 59, 59, 999999),
        datetime.timedelta(days=-1, microseconds=1),
        uuid.UUID(int=1),
        decimal.Decimal("-1.50"),
        decimal.Decimal("NaN"),
        {1, "a", (2, 3)},
        frozenset({b"a"}),
        {uuid.UUID(int=1): [datetime.date(2024, 1, 1)]},
    ],
    ids=repr,
)
def test_value_of_the_standard_library_comes_back(value: Any) -> None:
    received = sent(value)
    assert type(received) is type(value)
    assert repr(received) == repr(value) if isinstance(value, decimal.Decimal) else received == value


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Colour.RED, Colour),
        (Level.LOW, Level),
        ([Colour.RED], list[Colour]),
        ({Colour.RED: Level.LOW}, dict[Colour, Level]),
        (Colour.RED, Optional[Colour]),
    ],
    ids=repr,
)
def test_enum_is_made_anew_from_the_annotation(value: Any, annotation: Any) -> None:
    received = rebuild(sent(value), annotation)
    assert (received, repr(received)) == (value, repr(value))


def test_value_that_is_none_of_an_enum_is_refused_with_a_sentence() -> None:
    with pytest.raises(InvalidArgument, match="cannot be read as Colour"):
        rebuild("green", Colour)


@pytest.mark.parametrize(
    "node", [{"w": ["date", "no"]}, {"w": ["eval", "1"]}, {"s": ["list", []]}, {"w": 3}, {"s": ["set", [[]]]}]
)
def test_broken_value_of_the_standard_library_is_refused(node: Any) -> None:
    with pytest.raises(InvalidArgument):
        decode(blob(node))


# ---- broken blobs ---------------------------------------------------------------------------------------------------


def blob(node: Any, *buffers: bytes) -> bytes:
    """A blob with any header, as an attacker would write it."""
    header = json.dumps([node, [len(b) for b in buffers]]).encode()
    made = struct.pack("<4sI", b"ADP1", len(header)) + header
    for buffer in buffers:
        made += bytes(-len(made) % 64) + buffer
    return made


WHOLE = encode(
    [
        {"a": np.arange(6.0).reshape(2, 3), 1: (None, 2.5, b"xyz", "é", math.nan, 1 << 5000)},
        MIXED,
        FRAMES["several levels"],
        MIXED["cat"],
        np.array([1, "a"], dtype=object),
        np.datetime64("2024-01-01"),
        Image.new("P", (3, 2)),
    ]
)


def read_or_refuse(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        decode(data)


@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, len(WHOLE) - 1))
@settings(deadline=None, max_examples=200)
def test_blob_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(InvalidArgument, match="are not a value that adapter wrote"):
        decode(WHOLE[:length])


HEADER = 8 + struct.unpack_from("<I", WHOLE, 4)[0]


@pytest.mark.filterwarnings("ignore")  # pandas warns of what it then reads
@given(st.lists(st.tuples(st.integers(0, HEADER), st.integers(0, 255)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=1000)
def test_blob_with_changed_bytes_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    read_or_refuse(bytes(data))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    read_or_refuse(data)
    read_or_refuse(b"ADP1" + data)


nodes = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 10**13), st.text("<fi8U[]nsstr", max_size=5), st.just("range")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*"tdmfbaogiSDIT"]), inner, min_size=1, max_size=1),
    ),
    max_leaves=10,
)


@pytest.mark.filterwarnings("ignore")
@given(nodes)
@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
def test_any_header_is_read_or_refused(node: Any) -> None:
    read_or_refuse(blob(node, b"12345678", b"", b"x"))


HUGE = 10**12
VECTOR = {"a": [0, "<i8", [1]]}
HUGE_RANGE = ["range", [0, HUGE, 1], None]


@pytest.mark.parametrize(
    ("node", "buffers"),
    [
        ({"a": [0, "<f8", [HUGE]]}, [b""]),
        ({"a": [0, "<U0", [HUGE]]}, [b""]),
        ({"a": [0, "<f8", [10**40, 0]]}, [b""]),
        ({"a": [0, "<f8", [-1]]}, [bytes(8)]),
        ({"a": [0, "<f8", [-1, -1]]}, [bytes(8)]),
        ({"a": [0, "|O", [1]]}, [bytes(8)]),
        ({"a": [0, "|V8", [1]]}, [bytes(8)]),
        ({"a": [0, "i4,i4", [1]]}, [bytes(8)]),
        ({"g": [0, "<f8"]}, [b""]),
        ({"o": [[HUGE], []]}, []),
        ({"f": 10**400}, []),
        ({"f": "0x"}, []),
        ({"i": "7" * 5000 + "g"}, []),
        ({"b": "0"}, [b"x"]),
        ({"I": [0, "RGB", [10**6, 10**6], None, None]}, [b""]),
        ({"I": [0, "RGB", [-1, -3], None, None]}, [bytes(9)]),
        ({"S": [["numpy", 5], HUGE_RANGE, None]}, []),
        ({"S": [["numpy", {"g": [0, "<i8"]}], HUGE_RANGE, None]}, [bytes(8)]),
        ({"S": [["numpy", {"a": [0, "<i8", []]}], HUGE_RANGE, None]}, [bytes(8)]),
        ({"S": [["extension", 5, "Int64"], HUGE_RANGE, None]}, []),
        ({"S": [["extension", "x", "string"], HUGE_RANGE, None]}, []),
        ({"S": [["numpy", VECTOR], HUGE_RANGE, None]}, [bytes(8)]),
        ({"S": [["category", {"g": [0, "<i8"]}, ["numpy", VECTOR], False], HUGE_RANGE, None]}, [bytes(8)]),
        ({"S": [["numpy", VECTOR], ["multi", [HUGE_RANGE, HUGE_RANGE], [None, None]], None]}, [bytes(8)]),
        ({"S": [["other", VECTOR], HUGE_RANGE, None]}, [bytes(8)]),
        ({"D": ["block", {"g": [0, "<i8"]}, HUGE_RANGE, HUGE_RANGE]}, [bytes(8)]),
        ({"D": ["columns", [["numpy", {"g": [0, "<i8"]}]], ["range", [0, 1, 1], None], HUGE_RANGE]}, [bytes(8)]),
        ({"D": ["other", [], HUGE_RANGE, HUGE_RANGE]}, []),
        ([{"b": 0}, {"b": 0}], [b"x"]),
        ({"t": 5}, []),
        ({"d": []}, []),
        ({"m": [[[], 1]]}, []),
        ({"x": 1}, []),
        ({"t": [], "d": {}}, []),
        ({}, []),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_blob_that_claims_what_it_does_not_hold_is_refused(node: Any, buffers: list[bytes]) -> None:
    with pytest.raises(InvalidArgument, match="are not a value that adapter wrote"):
        decode(blob(node, *buffers))


def test_extension_column_takes_no_more_memory_than_its_values() -> None:
    received = decode(blob({"S": [["extension", ["a"], f"S{10**9}"], ["range", [0, 1, 1], None], None]}))
    assert received.tolist() == ["a"]


def test_value_that_is_nested_very_deeply_is_refused_at_both_ends() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(PayloadTypeError, match="nested too deeply"):
        encode(value)
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(InvalidArgument):
        decode(struct.pack("<4sI", b"ADP1", len(deep)) + deep)
    while isinstance(value, list):  # taken apart by hand, as Python would do it by recursion
        value = value.pop()


def test_library_that_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from adapter import payload\n"
        "from adapter.exceptions import InvalidArgument\n"
        "try: payload.decode(sys.stdin.buffer.read())\n"
        "except InvalidArgument as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=encode(MIXED), capture_output=True, check=True)
    assert b"needs pandas, which is not installed here" in done.stdout


# ---- dataclasses and pydantic models --------------------------------------------------------------------------------


@dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    ends: tuple[Point, Point]
    more: dict[str, Point] | None = None
    name: str = field(default="line", init=False)


@dataclass
class Doubled:
    """Changes its field when it is made, which must not happen a second time at the receiver."""

    value: int

    def __post_init__(self) -> None:
        self.value *= 2


@dataclass
class Pair(Generic[T]):
    first: T
    second: np.ndarray[Any, Any]


@dataclass
class Opaque:
    value: Fraction | None = None  # its annotation cannot be read when the program runs


@dataclass
class Seeded:
    value: int
    seed: InitVar[int]


class Row(BaseModel):
    x: float
    when: datetime.datetime | None = None
    tags: set[str] = Field(default_factory=set)


class Aliased(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    value: int = Field(alias="Value")
    choice: int = Field(validation_alias=AliasChoices("a", "b"))
    data: np.ndarray[Any, Any] = Field(alias="Data")
    at: datetime.date = Field(validation_alias="read_at", serialization_alias="write_at")


class Table(BaseModel):
    rows: list[Row]
    by_name: dict[str, Row] = Field(default_factory=dict)
    best: Optional[Row] = None
    colour: Colour = Colour.RED


class Rows(RootModel[list[Row]]):
    pass


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    x: int


class Held(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    thing: Thing


@pydantic.dataclasses.dataclass
class Checked:
    x: int
    inner: Point | None = None


class Boxed(BaseModel, Generic[T]):
    item: T


NOON = datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.timezone.utc)
ROW = Row(x=1.5, when=NOON, tags={"a", "b"})


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Point(1, 2, ["a"]), Point),
        (Line((Point(1), Point(2)), {"m": Point(3)}), Line),
        (Doubled(2), Doubled),
        (Opaque(), Opaque),
        (Checked(1, Point(2)), Checked),
        ([Point(1), Point(2)], list[Point]),
        ([Point(1), Point(2)], Sequence[Point]),
        ((Point(1), 2), tuple[Point, int]),
        ((Point(1), Point(2), Point(3)), tuple[Point, ...]),
        ({"a": Point(1)}, dict[str, Point]),
        ({"a": [Point(1)]}, Mapping[str, list[Point]]),
        (Point(1), Point | None),
        (Point(1), Optional[Point]),
        (None, Optional[Point]),
        (Point(1), Annotated[Point, "a note"]),
        (Point(1), Union[Row, Point]),
        (ROW, Union[Point, Row]),
        ([Point(1), None], list[Optional[Point]]),
        (ROW, Row),
        (Row(x=0), Row),
        (Table(rows=[ROW, ROW], by_name={"a": ROW}, best=ROW), Table),
        (Rows([ROW]), Rows),
        ([ROW], list[Row]),
        ({"a": ROW}, dict[str, Row]),
        (ROW, Optional[Row]),
        (Open(x=1, y="more"), Open),  # type: ignore[call-arg]  # the model allows it
        (Boxed[Row](item=ROW), Boxed[Row]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_record_is_rebuilt_from_its_annotation(value: Any, annotation: Any) -> None:
    received = rebuild(sent(value), annotation)
    assert received == value
    assert type(received) is type(value)


def test_generic_dataclass_with_an_array_is_rebuilt() -> None:
    received = rebuild(sent(Pair("a", np.arange(3))), Pair[str])
    assert isinstance(received, Pair)
    assert received.first == "a"
    assert received.second.tolist() == [0, 1, 2]


def test_model_with_aliases_and_an_array_is_rebuilt() -> None:
    value = Aliased.model_validate({"Value": 1, "a": 2, "Data": np.arange(3), "read_at": datetime.date(2024, 1, 2)})
    received = rebuild(sent(value), Aliased)
    assert (received.value, received.choice, received.at) == (1, 2, datetime.date(2024, 1, 2))
    assert received.data.tolist() == [0, 1, 2]


def test_model_whose_field_cannot_travel_is_refused_with_a_sentence() -> None:
    with pytest.raises(PayloadTypeError, match="Thing cannot be sent"):
        encode(Held(thing=Thing()))


class Named(TypedDict):
    x: int


class Sized(Protocol):
    def size(self) -> int: ...


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ({"x": 1}, Any),
        ({"x": 1}, None),
        ({"x": 1}, dict),
        ({"x": 1}, Named),
        ({"x": 1}, Sized),
        ({"x": 1}, Named | None),
        ({"x": 1}, Sized | int),
        ([1], Literal["a", "b"]),
        ([1], T),
        ([1], Callable[[int], int]),
        ([1], "Unknown"),
        ((1, 2), tuple[int]),
        (5, Point),
        (5, list[Point]),
        (5, Point | None),
        ("text", Row | str),
        (np.arange(3), np.ndarray),
    ],
    ids=str,
)
def test_value_stays_as_it_is_when_its_annotation_asks_for_no_record(value: Any, annotation: Any) -> None:
    assert rebuild(value, annotation) is value


@pytest.mark.parametrize(
    ("value", "annotation", "named"),
    [
        ({"x": "no number"}, Row, "Row"),
        ([1, 2], Row, "Row"),
        ({"y": 1}, Point, "x"),
        ({"x": 1, "z": 2}, Point, "'z'"),
        ({"value": 1}, Seeded, "seed"),
        ({"rows": [{"x": "no number"}]}, Table, "Table"),
    ],
)
def test_record_that_does_not_fit_its_annotation_is_refused(value: Any, annotation: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rebuild(value, annotation)
    assert named in caught.value.message
    assert annotation.__name__ in caught.value.message


def test_encoding_imports_no_library_that_was_not_there() -> None:
    code = (
        "import sys; from adapter import payload; payload.decode(payload.encode([1, 'a', {'b': b'c'}]))\n"
        "print(sorted({'pandas', 'PIL', 'pydantic', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_value_is_sent_while_another_thread_imports_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))  # begun, and without its names yet
    with pytest.raises(PayloadTypeError):
        payload.encode(Thing())

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adapter.context import Context
from adapter.exceptions import (
    BadInput,
    InternalServerError,
    InvalidArgument,
    UnprocessableEntity,
    UnsupportedMediaType,
)
from adapter.io import NumpyNdarray
from adapter.io.base import accept
from adapter.tensor import Array
from tests.io.wire import read, request, send

IRIS = "[[5.9, 3, 5.1, 1.8]]"


def strict(dtype: Any = None, shape: Any = None) -> NumpyNdarray:
    return NumpyNdarray(dtype, dtype is not None, shape, shape is not None)


def same(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (IRIS, np.array([[5.9, 3, 5.1, 1.8]])),
        ("3", np.array(3)),
        ("[1, 2]", np.array([1, 2])),
        ("[1, 2.5]", np.array([1, 2.5])),
        ("[true, false]", np.array([True, False])),
        ('["a", "bcd"]', np.array(["a", "bcd"])),
        ("[]", np.array([])),
        ("[[], []]", np.zeros((2, 0))),
        (" [1]\n", np.array([1])),
        ("\ufeff[1]", np.array([1])),
        ("[1e999]", np.array([math.inf])),
    ],
)
def test_body_becomes_an_array(body: str, expected: Array) -> None:
    assert same(read(NumpyNdarray(), body), expected)


def test_nan_and_infinity_are_read() -> None:
    array = read(NumpyNdarray(), "[NaN, Infinity, -Infinity, 1]")
    assert np.isnan(array[0])
    assert array[1:].tolist() == [math.inf, -math.inf, 1]


def test_array_is_writable() -> None:
    array = read(NumpyNdarray(dtype="float32"), IRIS)
    array += 1
    assert array[0, 1] == 4


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/vnd.api+json",
        "text/json",
        "text/plain",
        "application/text",
        "application/x-www-form-urlencoded",
    ],
)
def test_body_is_read_when_the_content_type_may_be_json(content_type: str | None) -> None:
    assert read(NumpyNdarray(), "[1]", content_type).tolist() == [1]


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "multipart/form-data; boundary=x", "application/x-npz", "text/csv"],
)
def test_content_type_is_refused_when_it_is_neither_json_nor_npy(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="send it with the header 'content-type: application/json'"):
        read(NumpyNdarray(), "[1]", content_type)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is empty, but JSON was expected; send for example [[5.9, 3, 5.1, 1.8]]."),
        (b" \n", "The body is empty, but JSON was expected; send for example [[5.9, 3, 5.1, 1.8]]."),
        (
            b"not json",
            "The body is not JSON: Expecting value at line 1 column 1; send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"[[1,\n 2]",
            "The body is not JSON: Expecting ',' delimiter at line 2 column 4; send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"[1] 2",
            "The body is not JSON: Extra data at line 1 column 5; send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b'["\xff"]',
            "The body is not UTF-8, as JSON must be: invalid start byte at byte 2; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"[[1, 2], [3]]",
            "The body is no array: its lists differ in length or depth, or are nested too deeply; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"[1, [2]]",
            "The body is no array: its lists differ in length or depth, or are nested too deeply; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"[[1, null]]",
            "The body is no array of numbers, texts or truth values: it holds null; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b"null",
            "The body is no array of numbers, texts or truth values: it holds null; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
        (
            b'{"a": 1}',
            "The body is no array of numbers, texts or truth values: it holds {'a': 1}; "
            "send for example [[5.9, 3, 5.1, 1.8]].",
        ),
    ],
)
def test_body_is_refused_with_a_sentence_when_it_is_no_array(body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(NumpyNdarray(), body)
    assert str(raised.value) == sentence
    assert raised.value.error_code == 400


@pytest.mark.parametrize("depth", [100, 2_000, 200_000])
def test_body_is_refused_when_it_is_nested_too_deeply(depth: int) -> None:
    with pytest.raises(BadInput, match="too deeply"):
        read(NumpyNdarray(), "[" * depth + "1" + "]" * depth)


def test_body_is_refused_when_its_texts_would_fill_the_memory() -> None:
    with pytest.raises(BadInput, match="holds 101 items and the longest text has 1000000 characters"):
        read(NumpyNdarray(), json.dumps(["x" * 1_000_000] + [1] * 100))


@pytest.mark.parametrize(
    ("dtype", "body", "expected"),
    [
        ("float32", "[1, 2]", [1.0, 2.0]),
        ("float32", '["1", "2.5"]', [1.0, 2.5]),
        ("float32", "[0.1]", [np.float32(0.1)]),
        ("float16", "[1, 2]", [1.0, 2.0]),
        ("float64", "[true]", [1.0]),
        ("int64", "[1.0, 2.0]", [1, 2]),
        ("int64", '["7"]', [7]),
        ("uint8", "[0, 255]", [0, 255]),
        ("int8", "[-128]", [-128]),
        ("uint64", "[18446744073709551615]", [2**64 - 1]),
        ("bool", "[0, 1]", [False, True]),
        ("bool", "[true]", [True]),
        ("float32", "[]", []),
        ("int32", "[]", []),
        ("datetime64[s]", '["2020-01-02T03:04:05"]', [np.datetime64("2020-01-02T03:04:05")]),
    ],
)
def test_values_are_cast_when_nothing_is_lost(dtype: str, body: str, expected: list[Any]) -> None:
    for descriptor in (NumpyNdarray(dtype), strict(dtype)):
        assert same(read(descriptor, body), np.array(expected, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "body", "came"),
    [
        ("int64", "[1.5]", "float64"),
        ("int64", "[NaN]", "float64"),
        ("int64", "[1e300]", "float64"),
        ("uint64", "[1.8446744073709552e19]", "float64"),
        ("uint8", "[300]", "int64"),
        ("uint8", "[-1]", "int64"),
        ("bool", "[2]", "int64"),
        ("bool", '["true"]', "<U4"),
        ("float32", '["x"]', "<U1"),
        ("float32", "[1e300]", "float64"),
        ("float16", "[70000]", "int64"),
        ("<U2", '["abc"]', "<U3"),
        ("datetime64[s]", '["tomorrow"]', "<U8"),
    ],
)
def test_data_type_is_refused_only_when_it_is_enforced(dtype: str, body: str, came: str) -> None:
    assert read(NumpyNdarray(dtype), body).dtype == came
    with pytest.raises(BadInput, match=re.escape(f"is of data type {came} and does not fit {dtype} without loss")):
        read(strict(dtype), body)


def test_texts_of_any_length_fit_when_the_data_type_is_str() -> None:
    assert read(strict(str), '["a", "bcd"]').tolist() == ["a", "bcd"]


def test_array_of_objects_is_allowed_when_the_data_type_is_object() -> None:
    assert read(strict(object), "[1, null]").tolist() == [1, None]


@pytest.mark.parametrize(
    ("shape", "body", "expected"),
    [
        ((-1, 4), IRIS, (1, 4)),
        ((-1, 4), "[1, 2, 3, 4, 5, 6, 7, 8]", (2, 4)),
        ((2, 2), "[1, 2, 3, 4]", (2, 2)),
        ((), "[1]", ()),
        ((-1, 4), "[1, 2, 3]", (3,)),
        ((-1, -1), "[1, 2, 3]", (3,)),
        ((1, 4), "[[1, 2, 3, 4], [5, 6, 7, 8]]", (2, 4)),
    ],
)
def test_shape_is_made_where_possible_when_it_is_not_enforced(shape: Any, body: str, expected: Any) -> None:
    assert read(NumpyNdarray(shape=shape), body).shape == expected


@pytest.mark.parametrize("body", ["[[1, 2, 3]]", "[1, 2, 3, 4]", "[[[1, 2, 3, 4]]]", "3"])
def test_shape_is_refused_when_it_is_enforced(body: str) -> None:
    with pytest.raises(BadInput, match=r"but \(-1, 4\) was expected; send for example \[\[0\.0, 0\.0, 0\.0, 0\.0\]\]"):
        read(strict("float32", (-1, 4)), body)


def test_sample_is_the_example_of_a_refusal() -> None:
    descriptor = NumpyNdarray.from_sample(np.array([[1.5, 2.5]]))
    with pytest.raises(BadInput, match=r"send for example \[\[1\.5, 2\.5\]\]\."):
        read(descriptor, "?")


def test_example_is_shortened_when_the_sample_is_long() -> None:
    with pytest.raises(BadInput) as raised:
        read(NumpyNdarray.from_sample(np.arange(500)), "?")
    assert str(raised.value).endswith("20, 21, ….")


@pytest.mark.parametrize(
    ("result", "body"),
    [
        (np.array([0]), "[0]"),
        (np.array([[2, 4], [6, 8]]), "[[2,4],[6,8]]"),
        (np.arange(6).reshape(2, 3).T, "[[0,3],[1,4],[2,5]]"),
        (np.array([1, 2], dtype=">i4"), "[1,2]"),
        (np.array([0.1, 2], dtype="float32"), "[0.1,2.0]"),
        (np.array([True, False]), "[true,false]"),
        (np.array(["setosa", "ü"]), '["setosa","ü"]'),
        (np.array(["setosa", None], dtype=object), '["setosa",null]'),
        (np.array([b"ab"]), '["ab"]'),
        (np.array(["2020-01-02"], dtype="datetime64[D]"), '["2020-01-02"]'),
        (np.array("2020-01-02T03:04", dtype="datetime64[s]"), '"2020-01-02T03:04:00"'),
        (np.array([1.5, np.nan]), "[1.5,NaN]"),
        (np.array([np.nan, np.inf, -np.inf]), "[NaN,Infinity,-Infinity]"),
        (np.array([1.5], dtype=np.longdouble), "[1.5]"),
        (np.array(2.5), "2.5"),
        (np.float32(2.5), "2.5"),
        (np.zeros((2, 0)), "[[],[]]"),
        (3, "3"),
        ([[1, 2], [3, 4]], "[[1,2],[3,4]]"),
        ("setosa", '"setosa"'),
        (pd.Series([1, 2]), "[1,2]"),
        (pd.DataFrame({"a": [1], "b": [2]}), "[[1,2]]"),
    ],
)
def test_result_is_sent_as_json(result: Any, body: str) -> None:
    sent = send(NumpyNdarray(), result)
    assert sent.body.decode() == body
    assert sent.all("content-type") == ["application/json"]
    assert sent.all("content-length") == [str(len(sent.body))]


class Tensor:
    """Behaves as a torch tensor with a gradient does: numpy reads it only once it is detached."""

    def __init__(self, values: list[float], *, leaf: bool = True) -> None:
        self.values, self.leaf = values, leaf

    def detach(self) -> Tensor:
        return Tensor(self.values, leaf=False)

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.leaf:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.array(self.values, dtype=dtype)


def test_tensor_is_sent_when_it_has_a_gradient() -> None:
    assert send(NumpyNdarray(), Tensor([1.0])).body == b"[1.0]"


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "returned None instead of an array; is a `return` missing"),
        ({"a": 1}, r"returned a dict instead of an array: {'a': 1}; adapter\.io\.JSON sends any value"),
        ({1, 2}, "returned a set instead of an array"),
        ([[1], [1, 2]], "returned a list that numpy cannot make an array of"),
        (np.array([1j]), "array of complex128 cannot be written as JSON: the type 'complex' has no JSON form"),
        (np.array([b"\xff"]), r"array of \|S1 cannot be written as JSON"),
        (np.array([np.timedelta64(1, "s")]), "the type 'timedelta' has no JSON form"),
    ],
)
def test_result_is_an_error_of_the_service_when_it_is_no_array(result: Any, sentence: str) -> None:
    with pytest.raises(InternalServerError, match=sentence):
        send(NumpyNdarray(), result)


def test_result_is_an_error_of_the_service_when_it_does_not_fit() -> None:
    with pytest.raises(
        InternalServerError,
        match=r"The result has the shape \(1, 3\), but \(-1, 4\) was expected, as its descriptor enforces\.",
    ) as raised:
        send(strict(shape=(-1, 4)), np.zeros((1, 3)))
    assert raised.value.error_code == 500
    with pytest.raises(InternalServerError, match="The result is of data type float64 and does not fit int64"):
        send(strict("int64"), [1.5])


def test_result_is_cast_and_reshaped_when_it_can_be() -> None:
    assert send(NumpyNdarray("float32", shape=(-1, 2)), [1, 2]).body == b"[[1.0,2.0]]"
    assert send(strict("int64"), np.array([1, 2], dtype=object)).body == b"[1,2]"
    assert send(strict("float64"), np.array(["x"], dtype=object).astype(str).size).body == b"1.0"


def test_context_is_applied_when_it_is_given() -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 202
    sent = send(NumpyNdarray(), np.array([0]), ctx)
    assert (sent.status, sent.body) == (202, b"[0]")


@given(
    arrays.arrays(st.sampled_from(["float64", "float32", "int64", "uint8", "bool"]), arrays.array_shapes(min_dims=0))
)
def test_array_comes_back_as_it_was_sent(array: Array) -> None:
    back = read(strict(array.dtype, array.shape), send(NumpyNdarray(), array).body)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"dtype": "float33"}, UnprocessableEntity, "'float33' is not a numpy data type"),
        ({"shape": (-1, "x")}, InvalidArgument, r"A shape is a tuple of whole numbers such as \(-1, 4\)"),
        ({"shape": (-2,)}, InvalidArgument, "A shape is a tuple of whole numbers"),
        ({"shape": 4}, InvalidArgument, "A shape is a tuple of whole numbers"),
        ({"enforce_dtype": True}, InvalidArgument, "enforce_dtype=True needs the dtype to enforce: give dtype=…"),
        ({"enforce_shape": True}, InvalidArgument, "enforce_shape=True needs the shape to enforce: give shape=…"),
        (
            {"validate": True},
            InvalidArgument,
            "NumpyNdarray has no argument 'validate': enforce_dtype=True and enforce",
        ),
        ({"schema": "float32"}, InvalidArgument, "NumpyNdarray has no argument 'schema': it is called dtype"),
        ({"colour": 1}, TypeError, "NumpyNdarray has no argument 'colour'"),
    ],
)
def test_arguments_are_refused_with_a_sentence(
    arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        NumpyNdarray(**arguments)


def test_from_sample_takes_data_type_and_shape_and_enforces_nothing() -> None:
    for sample in (np.array([[1.0, 2.0, 3.0, 4.0]]), [[1.0, 2.0, 3.0, 4.0]]):
        descriptor = NumpyNdarray.from_sample(sample)
        assert (descriptor.dtype, descriptor.shape) == (np.dtype("float64"), (1, 4))
        assert (descriptor.enforce_dtype, descriptor.enforce_shape) == (False, False)
        assert isinstance(descriptor.sample, np.ndarray)
        assert descriptor.example == [[1.0, 2.0, 3.0, 4.0]]
        assert read(descriptor, "[1, 2]").tolist() == [1.0, 2.0]


def test_from_sample_yields_to_arguments() -> None:
    descriptor = NumpyNdarray.from_sample([[1, 2]], dtype="float32", shape=(-1, 2), enforce_shape=True)
    assert (descriptor.dtype, descriptor.shape, descriptor.enforce_shape) == (np.dtype("float32"), (-1, 2), True)


@pytest.mark.parametrize("sample", [np.float64(1), 3, "text", None, [[1], [1, 2]]])
def test_from_sample_refuses_when_the_sample_is_no_array(sample: Any) -> None:
    with pytest.raises(BadInput):
        NumpyNdarray.from_sample(sample)


@pytest.mark.parametrize(
    ("descriptor", "schema"),
    [
        (NumpyNdarray(), {"type": "array", "items": {}}),
        (NumpyNdarray("float32"), {"type": "array", "items": {"type": "number"}}),
        (
            NumpyNdarray("int64", shape=(-1, 4)),
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        ),
        (
            strict(bool, (-1, 2)),
            {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}},
        ),
        (NumpyNdarray(str, shape=()), {"type": "string"}),
        (
            NumpyNdarray.from_sample(np.array(["2020-01-02"], dtype="datetime64[D]")),
            {"type": "array", "items": {"type": "string"}, "example": ["2020-01-02"]},
        ),
        (
            NumpyNdarray.from_sample([1.0, math.nan]),
            {"type": "array", "items": {"type": "number"}},
        ),
        (NumpyNdarray.from_sample(np.zeros(2000)), {"type": "array", "items": {"type": "number"}}),
    ],
)
def test_schema_describes_the_array(descriptor: NumpyNdarray, schema: dict[str, Any]) -> None:
    assert descriptor.schema() == schema
    assert descriptor.components() == {}
    assert descriptor.python_type() is np.ndarray


# ---- .npy -------------------------------------------------------------------------------------------------------


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_header(header: str, version: int = 1, data: bytes = b"") -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode("latin-1") + data


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, 2.5]], dtype="float32"),
        np.array(3),
        np.zeros((0, 4)),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array([1j]),
        np.array(["a", "bcd"]),
        np.array([b"ab"]),
        np.array(["2020-01-02"], dtype="datetime64[D]"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/x-npy", "application/octet-stream", None])
def test_npy_file_is_read(array: Array, content_type: str | None) -> None:
    back = read(NumpyNdarray(), npy(array), content_type)
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable
    assert back.flags.aligned


def test_npy_file_of_version_2_is_read() -> None:
    header = "{'descr': '<i2', 'fortran_order': False, 'shape': (1,), }\n"
    assert read(NumpyNdarray(), npy_header(header, 2, b"\x07\x00")).tolist() == [7]


def test_npy_file_is_cast_and_checked_as_json_is() -> None:
    assert read(NumpyNdarray("float32", shape=(1, 2)), npy(np.array([1, 2]))).tolist() == [[1.0, 2.0]]
    with pytest.raises(BadInput, match="is of data type float64 and does not fit int64 without loss"):
        read(strict("int64"), npy(np.array([1.5])))
    with pytest.raises(BadInput, match=r"has the shape \(3,\), but \(-1, 4\) was expected"):
        read(strict(shape=(-1, 4)), npy(np.zeros(3)))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[1, 2", "The body came as 'application/x-npy', but it is no .npy file: write one with numpy.save"),
        (b"", "The body came as 'application/x-npy', but it is no .npy file"),
        (b"\x93NUMPY", "has a header that numpy cannot read"),
        (b"\x93NUMPY\x09\x00\x00\x00", "has a header that numpy cannot read"),
        (npy(np.array([1, 2]))[:-1], r"tells of shape \(2,\) and int64, which are 16 bytes, but 15 follow"),
        (npy(np.array([1, 2])) + b"x", "but 17 follow"),
        (npy(np.array([None]), allow_pickle=True), "holds values of data type object"),
        (npy(np.zeros(1, dtype=[("a", "i4")])), "holds values of data type"),
        (npy_header("{'descr': '|V3', 'fortran_order': False, 'shape': (1,)}", data=b"abc"), "data type"),
        (npy_header("{'descr': '<U0', 'fortran_order': False, 'shape': (10**9,)}"), "cannot read"),
        (npy_header("{'descr': '<U0', 'fortran_order': False, 'shape': (9999999999,)}"), "data type"),
        (
            npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 0)}"),
            "which is empty, but too long",
        ),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", data=bytes(8)), "follow"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10,)*99}"), "cannot read"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': 'x'}"), "cannot read"),
        (npy_header("__import__('os').abort()"), "cannot read"),
        (npy_header("(" * 5000), "cannot read"),
    ],
)
def test_npy_file_is_refused_with_a_sentence_when_it_is_broken(body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read(NumpyNdarray(), body, "application/x-npy")


def send_npy(descriptor: NumpyNdarray, result: Any, header: str = "application/x-npy") -> Any:
    token = accept.set(header)
    try:
        return send(descriptor, result)
    finally:
        accept.reset(token)


@pytest.mark.parametrize(
    "result",
    [
        np.array([[1.5, math.nan]], dtype="float32"),
        np.array(3),
        np.zeros((0, 4)),
        np.arange(6).reshape(2, 3).T,
        np.arange(3, dtype=">i4"),
        np.array(["a", "bcd"]),
        np.array(["2020-01-02"], dtype="datetime64[D]"),
        [[1, 2], [3, 4]],
        pd.DataFrame({"a": [1.5]}),
        np.array(["a", "bcd"], dtype=object),
        np.array([1, 2.5], dtype=object),
    ],
)
def test_result_is_sent_as_npy_when_the_client_asks_for_it(result: Any) -> None:
    sent = send_npy(NumpyNdarray(), result)
    assert sent.all("content-type") == ["application/x-npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(sent.body)), np.asarray(result))


def test_result_is_sent_as_json_when_the_client_prefers_it() -> None:
    assert send_npy(NumpyNdarray(), [1], "application/x-npy;q=0.5, application/json").body == b"[1]"
    assert send_npy(NumpyNdarray(), [1], "text/html").body == b"[1]"


@pytest.mark.parametrize("result", [np.array(["a", 1], dtype=object), np.array([None]), np.zeros(1, dtype="V3")])
def test_result_is_an_error_of_the_service_when_it_has_no_npy(result: Array) -> None:
    with pytest.raises(InternalServerError, match=r"cannot be written as a \.npy file"):
        send_npy(NumpyNdarray(), result)


@given(st.binary(), st.sampled_from(["application/json", "application/x-npy", "application/octet-stream"]))
def test_body_is_read_or_refused_whatever_it_is(body: bytes, content_type: str) -> None:
    for descriptor in (NumpyNdarray(), strict("float32", (-1, 2))):
        with contextlib.suppress(BadInput):
            read(descriptor, body, content_type)


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_npy_file_is_read_or_refused_when_it_is_damaged(place: int, bytes_: bytes) -> None:
    body = npy(np.arange(8.0))
    with contextlib.suppress(BadInput):
        read(NumpyNdarray(), body[:place] + bytes_ + body[place + len(bytes_) :], "application/x-npy")


@given(
    arrays.arrays(
        st.sampled_from(["float64", "float32", ">i8", "uint8", "bool", "<U3", "datetime64[s]"]),
        arrays.array_shapes(min_dims=0, min_side=0),
    )
)
def test_array_comes_back_as_it_was_sent_as_npy(array: Array) -> None:
    back = read(NumpyNdarray(), send_npy(NumpyNdarray(), array).body)
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=3),
)


@given(JSON_VALUES)
def test_json_is_read_or_refused_whatever_it_holds(value: Any) -> None:
    for descriptor in (NumpyNdarray(), NumpyNdarray("float32"), strict("int8", (-1,)), strict("datetime64[s]")):
        with contextlib.suppress(BadInput):
            read(descriptor, json.dumps(value))

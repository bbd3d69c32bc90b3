from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from adapter.exceptions import InvalidArgument
from adapter.tensor import TensorSpec, cast, concat, from_front, infer, numpy_dtype, split, to_front, triton_dtype


@pytest.mark.parametrize(
    ("dtype", "triton"),
    [
        ("float32", "FP32"),
        ("float64", "FP64"),
        ("float16", "FP16"),
        ("int64", "INT64"),
        ("uint8", "UINT8"),
        (bool, "BOOL"),
    ],
)
def test_triton_dtype_when_both_have_it(dtype: Any, triton: str) -> None:
    assert triton_dtype(dtype) == triton
    assert numpy_dtype(triton) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["<U5", "object", "datetime64[ns]", "complex64"])
def test_triton_dtype_when_triton_has_none(dtype: str) -> None:
    assert triton_dtype(dtype) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (("float32", (-1, 4)), TensorSpec("float32", (-1, 4), "x")),
        ((np.float32, [2]), TensorSpec("float32", (2,), "x")),
        (np.zeros((3, 2), "int8"), TensorSpec("int8", (-1, 2), "x")),
        (np.array("a"), TensorSpec("str", (), "x")),
        (np.array(["ab"]), TensorSpec("str", (-1,), "x")),
        (TensorSpec("bool", ()), TensorSpec("bool", (), "x")),
        (TensorSpec("bool", (), "own"), TensorSpec("bool", (), "own")),
    ],
)
def test_of_when_the_description_is_valid(spec: Any, expected: TensorSpec) -> None:
    assert TensorSpec.of(spec, "x", batch_dim=0) == expected


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: TensorSpec("floaty", (1,)), "'floaty' is not a numpy data type"),
        (lambda: TensorSpec("float32", 4), "4 is not a shape"),  # type: ignore[arg-type]  # what is refused
        (lambda: TensorSpec("float32", (None, 4)), "is not a shape"),  # type: ignore[arg-type]  # what is refused
        (lambda: TensorSpec("float32", (-2, 4)), "negative length"),
        (lambda: TensorSpec.of("float32"), "does not describe a tensor"),
        (lambda: TensorSpec.of(np.zeros(3), batch_dim=1), "no axis 1"),
    ],
)
def test_spec_when_it_is_not_valid(make: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        make()


@pytest.mark.parametrize("dtype", ["float32", "<U7", "S3", "datetime64[ns]", "object", "bool"])
def test_from_dict_when_to_dict_wrote_it(dtype: str) -> None:
    spec = TensorSpec(dtype, (-1, 2), "x")
    assert TensorSpec.from_dict(spec.to_dict()) == spec


def test_cast_when_the_value_fits() -> None:
    array = TensorSpec("float32", (-1, 2)).cast([[1, 2]])
    assert array.dtype == np.float32
    assert array.tolist() == [[1.0, 2.0]]
    assert TensorSpec("<U3", (-1,)).cast(["longer"]).tolist() == ["longer"]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("uint8", [0, 255], [0, 255]),
        ("int8", [-128.0, 127.0], [-128, 127]),
        ("int32", np.array([2**31 - 1], "uint64"), [2**31 - 1]),
        ("uint64", [2**64 - 1], [2**64 - 1]),
        ("float32", [0.1, 1e-300, np.inf], [np.float32(0.1), 0.0, np.inf]),
        ("float16", [65504], [65504.0]),
        ("float64", [2**63 - 1], [2.0**63]),
        ("float32", [True, 2], [1.0, 2.0]),
        ("bool", [0, 1.0], [False, True]),
        ("int64", np.array([1, 2.0, True], dtype=object), [1, 2, 1]),
        ("uint8", [], []),
    ],
)
def test_cast_when_no_value_changes_but_for_rounding(dtype: str, value: Any, expected: list[Any]) -> None:
    array = TensorSpec(dtype, (-1,)).cast(value)
    assert array.dtype == dtype
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value", "misfit"),
    [
        ("int8", [[100, 300, 400]], "300"),
        ("int32", 2**40, "1099511627776"),
        ("uint8", np.arange(-1, 1000)[::-1], "999"),
        ("uint64", [1, -1], "-1"),
        ("int64", [1.0, 2.5], "2.5"),
        ("int64", [1.0, np.nan], "nan"),
        ("int64", [2.0**63], "9.223372036854776e+18"),
        ("float16", [1.0, 1e9], "1000000000.0"),
        ("float16", [70000], "70000"),
        ("float32", [1e39], "1e+39"),
        ("bool", [0, 1, 2], "2"),
        ("float32", [1, "2"], "'2'"),
        ("float32", [[1.0, None]], "None"),
        ("float64", [1j], "1j"),
        ("int64", np.array(["2020-01-02"], "datetime64[D]"), "2020-01-02"),
    ],
)
def test_cast_when_a_value_does_not_fit_names_the_first(dtype: str, value: Any, misfit: str) -> None:
    spec = TensorSpec(dtype, (-1,) * np.ndim(value), "x")
    message = f"The tensor 'x' takes an array of {dtype}, which {misfit} does not fit."
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}$"):
        spec.cast(value)


@pytest.mark.parametrize("length", [1, 3, 17, 1000, 10_001])
def test_cast_when_one_of_many_floats_would_become_infinite(length: int) -> None:
    array = np.zeros(length)
    array[length // 2] = 1e39
    for given in (array, array[::-1], np.stack([array, array], axis=1)[:, 1]):
        assert cast(given, np.dtype("float32")) is None


def test_cast_when_the_data_type_is_the_wanted_one_copies_nothing() -> None:
    array = np.ones((2, 3), "float32")
    assert cast(array, np.dtype("float32")) is array
    assert TensorSpec("float32", (-1, 3)).cast(array) is array


@pytest.mark.parametrize(
    ("values", "dtype"), [([1, 2], "int64"), ([1, 2.5], "float64"), ([1, None], "object"), ([[1], [2, 3]], "object")]
)
def test_infer_when_the_values_are_objects(values: list[Any], dtype: str) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    assert infer(array).dtype == dtype


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1.5, 2]], "'x' takes an array of int64, which 1.5 does not fit"),
        ([1, 2, 3], r"takes an array of shape \(-1, 2\) .*\(3,\) came"),
        ([[1, 2, 3]], r"takes an array of shape \(-1, 2\) .*\(1, 3\) came"),
        ([[1], [2, 3]], "ragged"),
    ],
)
def test_cast_when_the_value_does_not_fit(value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        TensorSpec("int64", (-1, 2), "x").cast(value)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_batch_axis_when_moved_there_and_back(axis: int) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    moved = to_front(array, axis)
    assert moved.shape[0] == array.shape[axis]
    assert moved.flags.c_contiguous
    assert np.array_equal(from_front(moved, axis), array)


def test_split_when_concat_joined() -> None:
    pieces = [np.ones((2, n)) * n for n in (1, 3, 2)]
    joined = concat(pieces, 1)
    assert joined.shape == (2, 6)
    for piece, expected in zip(split(joined, [1, 3, 2], 1), pieces, strict=True):
        assert np.array_equal(piece, expected)

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.context import Context
from adapter.exceptions import (
    BadInput,
    InternalServerError,
    InvalidArgument,
    UnprocessableEntity,
    UnsupportedMediaType,
)
from adapter.io import PandasDataFrame, PandasSeries, from_spec
from adapter.io.base import accept
from tests.io.wire import Sent, read, request, send

PARQUET = "application/vnd.apache.parquet"
ORIENTS: tuple[Any, ...] = ("records", "split", "columns", "index", "values", "table")


def ask(descriptor: Any, result: Any, header: str) -> Sent:
    token = accept.set(header)
    try:
        return send(descriptor, result)
    finally:
        accept.reset(token)


def split(frame: pd.DataFrame) -> tuple[list[Any], list[Any], list[Any]]:
    parts = frame.to_dict("split")
    return parts["columns"], parts["index"], parts["data"]


def parquet_of(frame: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


# ---- JSON in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orient", "body", "columns", "index", "data"),
    [
        ("records", '[{"a": 1, "b": 2.5}, {"a": 2, "b": 3}]', ["a", "b"], [0, 1], [[1, 2.5], [2, 3.0]]),
        ("records", '[{"a": "007", "t": "2020-01-02"}]', ["a", "t"], [0], [["007", "2020-01-02"]]),
        ("records", "[[1, 2], [3, 4]]", [0, 1], [0, 1], [[1, 2], [3, 4]]),
        ("records", "[1, 2]", [0], [0, 1], [[1], [2]]),
        ("records", '{"a": [1, 2]}', ["a"], [0, 1], [[1], [2]]),
        ("records", '[{"0": 1, "10": 2}]', [0, 10], [0], [[1, 2]]),
        ("records", '[{"0": 1, "01": 2}]', ["0", "01"], [0], [[1, 2]]),
        ("records", '[{"a": {"b": [1]}}]', ["a"], [0], [[{"b": [1]}]]),
        ("records", '[{"a": true}, {"a": false}]', ["a"], [0, 1], [[True], [False]]),
        ("records", "[]", [], [], []),
        ("values", '[[1, "x"]]', [0, 1], [0], [[1, "x"]]),
        ("split", '{"columns": ["a"], "index": ["x"], "data": [[1]]}', ["a"], ["x"], [[1]]),
        ("split", '{"data": [[1, 2]]}', [0, 1], [0], [[1, 2]]),
        ("split", '{"columns": ["a", "b"], "data": []}', ["a", "b"], [], []),
        ("columns", '{"a": {"0": 1, "1": 2}}', ["a"], [0, 1], [[1], [2]]),
        ("columns", '{"a": {"0.5": 1, "1.5": 2}}', ["a"], [0.5, 1.5], [[1], [2]]),
        ("columns", '{"a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 4}}', ["a", "b"], ["x", "y"], [[1, 4], [2, 3]]),
        ("columns", '{"a": [1, 2], "b": [3, 4]}', ["a", "b"], [0, 1], [[1, 3], [2, 4]]),
        ("columns", "{}", [], [], []),
        ("index", '{"x": {"a": 1, "b": 2}}', ["a", "b"], ["x"], [[1, 2]]),
    ],
)
def test_json_becomes_a_frame(orient: Any, body: str, columns: Any, index: Any, data: Any) -> None:
    assert split(read(PandasDataFrame(orient), body)) == (columns, index, data)


def test_rows_without_columns_are_kept() -> None:
    assert read(PandasDataFrame(), "[{}, {}]").shape == (2, 0)


def test_missing_texts_are_texts() -> None:
    for descriptor in (PandasDataFrame(), PandasDataFrame(dtype=str, enforce_dtype=True)):
        assert read(descriptor, '[{"a": "x"}, {"a": null}]')["a"].isna().tolist() == [False, True]


def test_missing_values_are_nan() -> None:
    frame = read(PandasDataFrame(), '[{"a": 1, "s": "x"}, {"a": null, "b": NaN}, {"b": 2}]')
    assert frame.isna().to_numpy().tolist() == [[False, False, True], [True, True, True], [True, True, False]]
    assert frame["a"].dtype == frame["b"].dtype == "float64"


def test_table_of_columns_without_names_can_be_read_again() -> None:
    descriptor = PandasDataFrame("table")
    sent = send(descriptor, [[1, 2.5], [3, 4.5]]).body
    assert split(read(descriptor, sent)) == (["0", "1"], [0, 1], [[1, 2.5], [3, 4.5]])


def test_table_is_read_with_its_data_types() -> None:
    frame = pd.DataFrame({"n": [1], "t": pd.to_datetime(["2020-01-02"]), "s": ["x"]}, index=pd.Index([7], name="i"))
    back = read(PandasDataFrame("table"), frame.to_json(orient="table"))
    assert split(back) == (["n", "t", "s"], [7], [[1, pd.Timestamp("2020-01-02"), "x"]])


@pytest.mark.parametrize(
    ("orient", "body", "sentence"),
    [
        ("records", "", 'The body is empty, but JSON was expected; send for example [{"a":1,"b":1}].'),
        ("records", '[{"a": 1', "The body is not JSON: Expecting ',' delimiter at line 1 column 9; send for example "),
        ("records", '{"a": 1}', "The body is no data frame in the orient 'records': it takes a list of objects, not {"),
        ("records", "null", "it takes a list of objects, not None"),
        ("records", "[[1, 2], [3]]", "it has rows of 1 to 2 values"),
        ("records", '[{"a": 1}, [2]]', "it has rows of several kinds, one of them {'a': 1}"),
        ("records", "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("records", '[{"a": NaN, "b": "\\ud800"}]', "half a surrogate pair"),
        ("values", '[{"a": 1}]', "it takes a list of values in each row, not {'a': 1}"),
        ("values", "{}", "it takes a list of rows, not {}"),
        ("columns", "[]", "it takes an object of columns, not []"),
        ("columns", '{"a": 1}', "it takes an object of values by row label in each column, not 1"),
        ("columns", '{"a": [1], "b": [1, 2]}', "it has columns of 1 to 2 values"),
        ("index", '{"x": null}', "it takes an object of objects, one for each row, not {'x': None}"),
        (
            "split",
            '{"columns": ["a"]}',
            "it takes an object with 'columns', 'index' and 'data', not {'columns': ['a']}",
        ),
        ("split", '{"data": [], "rows": 1}', "it has 'rows' beside 'columns', 'index' and 'data'"),
        ("split", '{"columns": ["a"], "data": [[1, 2]]}', "it has 1 labels in 'columns' for 2 in 'data'"),
        ("split", '{"index": [], "data": [[1, 2]]}', "it has 0 labels in 'index' for 1 in 'data'"),
        ("split", '{"columns": 3, "data": []}', "it takes a list as its 'columns', not 3"),
        ("split", '{"columns": [["a"]], "data": [[1]]}', "it takes texts and numbers in its 'columns', not ['a']"),
        ("split", '{"columns": ["a", "a"], "data": [[1, 2]]}', "The body has two columns called 'a': name them apart."),
        ("table", "[]", "it takes an object with 'schema' and 'data'"),
        ("table", '{"schema": {"fields": [{"name": "a"}]}, "data": [{"a": 1}]}', "pandas cannot read it (KeyError"),
        ("table", '{"schema": {"fields": [{"name": "a", "type": "integer"}]}, "data": [{"a": "x"}]}', "cannot read it"),
    ],
)
def test_json_is_refused_with_a_sentence_when_it_is_no_frame(orient: Any, body: str, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(PandasDataFrame(orient), body)
    assert sentence in str(raised.value)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


WIDE = 50_001


@pytest.mark.parametrize(
    ("orient", "value"),
    [
        ("records", [[0] * WIDE]),
        ("records", [{f"k{i}": 1 for i in range(WIDE)}]),
        ("columns", {f"k{i}": {} for i in range(WIDE)}),
        ("index", {"r": {f"k{i}": 1 for i in range(WIDE)}}),
        ("split", {"columns": list(range(WIDE)), "data": []}),
        ("table", {"schema": {"fields": [{"name": i} for i in range(WIDE)]}, "data": []}),
    ],
)
def test_json_is_refused_when_it_is_too_wide(orient: Any, value: Any) -> None:
    with pytest.raises(BadInput, match="The body has 50001 columns, but no more than 50000 are taken"):
        read(PandasDataFrame(orient), json.dumps(value))


@pytest.mark.parametrize(
    ("orient", "value"),
    [
        ("records", [{f"k{i}": 1} for i in range(20_000)]),
        ("index", {f"r{i}": {f"k{i}": 1} for i in range(20_000)}),
        ("columns", {f"k{i}": {f"r{i}": 1} for i in range(20_000)}),
        ("table", {"schema": {"fields": [{"name": i} for i in range(20_000)]}, "data": [{}] * 20_000}),
    ],
)
def test_json_is_refused_when_it_would_make_a_frame_of_gaps(orient: Any, value: Any) -> None:
    with pytest.raises(BadInput, match=r"it has \d+ values in all for 20000 rows and 20000 columns"):
        read(PandasDataFrame(orient), json.dumps(value))


def test_charset_of_json_is_honoured() -> None:
    body = '[{"ä": "ü"}]'.encode("latin-1")
    assert split(read(PandasDataFrame(), body, "application/json; charset=latin-1")) == (["ä"], [0], [["ü"]])
    with pytest.raises(BadInput, match="The body is not UTF-8, as JSON must be"):
        read(PandasDataFrame(), body, "application/json")


# ---- CSV and Parquet in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "columns", "data"),
    [
        ("text/csv", b"a,b\n1,x\n2,y\n", ["a", "b"], [[1, "x"], [2, "y"]]),
        ("text/csv; charset=utf-8; header=present", "a\nü\n".encode(), ["a"], [["ü"]]),
        ("text/csv; charset=latin-1", "ä\nü\n".encode("latin-1"), ["ä"], [["ü"]]),
        ('TEXT/CSV;charset="UTF-16"', "a\nü\n".encode("utf-16"), ["a"], [["ü"]]),
        ("application/csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n", ["a", "b"], [[1, 2]]),
        ("text/csv", b'a,"b,\nc"\n1,"x\ny"\n', ["a", "b,\nc"], [[1, "x\ny"]]),
        ("text/csv", b"a,b\n", ["a", "b"], []),
    ],
)
def test_csv_becomes_a_frame(content_type: str, body: bytes, columns: Any, data: Any) -> None:
    frame = read(PandasDataFrame(), body, content_type)
    assert split(frame) == (columns, list(range(len(data))), data)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is empty, but CSV with a header line was expected."),
        (b"\n \n", "The body is no CSV that can be read: No columns to parse from file."),
        (b"a,b,a\n1,2,3\n", "The body is CSV with two columns called 'a': name them apart."),
        (b"a,b\n1,2\n3\n", "The body is CSV whose row 3 has 1 values, but its header line has 2 names."),
        (b"a,b\n1,2,3\n", "The body is CSV whose row 2 has 3 values, but its header line has 2 names."),
        (b"a,b\n1,2\n1,2,3\n", "The body is no CSV that can be read: Expected 2 fields in line 3, saw 3."),
        (b'a\n"x', "The body is no CSV that can be read: EOF inside string starting at row 1."),
        (b"a\n\xff\n", "The body is not text in UTF-8: invalid start byte at byte 2"),
        (b"a" * 200_000 + b"\n1\n", "its header line cannot be read"),
        (",".join(f"k{i}" for i in range(50_000)).encode() + b"\n" + b"1\n" * 50_000, "row 2 has 1 values"),
        (b"," * 50_000 + b"\n", "The body has 50001 columns, but no more than 50000 are taken."),
    ],
)
def test_csv_is_refused_with_a_sentence_when_it_is_no_table(body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(PandasDataFrame(), body, "text/csv")
    assert sentence in str(raised.value)


@pytest.mark.parametrize("content_type", [PARQUET, "application/octet-stream", "application/x-parquet"])
def test_parquet_becomes_a_frame(content_type: str) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["x", None]}, index=["p", "q"])
    pd.testing.assert_frame_equal(read(PandasDataFrame(), parquet_of(frame), content_type), frame)


def test_parquet_is_refused_when_it_is_none() -> None:
    with pytest.raises(BadInput, match="The body is no Parquet file that can be read"):
        read(PandasDataFrame(), b"[1]", PARQUET)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_default_format_is_read_when_the_content_type_tells_nothing(content_type: str | None) -> None:
    assert split(read(PandasDataFrame(default_format="csv"), "a\n1\n", content_type)) == (["a"], [0], [[1]])
    assert split(read(PandasDataFrame(), '[{"a": 1}]', content_type)) == (["a"], [0], [[1]])


def test_content_type_is_refused_when_it_is_no_table() -> None:
    with pytest.raises(
        UnsupportedMediaType, match="'image/png', which this API does not read: send it with the header"
    ):
        read(PandasDataFrame(), "[]", "image/png")
    with pytest.raises(UnsupportedMediaType, match="content-type: text/csv"):
        read(PandasDataFrame(default_format="csv"), "[]", "image/png")


# ---- columns, data types, shape -------------------------------------------------------------------------------------


def test_columns_are_checked_and_put_in_order() -> None:
    descriptor = PandasDataFrame(columns=["a", "b"])
    assert split(read(descriptor, '[{"b": 1, "a": 2}]')) == (["a", "b"], [0], [[2, 1]])
    assert split(read(descriptor, "[[1, 2]]")) == (["a", "b"], [0], [[1, 2]])
    assert split(read(descriptor, "[]")) == (["a", "b"], [], [])
    for body, sentence in (
        ('[{"a": 1}]', "The body has no column 'b'; the columns ['a', 'b'] were expected; send for example [{"),
        ('[{"a": 1, "b": 2, "c": 3}]', "The body has a column 'c', but only ['a', 'b'] were expected"),
        ("[[1, 2, 3]]", "The body has 3 columns, but the 2 of ['a', 'b'] were expected"),
    ):
        with pytest.raises(BadInput) as raised:
            read(descriptor, body)
        assert sentence in str(raised.value)
    with pytest.raises(InternalServerError, match="The result has no column 'b'"):
        send(descriptor, [{"a": 1}])


def test_column_labels_are_the_ones_that_were_given() -> None:
    assert split(read(PandasDataFrame(columns=["0", "1"]), '[{"1": 1, "0": 2}]')) == (["0", "1"], [0], [[2, 1]])


def test_column_names_are_applied() -> None:
    descriptor = PandasDataFrame(columns=["a", "b"], apply_column_names=True)
    assert split(read(descriptor, '[{"x": 1, "y": 2}]')) == (["a", "b"], [0], [[1, 2]])
    assert send(descriptor, [{"x": 1, "y": 2}]).body == b'[{"a":1,"b":2}]'
    with pytest.raises(BadInput, match="The body has 1 columns, but the 2 of"):
        read(descriptor, "[[1]]")


@pytest.mark.parametrize(
    ("dtype", "cells", "expected"),
    [
        ("float32", "[1, 2.5]", [1.0, 2.5]),
        ("float64", '["1.5", null]', [1.5, math.nan]),
        ("int64", "[1.0, 2]", [1, 2]),
        ("int64", '["7", "8"]', [7, 8]),
        ("uint8", "[0, 255]", [0, 255]),
        ("bool", "[0, 1]", [False, True]),
        ("bool", "[true, false]", [True, False]),
        ("Int64", "[1, null]", [1, pd.NA]),
        ("boolean", "[true, null]", [True, pd.NA]),
        ("category", '["a", "b"]', ["a", "b"]),
        ("object", '[1, "x"]', [1, "x"]),
        (str, '["a", "b"]', ["a", "b"]),
        ("string", '["a", null]', ["a", pd.NA]),
        (
            "datetime64[ns]",
            '["2020-01-02", "2020-01-02T03:04:05.678"]',
            [pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-02T03:04:05.678")],
        ),
        ("datetime64[s]", "[1577923200000, null]", ["2020-01-02", "NaT"]),
        ("datetime64[ns, UTC]", '["2020-01-02T02:00:00+02:00"]', ["2020-01-02T00:00:00Z"]),
        ("timedelta64[ns]", '["P1DT1H"]', [pd.Timedelta("25h")]),
        ("float32", "[]", []),
        ("datetime64[ns]", "[]", []),
    ],
)
def test_values_are_cast_when_nothing_is_lost(dtype: Any, cells: str, expected: list[Any]) -> None:
    wanted = pd.Series(expected, dtype="str" if dtype is str else None).astype(dtype)
    for kind in (dtype, {"a": dtype}):
        for enforced in (True, False):
            body = f'{{"columns": ["a"], "data": {json.dumps([[cell] for cell in json.loads(cells)])}}}'
            frame = read(PandasDataFrame("split", dtype=kind, enforce_dtype=enforced), body)
            pd.testing.assert_series_equal(frame["a"], wanted, check_names=False, check_dtype=dtype is not str)
    series = read(PandasSeries(dtype=dtype, enforce_dtype=True), cells)
    pd.testing.assert_series_equal(series, wanted, check_names=False, check_dtype=dtype is not str)


@pytest.mark.parametrize(
    ("dtype", "cells", "misfit"),
    [
        ("int64", "[1, 1.5]", "1.5"),
        ("int64", "[1, null]", "nan"),
        ("uint8", "[1, 300]", "300"),
        ("Int8", "[300]", "300"),
        ("bool", "[1, 2]", "2"),
        ("bool", '["true"]', "'true'"),
        ("float64", '["1", "x"]', "'x'"),
        ("float64", "[[1], [2]]", "[1]"),
        ("float64", '[{"a": 1}]', "{'a': 1}"),
        ("float32", "[1e300]", "1e+300"),
        ("int64", "[123456789012345678901234567890]", "1.2345678901234568e+29"),
        (str, "[1]", "1"),
        (str, "[[]]", "[]"),
        ("datetime64[ns]", '["tomorrow"]', "'tomorrow'"),
        ("datetime64[ns]", '["2020-01-02T00:00:00+02:00"]', "'2020-01-02T00:00:00+02:00'"),
        ("datetime64[ns]", "[true]", "True"),
        ("datetime64[ns]", "[1e300]", "1e+300"),
        (pd.CategoricalDtype(["a"]), '["a", "b"]', "'b'"),
    ],
)
def test_data_type_is_refused_only_when_it_is_enforced(dtype: Any, cells: str, misfit: str) -> None:
    body = json.dumps([{"a": cell} for cell in json.loads(cells)])
    plain = read(PandasDataFrame(), body)
    pd.testing.assert_frame_equal(read(PandasDataFrame(dtype=dtype), body), plain)
    with pytest.raises(BadInput) as raised:
        read(PandasDataFrame(dtype={"a": dtype}, enforce_dtype=True), body)
    came = plain["a"].dtype
    assert f"The body has a column 'a' that is of data type {came} and does not fit" in str(raised.value)
    assert f"without loss: it holds {misfit}; send for example" in str(raised.value)
    with pytest.raises(BadInput, match="The body is of data type"):
        read(PandasSeries(dtype=dtype, enforce_dtype=True), cells)


def test_data_type_of_a_column_that_is_missing_is_refused_when_it_is_enforced() -> None:
    assert split(read(PandasDataFrame(dtype={"a": int, "b": int}), '[{"a": 1}]')) == (["a"], [0], [[1]])
    with pytest.raises(BadInput, match="has no column 'b', whose data type is enforced"):
        read(PandasDataFrame(dtype={"a": int, "b": int}, enforce_dtype=True), '[{"a": 1}]')


def test_data_types_of_texts_are_known_while_csv_is_read() -> None:
    body = "zip,n\n007,1\n"
    assert split(read(PandasDataFrame(dtype={"zip": str}), body, "text/csv"))[2] == [["007", 1]]
    assert split(read(PandasDataFrame(dtype=str), body, "text/csv"))[2] == [["007", "1"]]
    assert split(read(PandasDataFrame(), body, "text/csv"))[2] == [[7, 1]]
    assert read(PandasSeries(dtype=str), "zip\n007\n", "text/csv").tolist() == ["007"]


def test_shape_is_refused_only_when_it_is_enforced() -> None:
    assert read(PandasDataFrame(shape=(-1, 4)), "[[1, 2]]").shape == (1, 2)
    with pytest.raises(BadInput, match=r"The body has the shape \(1, 2\), but \(-1, 4\) was expected; send"):
        read(PandasDataFrame(shape=(-1, 4), enforce_shape=True), "[[1, 2]]")
    with pytest.raises(InternalServerError, match=r"The result has the shape \(1, 2\), but \(-1, 4\) was expected\."):
        send(PandasDataFrame(shape=(-1, 4), enforce_shape=True), [[1, 2]])
    with pytest.raises(BadInput, match=r"The body has the shape \(3,\), but \(2,\) was expected; send"):
        read(PandasSeries(shape=(2,), enforce_shape=True), "[1, 2, 3]")


@pytest.mark.parametrize(
    ("descriptor", "example"),
    [
        (PandasDataFrame(shape=(-1, 4)), '[{"a":1,"b":1,"c":1,"d":1}]'),
        (PandasDataFrame("values", shape=(2, 3)), "[[1,1,1],[1,1,1]]"),
        (PandasDataFrame(columns=["x"], shape=(2, 1)), '[{"x":1},{"x":1}]'),
        (PandasDataFrame("split", shape=(0, 2)), '{"columns":["a","b"],"index":[],"data":[]}'),
        (PandasDataFrame(shape=(-1, 10**12)), ""),
        (PandasDataFrame(shape=(10**12, -1)), ""),
        (PandasSeries(shape=(3,)), "[1,1,1]"),
        (PandasSeries(shape=(10**12,)), ""),
    ],
)
def test_body_that_an_error_advises_has_the_shape_that_is_wanted(descriptor: Any, example: str) -> None:
    assert descriptor.placeholder == example


# ---- out ------------------------------------------------------------------------------------------------------------

MIXED = pd.DataFrame(
    {
        "n": [1, 2],
        "x": [0.1, math.nan],
        "s": ["ü", None],
        "b": [True, False],
        "t": pd.Series(["2020-01-02", None], dtype="datetime64[ns]"),
        "d": pd.to_timedelta(["25h", None]),
        "c": pd.Categorical(["p", None]),
        "i": pd.array([1, None], "Int64"),
        "o": [decimal.Decimal("1.10"), [1, {"k": math.nan}]],
    }
)
FIRST = '{"n":1,"x":0.1,"s":"ü","b":true,"t":"2020-01-02T00:00:00","d":"P1DT1H0M0S","c":"p","i":1,"o":"1.10"}'
SECOND = '{"n":2,"x":null,"s":null,"b":false,"t":null,"d":null,"c":null,"i":null,"o":[1,{"k":null}]}'


@pytest.mark.parametrize(
    ("orient", "frame", "body"),
    [
        ("records", MIXED, f"[{FIRST},{SECOND}]"),
        ("index", MIXED.set_axis(["p", "q"]), f'{{"p":{FIRST},"q":{SECOND}}}'),
        ("columns", MIXED[["n", "x"]], '{"n":{"0":1,"1":2},"x":{"0":0.1,"1":null}}'),
        ("split", MIXED[["n", "s"]], '{"columns":["n","s"],"index":[0,1],"data":[[1,"ü"],[2,null]]}'),
        ("values", MIXED[["n", "x"]], "[[1,0.1],[2,null]]"),
        ("values", pd.DataFrame([[0.1, math.inf]], dtype="float32"), "[[0.1,null]]"),
        ("records", pd.DataFrame({"a": [0.1, math.inf]}, dtype="float32"), '[{"a":0.1},{"a":null}]'),
        ("records", pd.DataFrame(), "[]"),
        ("records", pd.DataFrame(index=[1, 2]), "[{},{}]"),
        ("records", pd.DataFrame({"a": [2**70, None]}), '[{"a":1180591620717411303424},{"a":null}]'),
        ("records", pd.DataFrame({1: ["a"], ("b", "c"): ["d"]}), '[{"1":"a","(\'b\', \'c\')":"d"}]'),
        ("split", pd.DataFrame([[1, 2]], columns=["a", "a"]), '{"columns":["a","a"],"index":[0],"data":[[1,2]]}'),
        ("split", pd.DataFrame({("a", "b"): [1]}), '{"columns":[["a","b"]],"index":[0],"data":[[1]]}'),
        ("index", pd.DataFrame({"a": [1]}, index=pd.to_datetime(["2020-01-02"])), '{"2020-01-02T00:00:00":{"a":1}}'),
        ("records", pd.DataFrame({"p": pd.period_range("2020", periods=1, freq="Y")}), '[{"p":"2020"}]'),
        ("records", pd.DataFrame({"a": [datetime.date(2020, 1, 2)]}), '[{"a":"2020-01-02"}]'),
    ],
)
def test_frame_is_sent_as_json(orient: Any, frame: pd.DataFrame, body: str) -> None:
    sent = send(PandasDataFrame(orient), frame)
    assert sent.body.decode() == body
    assert sent.all("content-type") == ["application/json"]


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ([{"a": 1}], '[{"a":1}]'),
        ({"a": [1, 2]}, '[{"a":1},{"a":2}]'),
        (np.array([[1, 2]]), '[{"0":1,"1":2}]'),
        ([[1, 2]], '[{"0":1,"1":2}]'),
        (pd.Series([1], name="n"), '[{"n":1}]'),
    ],
)
def test_what_makes_a_frame_is_sent_as_one(result: Any, body: str) -> None:
    assert send(PandasDataFrame(), result).body.decode() == body


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "The result is None instead of a data frame; is a `return` missing?"),
        (3, "The result is 3 instead of a data frame."),
        ("text", "The result is 'text' instead of a data frame."),
        ({"a": 1}, "The result is a dict that pandas cannot make a data frame of: "),
        (np.zeros((1, 2, 3)), "The result is a ndarray that pandas cannot make a data frame of: "),
        (
            pd.DataFrame([[1, 2]], columns=["a", "a"]),
            "two of its columns are called 'a'; name them apart, or use orient",
        ),
        (pd.DataFrame({"a": [1j]}), "The result cannot be written as JSON: the type 'complex' has no JSON form"),
        (pd.DataFrame({"a": [object()]}), "The result cannot be written as JSON: the type 'object' has no JSON form"),
        (pd.DataFrame({"a": ["\ud800"]}, dtype=object), "a text is not valid Unicode"),
    ],
)
def test_result_is_an_error_of_the_service_when_it_is_no_frame(result: Any, sentence: str) -> None:
    with pytest.raises(InternalServerError) as raised:
        send(PandasDataFrame(), result)
    assert sentence in str(raised.value)
    assert raised.value.error_code == 500


def test_result_is_an_error_of_the_service_when_it_holds_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    frame = pd.DataFrame({"a": pd.Series([None], dtype=object)})
    frame.at[0, "a"] = endless
    with pytest.raises(InternalServerError, match="nested too deeply"):
        send(PandasDataFrame(), frame)


def test_format_is_the_one_that_the_client_asks_for() -> None:
    frame = MIXED[["n", "x", "s"]]
    sent = ask(PandasDataFrame(), frame, "text/csv")
    assert sent.body.decode() == "n,x,s\n1,0.1,ü\n2,,\n"
    assert sent.all("content-type") == ["text/csv; charset=utf-8"]
    sent = ask(PandasDataFrame(), frame.set_axis(["p", "q"]), PARQUET)
    assert sent.all("content-type") == [PARQUET]
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(sent.body)), frame.set_axis(["p", "q"]))
    assert ask(PandasDataFrame(default_format="csv"), frame[["n"]], "application/json").body == b'[{"n":1},{"n":2}]'


def test_default_format_is_sent_when_the_client_asks_for_none_of_them() -> None:
    for header in ("", "text/html", "*/*;q=0.1"):
        assert ask(PandasDataFrame(default_format="csv"), MIXED[["n"]], header).body == b"n\n1\n2\n"
    assert ask(PandasDataFrame(default_format="parquet"), MIXED[["n"]], "image/png").body.startswith(b"PAR1")


def test_context_is_applied_when_it_is_given() -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 202
    assert send(PandasDataFrame(), [{"a": 1}], ctx).status == 202
    assert send(PandasSeries(), [1], ctx).status == 202


# ---- series ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orient", "body", "index", "values", "name"),
    [
        ("records", '[1, "x", null]', [0, 1, 2], [1, "x", None], None),
        ("values", "[1.5, 2]", [0, 1], [1.5, 2.0], None),
        ("records", "[]", [], [], None),
        ("index", '{"a": 1, "b": 2}', ["a", "b"], [1, 2], None),
        ("index", '{"0": [1], "1": {"x": 2}}', [0, 1], [[1], {"x": 2}], None),
        ("split", '{"name": "n", "index": ["a"], "data": [1]}', ["a"], [1], "n"),
        ("split", '{"data": [1]}', [0], [1], None),
    ],
)
def test_json_becomes_a_series(orient: Any, body: str, index: Any, values: Any, name: Any) -> None:
    series = read(PandasSeries(orient), body)
    assert (series.index.tolist(), series.tolist(), series.name) == (index, values, name)


def test_csv_and_parquet_become_a_series() -> None:
    series = read(PandasSeries(), "n\n1\n2\n", "text/csv")
    assert (series.tolist(), series.name) == ([1, 2], "n")
    series = read(PandasSeries(), parquet_of(pd.DataFrame({"n": [1.5]})), PARQUET)
    assert (series.tolist(), series.name) == ([1.5], "n")
    with pytest.raises(BadInput, match="The body has 2 columns, but a series is one"):
        read(PandasSeries(), "a,b\n1,2\n", "text/csv")


@pytest.mark.parametrize(
    ("orient", "body", "sentence"),
    [
        ("records", "{}", "The body is no series in the orient 'records': it takes a list of values, not {}"),
        ("index", "[]", "it takes an object of values by label, not []"),
        ("split", '{"data": 1}', "it takes a list of values as its 'data', not 1"),
        ("split", '{"data": [1], "index": []}', "it has 0 labels in 'index' for 1 in 'data'"),
        ("split", '{"data": [1], "columns": []}', "it has 'columns' beside 'name', 'index' and 'data'"),
        ("split", '{"data": [1], "name": []}', "it takes a text as its 'name', not []"),
        ("table", '{"schema": {"fields": []}, "data": []}', "it has 0 columns instead of one"),
    ],
)
def test_json_is_refused_with_a_sentence_when_it_is_no_series(orient: Any, body: str, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(PandasSeries(orient), body)
    assert sentence in str(raised.value)


SERIES = pd.Series([1.5, None], index=["p", "q"], name="n")


@pytest.mark.parametrize(
    ("orient", "result", "body"),
    [
        ("records", SERIES, "[1.5,null]"),
        ("values", SERIES, "[1.5,null]"),
        ("index", SERIES, '{"p":1.5,"q":null}'),
        ("split", SERIES, '{"name":"n","index":["p","q"],"data":[1.5,null]}'),
        ("records", [1, 2], "[1,2]"),
        ("records", np.array([[1], [2]]), "[1,2]"),
        ("records", pd.DataFrame({"a": [1]}), "[1]"),
        ("index", {"a": 1}, '{"a":1}'),
    ],
)
def test_series_is_sent_as_json(orient: Any, result: Any, body: str) -> None:
    assert send(PandasSeries(orient), result).body.decode() == body


def test_series_is_sent_in_the_format_that_the_client_asks_for() -> None:
    assert ask(PandasSeries(), SERIES, "text/csv").body == b'n\n1.5\n""\n'
    assert ask(PandasSeries(), [1], "text/csv").body == b"value\n1\n"
    assert pd.read_parquet(io.BytesIO(ask(PandasSeries(), SERIES, PARQUET).body))["n"].index.tolist() == ["p", "q"]


@pytest.mark.parametrize("result", [None, 3, np.zeros((2, 2)), pd.DataFrame({"a": [1], "b": [2]})])
def test_result_is_an_error_of_the_service_when_it_is_no_series(result: Any) -> None:
    with pytest.raises(InternalServerError, match=r"The result is .* series"):
        send(PandasSeries(), result)


# ---- against pandas -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=6)
NAMES = st.lists(st.from_regex("[a-z]{1,4}", fullmatch=True), min_size=1, max_size=4, unique=True).filter(
    # pandas.read_json takes such columns for times
    lambda names: not {"date", "modified"} & set(names)
)
COLUMNS = {
    "int64": st.integers(-(2**53), 2**53),
    "float64": st.floats(allow_infinity=False, width=32) | st.just(math.nan),
    "bool": st.booleans(),
    "str": TEXT,
}


@st.composite
def frames(draw: st.DrawFn, *, min_rows: int = 0) -> pd.DataFrame:
    rows = draw(st.integers(min_rows, 5))
    columns = {}
    for name in draw(NAMES):
        kind = draw(st.sampled_from(sorted(COLUMNS)))
        columns[name] = pd.Series(draw(st.lists(COLUMNS[kind], min_size=rows, max_size=rows)), dtype=kind)
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


@settings(deadline=None)
@given(frames(min_rows=1), st.sampled_from(["records", "split", "columns", "index", "values"]))
def test_json_is_read_as_pandas_reads_it(frame: pd.DataFrame, orient: Any) -> None:
    body = frame.to_json(orient=orient)
    theirs = pd.read_json(io.StringIO(body), orient=orient, dtype=False, precise_float=True)
    # what kind of value a column without any would have is anybody's guess
    theirs = theirs.astype({name: float for name in theirs if theirs[name].isna().all()})
    pd.testing.assert_frame_equal(read(PandasDataFrame(orient), body), theirs, check_column_type=False, rtol=1e-15)


@settings(deadline=None)
@given(frames(min_rows=1), st.sampled_from(["records", "split", "columns", "index", "values", "table"]))
def test_pandas_reads_what_is_sent(frame: pd.DataFrame, orient: Any) -> None:
    body = send(PandasDataFrame(orient), frame).body.decode()
    options: Any = {} if orient == "table" else {"dtype": False}
    back = pd.read_json(io.StringIO(body), orient=orient, precise_float=True, **options)
    if orient == "values":
        back.columns = frame.columns
    pd.testing.assert_frame_equal(back.astype(frame.dtypes), frame, check_index_type=False, rtol=1e-14)


@settings(deadline=None)
@given(frames(), st.sampled_from(ORIENTS[:5]), st.sampled_from(["application/json", PARQUET]))
def test_frame_comes_back_as_it_was_sent(frame: pd.DataFrame, orient: Any, format_: str) -> None:
    # nothing in JSON tells the data type of a column without values
    descriptor = PandasDataFrame(orient, columns=list(frame.columns), dtype=frame.dtypes)
    sent = ask(descriptor, frame, format_)
    if len(frame) or format_ == PARQUET:
        back = read(descriptor, sent.body, sent.all("content-type")[0])
        pd.testing.assert_frame_equal(back, frame, check_index_type=False, check_column_type=False)


@settings(deadline=None)
@given(frames())
def test_csv_is_read_as_pandas_reads_it(frame: pd.DataFrame) -> None:
    body = ask(PandasDataFrame(), frame, "text/csv").body
    assert body == frame.to_csv(index=False).encode()
    theirs = pd.read_csv(io.BytesIO(body))
    pd.testing.assert_frame_equal(read(PandasDataFrame(), body, "text/csv"), theirs)


# ---- whatever comes -------------------------------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(
            TEXT | st.sampled_from(["a", "0", "data", "index", "columns", "name", "schema"]), values, max_size=4
        )
    ),
    max_leaves=12,
)
TABLES = st.fixed_dictionaries(
    {
        "schema": st.fixed_dictionaries(
            {
                "fields": st.lists(
                    st.fixed_dictionaries(
                        {
                            "name": TEXT,
                            "type": st.sampled_from(["integer", "number", "datetime", "any", "duration", "x"]),
                        }
                    ),
                    max_size=3,
                ),
                "primaryKey": ANY_JSON,
                "pandas_version": st.just("1.4.0") | ANY_JSON,
            }
        ),
        "data": st.lists(st.dictionaries(TEXT, ANY_JSON, max_size=3), max_size=3),
    }
)
DESCRIPTORS = [
    *map(PandasDataFrame, ORIENTS),
    PandasDataFrame(columns=["a", "b"], dtype={"a": "float32", "b": "datetime64[ns]"}, enforce_dtype=True),
    PandasDataFrame(dtype="int8", enforce_dtype=True),
    PandasDataFrame(dtype=str, enforce_dtype=True, shape=(-1, 2), enforce_shape=True),
    *map(PandasSeries, ORIENTS[:2]),
    PandasSeries("index"),
    PandasSeries("table"),
    PandasSeries(dtype="datetime64[ns]", enforce_dtype=True),
    PandasSeries(dtype="category", enforce_dtype=True),
]


# a slow machine is no failure
WHATEVER = settings(max_examples=200, deadline=None)


@WHATEVER
@given(
    st.sampled_from(DESCRIPTORS),
    st.binary(max_size=60),
    st.sampled_from(["application/json", "text/csv", "text/csv; charset=utf-16", PARQUET]),
)
def test_body_is_read_or_refused_whatever_it_is(descriptor: Any, body: bytes, content_type: str) -> None:
    with contextlib.suppress(BadInput):
        read(descriptor, body, content_type)


@WHATEVER
@given(st.sampled_from(DESCRIPTORS), ANY_JSON | TABLES)
def test_json_is_read_or_refused_whatever_it_holds(descriptor: Any, value: Any) -> None:
    with contextlib.suppress(BadInput):
        read(descriptor, json.dumps(value))


@WHATEVER
@given(st.sampled_from(DESCRIPTORS), st.text(st.sampled_from("a1.,;\"\n\r\t \0'#-ü"), max_size=40))
def test_csv_is_read_or_refused_whatever_it_holds(descriptor: Any, text: str) -> None:
    with contextlib.suppress(BadInput):
        read(descriptor, text, "text/csv")


@WHATEVER
@given(st.data())
def test_parquet_is_read_or_refused_when_it_is_damaged(data: st.DataObject) -> None:
    body = bytearray(PARQUET_FILE)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadInput):
        read(PandasDataFrame(), bytes(body), PARQUET)


PARQUET_FILE = parquet_of(
    pd.DataFrame({"a": [1, 2], "s": ["x", None], "t": pd.Series(["2020-01-02", None], dtype="datetime64[ns]")})
)


# ---- description ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"orient": "rows"}, InvalidArgument, "The orient of PandasDataFrame is one of records, split, columns, index"),
        ({"dtype": "float33"}, UnprocessableEntity, "'float33' is not a data type of pandas"),
        ({"dtype": {"a": "float33"}}, UnprocessableEntity, "'float33' is not a data type of pandas"),
        ({"shape": (4,)}, InvalidArgument, r"The shape of a data frame has two numbers, such as \(-1, 4\), not \(4,\)"),
        ({"shape": "x"}, InvalidArgument, "A shape is a tuple of whole numbers"),
        ({"columns": "ab"}, InvalidArgument, "columns is a list of names, each of them once, not 'ab'"),
        ({"columns": ["a", "a"]}, InvalidArgument, "columns is a list of names, each of them once"),
        ({"apply_column_names": True}, InvalidArgument, "apply_column_names=True needs the names to apply"),
        ({"enforce_dtype": True}, InvalidArgument, "enforce_dtype=True needs the dtype to enforce"),
        ({"enforce_dtype": True, "dtype": True}, InvalidArgument, "enforce_dtype=True needs the dtype to enforce"),
        ({"enforce_shape": True}, InvalidArgument, "enforce_shape=True needs the shape to enforce"),
        ({"default_format": "xml"}, InvalidArgument, "default_format is one of json, csv, parquet, not 'xml'"),
        ({"validate": True}, InvalidArgument, "PandasDataFrame has no argument 'validate': enforce_dtype=True and"),
        ({"schema": {}}, InvalidArgument, "PandasDataFrame has no argument 'schema': it is called dtype"),
        ({"colour": 1}, TypeError, "PandasDataFrame has no argument 'colour'"),
    ],
)
def test_arguments_are_refused_with_a_sentence(
    arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        PandasDataFrame(**arguments)


def test_arguments_of_a_series_are_refused_with_a_sentence() -> None:
    with pytest.raises(
        InvalidArgument, match="The orient of PandasSeries is one of records, values, split, index, table"
    ):
        PandasSeries("columns")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(InvalidArgument, match="A series has one data type"):
        PandasSeries(dtype={"a": int})
    with pytest.raises(InvalidArgument, match="The shape of a series has one number"):
        PandasSeries(shape=(1, 2))


@pytest.mark.parametrize(
    "sample",
    [
        pd.DataFrame({"a": [1], "s": ["x"]}),
        {"a": [1], "s": ["x"]},
        [{"a": 1, "s": "x"}],
        np.array([[1, 2]]),
        [[5, 4, 3, 2]],
        pd.Series([1, 2], name="a"),
    ],
)
def test_from_sample_takes_what_makes_a_frame_and_enforces_nothing(sample: Any) -> None:
    descriptor = PandasDataFrame.from_sample(sample)
    assert isinstance(descriptor.sample, pd.DataFrame)
    assert descriptor.shape == (-1, descriptor.sample.shape[1])
    assert (descriptor.enforce_dtype, descriptor.enforce_shape, descriptor.columns) == (False, False, None)
    assert json.loads(send(descriptor, descriptor.sample).body) == descriptor.example
    assert send(descriptor, [{"other": "y"}]).body == b'[{"other":"y"}]'


def test_from_sample_names_the_columns_of_a_body_without_names() -> None:
    descriptor = PandasDataFrame.from_sample({"a": [1.5], "b": [2.5]}, enforce_dtype=True)
    assert read(descriptor, "[[1, 2]]").to_dict("list") == {"a": [1.0], "b": [2.0]}
    with pytest.raises(BadInput, match=r'it holds \'x\'; send for example \[\{"a": 1\.5, "b": 2\.5\}\]\.'):
        read(descriptor, '[["x", 1]]')


def test_from_sample_of_a_series_takes_its_data_type() -> None:
    for sample in (pd.Series([1.5, 2.5]), [1.5, 2.5], np.array([1.5, 2.5])):
        descriptor = PandasSeries.from_sample(sample)
        assert (descriptor.dtype, descriptor.shape, descriptor.example) == (np.dtype("float64"), (-1,), [1.5, 2.5])


@pytest.mark.parametrize("sample", [None, 3, "text", object()])
def test_from_sample_refuses_when_the_sample_makes_none(sample: Any) -> None:
    with pytest.raises(BadInput, match="cannot be used as a data frame: The result"):
        PandasDataFrame.from_sample(sample)
    with pytest.raises(BadInput, match="cannot be used as a series: The result"):
        PandasSeries.from_sample(sample)


NUMBER: dict[str, Any] = {"type": ["number", "null"]}
WHOLE: dict[str, Any] = {"type": "integer"}
LIST: dict[str, Any] = {"type": "array", "items": {}}


@pytest.mark.parametrize(
    ("descriptor", "schema"),
    [
        (PandasDataFrame(), {"type": "array", "items": {"type": "object"}}),
        (
            PandasDataFrame(columns=["a", "b"], dtype={"a": "float32"}),
            {
                "type": "array",
                "items": {"type": "object", "properties": {"a": NUMBER, "b": {}}, "required": ["a", "b"]},
            },
        ),
        (
            PandasDataFrame("columns", dtype={"a": int}),
            {"type": "object", "properties": {"a": {"type": "object", "additionalProperties": WHOLE}}},
        ),
        (
            PandasDataFrame("index", dtype={"a": int}),
            {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": WHOLE}}},
        ),
        (PandasDataFrame("values"), {"type": "array", "items": LIST}),
        (
            PandasDataFrame("split"),
            {
                "type": "object",
                "properties": {"columns": LIST, "index": LIST, "data": {"type": "array", "items": LIST}},
                "required": ["data"],
            },
        ),
        (PandasDataFrame("table"), {"type": "object", "required": ["schema", "data"]}),
        (
            PandasDataFrame.from_sample({"a": [1.5, None], "t": pd.to_datetime(["2020-01-02"] * 2)}),
            {
                "type": "array",
                "items": {"type": "object", "properties": {"a": NUMBER, "t": {"type": ["string", "null"]}}},
                "example": [{"a": 1.5, "t": "2020-01-02T00:00:00"}, {"a": None, "t": "2020-01-02T00:00:00"}],
            },
        ),
        (PandasSeries(dtype=bool), {"type": "array", "items": {"type": "boolean"}}),
        (PandasSeries("index", dtype=str), {"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
    ],
)
def test_schema_describes_the_body(descriptor: Any, schema: dict[str, Any]) -> None:
    assert descriptor.schema() == schema
    assert descriptor.components() == {}


def test_python_type_is_what_the_function_gets() -> None:
    assert PandasDataFrame().python_type() is pd.DataFrame
    assert PandasSeries().python_type() is pd.Series


@pytest.mark.parametrize(
    ("descriptor", "args"),
    [
        (PandasDataFrame(), {}),
        (
            PandasDataFrame("split", ["a"], True, {"a": "float32"}, True, (-1, 1), True, "csv"),
            {
                "orient": "split",
                "columns": ["a"],
                "apply_column_names": True,
                "dtype": {"a": "float32"},
                "enforce_dtype": True,
                "shape": [-1, 1],
                "enforce_shape": True,
                "default_format": "csv",
            },
        ),
        (PandasDataFrame(dtype="datetime64[ns, UTC]"), {"dtype": "datetime64[ns, UTC]"}),
        (
            PandasSeries("index", "Int64", default_format="parquet"),
            {"orient": "index", "dtype": "Int64", "default_format": "parquet"},
        ),
    ],
)
def test_spec_round_trips(descriptor: Any, args: dict[str, Any]) -> None:
    spec = descriptor.to_spec()
    assert spec == {"id": f"adapter.io.{type(descriptor).__name__}", "args": args}
    assert json.loads(json.dumps(spec)) == spec
    assert from_spec(spec).to_spec() == spec


def test_spec_of_a_sample_round_trips() -> None:
    frame = pd.DataFrame({"a": [1], "s": ["x"], "c": pd.Categorical(["y"]), "t": pd.to_datetime(["2020-01-02"])})
    spec = PandasDataFrame.from_sample(frame).to_spec()
    assert from_spec(spec).to_spec() == spec
    with pytest.raises(UnprocessableEntity, match="is not a data type of pandas"):
        from_spec({"id": "adapter.io.PandasDataFrame", "args": {"dtype": ["x"]}})

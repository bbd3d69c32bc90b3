"""Orients: the layouts in which data frames and series stand in JSON, as `pandas.DataFrame.to_json` names them."""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import math
import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
import pandas as pd

from adapter.exceptions import BadInput, InternalServerError
from adapter.io.column import check_width, twice, with_columns
from adapter.io.json import dumps, loads, simpler

FRAME_ORIENTS = ("records", "split", "columns", "index", "values", "table")
SERIES_ORIENTS = ("records", "values", "split", "index", "table")

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
_LONGEST_NUMBER = 20
# rows with keys of their own make a frame of rows times keys: a short body could fill the memory
_MAX_MISSING_CELLS = 10_000_000


# ---- reading --------------------------------------------------------------------------------------------------------


def read_frame(body: bytes, orient: str, advice: str) -> pd.DataFrame:
    """The frame that a JSON body describes, or BadInput with a sentence that ends in `advice`.

    Values stay what they are in JSON: unlike `pandas.read_json`, a text that looks like a number or a time stays a
    text. Labels, which JSON has as texts only, become numbers where all of them are written as numbers are.
    """
    value = loads(body, advice)
    try:
        if orient == "table":
            return _table(body, value)
        return _without_none(_FRAMES[orient](value))
    except _Misfit as error:
        raise BadInput(f"The body is no data frame in the orient {orient!r}: {error}; {advice}.") from error
    except RecursionError as error:
        raise BadInput("The body is no data frame: its values are nested too deeply.") from error


def read_series(body: bytes, orient: str, advice: str) -> pd.Series[Any]:
    """The series that a JSON body describes, or BadInput with a sentence that ends in `advice`."""
    value = loads(body, advice)
    try:
        if orient == "table":
            return series_of(_table(body, value))
        if orient == "split":
            return _split_series(value)
        if orient == "index":
            _check(isinstance(value, dict), "an object of values by label", value)
            return _series(list(value.values()), index=_labels(value))
        _check(isinstance(value, list), "a list of values", value)
        return _series(value)
    except _Misfit as error:
        raise BadInput(f"The body is no series in the orient {orient!r}: {error}; {advice}.") from error
    except RecursionError as error:
        raise BadInput("The body is no series: its values are nested too deeply.") from error


def _without_none(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with NaN in the columns that have no value at all: nothing else tells of which kind they are."""
    without = {
        i: np.full(len(frame), np.nan)
        for i, dtype in enumerate(frame.dtypes)
        if dtype == "object" and len(frame) and frame.iat[0, i] is None and frame.iloc[:, i].isna().all()
    }
    return with_columns(frame, without)


def series_of(frame: pd.DataFrame) -> pd.Series[Any]:
    """The one column of a frame."""
    if frame.shape[1] != 1:
        raise _Misfit(f"it has {frame.shape[1]} columns instead of one")
    return frame.iloc[:, 0]


class _Misfit(ValueError):
    """Says why a value has not the layout of its orient."""


def _check(so: bool, expected: str, value: Any) -> None:
    if not so:
        raise _Misfit(f"it takes {expected}, not {reprlib.repr(value)}")


def _records(value: Any) -> pd.DataFrame:
    if isinstance(value, dict) and set(map(type, value.values())) <= {list, dict}:
        return _columns(value)  # as pandas does in this orient
    _check(isinstance(value, list), "a list of objects", value)
    return _of_rows(value)


def _of_rows(rows: list[Any]) -> pd.DataFrame:
    types = set(map(type, rows))
    if not rows:
        return pd.DataFrame()
    if types == {dict}:
        return _of_dicts(rows)
    if types == {list}:
        widths = set(map(len, rows))
        if len(widths) > 1:
            raise _Misfit(f"it has rows of {min(widths)} to {max(widths)} values")
        check_width(max(widths))
        frame = pd.DataFrame(dict(enumerate(map(list, zip(*rows, strict=True)))), index=range(len(rows)))
        frame.columns = pd.RangeIndex(frame.shape[1])
        return frame
    odd = next((row for row in rows if isinstance(row, (dict, list))), None)
    if odd is not None:
        raise _Misfit(f"it has rows of several kinds, one of them {reprlib.repr(odd)}")
    return pd.DataFrame({0: rows})


def _of_dicts(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = list(rows[0])
    check_width(len(names))
    columns: Iterable[Iterable[Any]]
    if not names and not any(rows):
        return pd.DataFrame(index=range(len(rows)))
    try:
        if set(map(len, rows)) != {len(names)}:
            raise KeyError
        picked = map(operator.itemgetter(*names), rows)
        columns = [list(picked)] if len(names) == 1 else map(list, zip(*picked, strict=True))
    except KeyError:  # a row has other keys than the first: what it lacks is missing
        names = list(dict.fromkeys(name for row in rows for name in row))
        check_width(len(names))
        _bounded(len(rows), len(names), sum(map(len, rows)))
        columns = [[row.get(name, math.nan) for row in rows] for name in names]
    return pd.DataFrame(dict(zip(_labels(names), columns, strict=True)))


def _columns(value: Any) -> pd.DataFrame:
    _check(isinstance(value, dict), "an object of columns", value)
    check_width(len(value))
    kinds = set(map(type, value.values()))
    if kinds <= {list}:
        lengths = set(map(len, value.values()))
        if len(lengths) > 1:
            raise _Misfit(f"it has columns of {min(lengths)} to {max(lengths)} values")
        return pd.DataFrame(dict(zip(_labels(value), value.values(), strict=True)))
    odd = next((column for column in value.values() if not isinstance(column, dict)), None)
    _check(kinds == {dict}, "an object of values by row label in each column", odd)
    rows = list(next(iter(value.values())))
    if all(list(column) == rows for column in value.values()):
        cells = [list(column.values()) for column in value.values()]
    else:
        rows = list(dict.fromkeys(label for column in value.values() for label in column))
        _bounded(len(rows), len(value), sum(map(len, value.values())))
        cells = [[column.get(label, math.nan) for label in rows] for column in value.values()]
    return pd.DataFrame(dict(zip(_labels(value), cells, strict=True)), index=pd.Index(_labels(rows)))


def _index(value: Any) -> pd.DataFrame:
    _check(
        isinstance(value, dict) and set(map(type, value.values())) <= {dict},
        "an object of objects, one for each row",
        value,
    )
    frame = _of_rows(list(value.values()))
    frame.index = pd.Index(_labels(value)) if value else frame.index
    return frame


def _split(value: Any) -> pd.DataFrame:
    _check(isinstance(value, dict) and "data" in value, "an object with 'columns', 'index' and 'data'", value)
    unknown = set(value) - {"columns", "index", "data"}
    if unknown:
        raise _Misfit(f"it has {', '.join(sorted(map(reprlib.repr, unknown)))} beside 'columns', 'index' and 'data'")
    columns, index = _split_labels(value, "columns"), _split_labels(value, "index")
    check_width(len(columns or ()))
    frame = _values(value["data"])
    if frame.empty and columns is not None and not len(frame):
        frame = pd.DataFrame(columns=pd.Index(columns))
    for name, labels, length in (("columns", columns, frame.shape[1]), ("index", index, len(frame))):
        if labels is not None and len(labels) != length:
            raise _Misfit(f"it has {len(labels)} labels in {name!r} for {length} in 'data'")
    if columns is not None:
        frame.columns = pd.Index(columns)
    if index is not None:
        frame.index = pd.Index(index)
    return frame


def _split_labels(value: Mapping[str, Any], name: str) -> list[Any] | None:
    labels = value.get(name)
    if labels is None:
        return None
    _check(isinstance(labels, list), f"a list as its {name!r}", labels)
    odd = next((label for label in labels if label is None or isinstance(label, (list, dict))), "")
    _check(odd == "", f"texts and numbers in its {name!r}", odd)
    return list(labels)


def _values(value: Any) -> pd.DataFrame:
    _check(isinstance(value, list), "a list of rows", value)
    odd = next((row for row in value if isinstance(row, dict)), None)
    _check(odd is None, "a list of values in each row", odd)
    return _of_rows(value)


def _table(body: bytes, value: Any) -> pd.DataFrame:
    try:
        fields, rows = value["schema"]["fields"], value["data"]
        names = [field["name"] for field in fields]
    except (KeyError, TypeError) as error:
        raise _Misfit("it takes an object with 'schema' and 'data'") from error
    check_width(len(names))
    _check(isinstance(rows, list) and set(map(type, rows)) <= {dict}, "a list of objects as its 'data'", rows)
    _bounded(len(rows), len(names), sum(map(len, rows)))
    try:
        return pd.read_json(io.StringIO(body.decode("utf-8-sig")), orient="table")
    except Exception as error:  # pandas raises anything on a schema that contradicts the data
        raise _Misfit(f"pandas cannot read it ({type(error).__name__}: {reprlib.repr(str(error))})") from error


def _split_series(value: Any) -> pd.Series[Any]:
    _check(isinstance(value, dict) and "data" in value, "an object with 'name', 'index' and 'data'", value)
    unknown = set(value) - {"name", "index", "data"}
    if unknown:
        raise _Misfit(f"it has {', '.join(sorted(map(reprlib.repr, unknown)))} beside 'name', 'index' and 'data'")
    data, name, index = value["data"], value.get("name"), _split_labels(value, "index")
    _check(isinstance(data, list), "a list of values as its 'data'", data)
    _check(not isinstance(name, (list, dict)), "a text as its 'name'", name)
    if index is not None and len(index) != len(data):
        raise _Misfit(f"it has {len(index)} labels in 'index' for {len(data)} in 'data'")
    return _series(data, index=index, name=name)


def _series(values: list[Any], *, index: list[Any] | None = None, name: Any = None) -> pd.Series[Any]:
    frame = pd.DataFrame({0: values}, index=None if index is None else pd.Index(index))
    return _without_none(frame)[0].rename(name)


def _bounded(rows: int, columns: int, given: int) -> None:
    if rows * columns - given > _MAX_MISSING_CELLS:
        raise _Misfit(f"it has {given} values in all for {rows} rows and {columns} columns")


def _labels(texts: Iterable[str]) -> list[Any]:
    labels = list(texts)
    if all(label[-1:].isdigit() and len(label) < _LONGEST_NUMBER for label in labels):
        for number in (int, float):
            with contextlib.suppress(ValueError):
                numbers = list(map(number, labels))
                if list(map(str, numbers)) == labels:  # "007" is no number
                    return numbers
    return labels


_FRAMES = {"records": _records, "split": _split, "columns": _columns, "index": _index, "values": _values}


# ---- writing --------------------------------------------------------------------------------------------------------


def write_frame(frame: pd.DataFrame, orient: str) -> bytes:
    """A frame as JSON, or InternalServerError; missing values, NaN and the infinities are null, as pandas has them."""
    if orient == "table":
        # pandas names a column 0 in the schema and "0" in the data, and cannot read that again
        return _written_table(frame.set_axis(_keys(frame.columns, "columns"), axis=1))
    if orient in ("split", "values"):
        data = _rows(frame)
        return _json(
            data
            if orient == "values"
            else {"columns": _plain_labels(frame.columns), "index": _plain_labels(frame.index), "data": data}
        )
    columns = [_cells(column) for _, column in frame.items()]
    names = _keys(frame.columns, "columns")
    if orient == "columns":
        index = _keys(frame.index, "rows")
        return _json({name: dict(zip(index, cells, strict=True)) for name, cells in zip(names, columns, strict=True)})
    # `map` calls no Python code for each row, of which there may be many
    records: list[Any] = list(map(dict, map(zip, itertools.repeat(names), zip(*columns, strict=True))))
    if not columns:
        records = [{}] * len(frame)
    return _json(records if orient == "records" else dict(zip(_keys(frame.index, "rows"), records, strict=True)))


def write_series(series: pd.Series[Any], orient: str) -> bytes:
    """A series as JSON, or InternalServerError."""
    if orient == "table":
        return _written_table(series)
    cells = _cells(series)
    if orient == "split":
        name = None if series.name is None else _plain_labels([series.name])[0]
        return _json({"name": name, "index": _plain_labels(series.index), "data": cells})
    return _json(dict(zip(_keys(series.index, "rows"), cells, strict=True)) if orient == "index" else cells)


def _rows(frame: pd.DataFrame) -> Any:
    dtypes = set(frame.dtypes)
    if len(dtypes) == 1 and next(iter(dtypes)) in (np.float64, np.float32, np.int64, np.bool_):
        return np.ascontiguousarray(frame.to_numpy())
    if not frame.shape[1]:
        return [[]] * len(frame)
    return list(zip(*(_cells(column) for _, column in frame.items()), strict=True))


def _cells(column: pd.Series[Any]) -> list[Any]:
    if column.dtype in (np.float32, np.float16):
        return list(column.to_numpy())  # as Python floats they would be written with digits that they do not have
    return column.tolist()


def _keys(labels: Any, what: str) -> list[str]:
    keys = [_key(label) for label in labels]
    if len(set(keys)) < len(keys):
        raise InternalServerError(
            f"The result cannot be written as JSON in this orient: two of its {what} are called {twice(keys)!r}; "
            "name them apart, or use orient='split'."
        )
    return keys


def _key(label: Any) -> str:
    if isinstance(label, str):
        return label
    if isinstance(label, (datetime.date, datetime.timedelta)) and label is not pd.NaT:
        return str(_simpler(label))
    return str(label)


def _plain_labels(labels: Any) -> list[Any]:
    return [label if isinstance(label, (str, int, float)) else _simpler_label(label) for label in labels]


def _simpler_label(label: Any) -> Any:
    return list(label) if isinstance(label, tuple) else _simpler(label)


def _simpler(value: Any) -> Any:
    if value is pd.NaT or value is pd.NA or (isinstance(value, (np.datetime64, np.timedelta64)) and np.isnat(value)):
        return None
    if isinstance(value, (datetime.timedelta, np.timedelta64)):
        return pd.Timedelta(value).isoformat()
    if isinstance(value, (pd.Period, pd.Interval)):
        return str(value)
    return simpler(value)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_simpler, option=_OPTIONS)
    except orjson.JSONEncodeError:
        pass
    try:
        # keys that are no texts, integers of more than 64 bits, or truly no JSON: `dumps` tells
        return dumps(_without_missing(value))
    except RecursionError as error:
        raise InternalServerError("The result cannot be written as JSON: it is nested too deeply.") from error


def _without_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_missing(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_missing(item) for item in value]
    if isinstance(value, np.ndarray):
        return _without_missing(value.tolist())
    if isinstance(value, (float, np.floating)):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.timedelta, pd.Period, pd.Interval)) or value is pd.NA:
        return _simpler(value)
    return value


def _written_table(value: pd.DataFrame | pd.Series[Any]) -> bytes:
    try:
        return value.to_json(orient="table", double_precision=15).encode()
    except Exception as error:  # pandas raises anything on labels and values that it cannot describe
        raise InternalServerError(
            f"The result cannot be written as JSON in the orient 'table': {type(error).__name__}: {error}."
        ) from error


# ---- describing -----------------------------------------------------------------------------------------------------


def frame_schema(orient: str, columns: Mapping[str, dict[str, Any]], *, required: bool) -> dict[str, Any]:
    """The JSON schema of a frame whose columns have these schemas; none where they are not known."""
    row: dict[str, Any] = {"type": "object"}
    if columns:
        row["properties"] = dict(columns)
        if required:
            row["required"] = list(columns)
    cells: dict[str, Any] = {"type": "array", "items": {}}
    if orient == "records":
        return {"type": "array", "items": row}
    if orient == "values":
        return {"type": "array", "items": cells}
    if orient == "index":
        return {"type": "object", "additionalProperties": row}
    if orient == "columns":
        whole: dict[str, Any] = {"type": "object"}
        if columns:
            whole["properties"] = {
                name: {"type": "object", "additionalProperties": schema} for name, schema in columns.items()
            }
            if required:
                whole["required"] = list(columns)
        return whole
    if orient == "split":
        labels = {"type": "array", "items": {}}
        properties = {"columns": labels, "index": labels, "data": {"type": "array", "items": cells}}
        return {"type": "object", "properties": properties, "required": ["data"]}
    return {"type": "object", "required": ["schema", "data"]}


def series_schema(orient: str, item: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a series whose values have this schema."""
    data = {"type": "array", "items": item}
    if orient == "index":
        return {"type": "object", "additionalProperties": item}
    if orient == "split":
        properties = {"name": {}, "index": {"type": "array", "items": {}}, "data": data}
        return {"type": "object", "properties": properties, "required": ["data"]}
    if orient == "table":
        return {"type": "object", "required": ["schema", "data"]}
    return data

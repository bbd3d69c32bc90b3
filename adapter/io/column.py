"""Columns of pandas: casting their values to another data type without loss."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from adapter.exceptions import BadInput
from adapter.tensor import cast

# pandas takes 10 to 30 µs for each column, however short: a body of 100 MB could hold the server up for minutes
_MAX_COLUMNS = 50_000
_JSON_TYPE_OF_KIND: dict[str, dict[str, Any]] = {
    "b": {"type": "boolean"},
    "i": {"type": "integer"},
    "u": {"type": "integer"},
    # what is missing is null
    "f": {"type": ["number", "null"]},
    "M": {"type": ["string", "null"]},
    "m": {"type": ["string", "null"]},
}


def is_text(dtype: Any) -> bool:
    """Whether a data type is one of texts alone; a column of objects can hold anything."""
    return isinstance(dtype, pd.StringDtype) or (isinstance(dtype, np.dtype) and dtype.kind == "U")


def json_type(dtype: Any) -> dict[str, Any]:
    """The JSON schema of a value of this data type; empty where any may stand."""
    if is_text(dtype):
        return {"type": ["string", "null"]}
    if isinstance(dtype, np.dtype):
        return _JSON_TYPE_OF_KIND.get(dtype.kind, {})
    return {"type": ["string", "null"]} if isinstance(dtype, pd.DatetimeTZDtype) else {}


def check_width(columns: int) -> None:
    """Raise BadInput for a body with more columns than a frame can sensibly have."""
    if columns > _MAX_COLUMNS:
        raise BadInput(f"The body has {columns} columns, but no more than {_MAX_COLUMNS} are taken.")


def twice(labels: Iterable[Hashable]) -> Any:
    """The first label that stands twice, None where there is none."""
    seen: set[Hashable] = set()
    for label in labels:
        if label in seen:
            return label
        seen.add(label)
    return None


def with_columns(frame: pd.DataFrame, columns: Mapping[int, Any]) -> pd.DataFrame:
    """The frame with other columns at these places; all at once, since each alone would cost as much as all of them."""
    if not columns:
        return frame
    every = {i: columns.get(i, column) for i, (_, column) in enumerate(frame.items())}
    made = pd.DataFrame(every, index=frame.index, copy=False)
    made.columns = frame.columns
    return made


def cast_frame(frame: pd.DataFrame, wanted: Any) -> pd.DataFrame | None:
    """A frame of one data type in another one at once; None where that is not so, or where a value would change."""
    if not isinstance(wanted, np.dtype) or wanted.kind not in "biuf" or not frame.size:
        return None
    first = frame.dtypes.iloc[0]
    if not isinstance(first, np.dtype) or first.kind not in "biuf" or not (frame.dtypes == first).all():
        return None
    values = cast(frame.to_numpy(), wanted)
    return None if values is None else pd.DataFrame(values, index=frame.index, columns=frame.columns, copy=False)


def cast_column(column: pd.Series[Any], wanted: Any) -> pd.Series[Any] | None:
    """The column in another data type where each value stays what it is, but for rounding; None where one would not.

    A text of a number is a number where one is wanted; a time is read from an ISO 8601 text or from milliseconds since
    1970, as pandas writes it. A number is no text.
    """
    if column.dtype == wanted:
        return column
    try:
        if is_text(wanted):
            return _texts(column, wanted)
        if isinstance(wanted, pd.DatetimeTZDtype) or (isinstance(wanted, np.dtype) and wanted.kind in "Mm"):
            return _times(column, wanted)
        if isinstance(wanted, np.dtype) and wanted.kind in "biufc":
            return _numbers(column, wanted)
        return _others(column, wanted)
    except (ValueError, TypeError, OverflowError):  # pandas' words for "no such value"
        return None


def first_misfit(column: pd.Series[Any], wanted: Any) -> str:
    """The first value that `cast_column` refuses, found by halving, so that it costs no more than a few casts."""
    while len(column) > 1:
        half = column.iloc[: len(column) // 2]
        column = half if cast_column(half, wanted) is None else column.iloc[len(half) :]
    return reprlib.repr(column.tolist()[0]) if len(column) else "nothing"


def _texts(column: pd.Series[Any], wanted: Any) -> pd.Series[Any] | None:
    if pd.api.types.infer_dtype(column, skipna=True) not in ("string", "empty"):
        return None
    return column.astype(wanted) if isinstance(wanted, pd.StringDtype) else column


def _times(column: pd.Series[Any], wanted: Any) -> pd.Series[Any] | None:
    span = isinstance(wanted, np.dtype) and wanted.kind == "m"
    utc = isinstance(wanted, pd.DatetimeTZDtype)
    kind = column.dtype.kind
    if kind in "Mm":
        times = column if (kind == "m") == span else None
    elif kind in "iuf":
        times = pd.to_timedelta(column, unit="ms") if span else pd.to_datetime(column, unit="ms", utc=utc)
    else:
        came = pd.api.types.infer_dtype(column, skipna=True)
        if span:
            times = pd.to_timedelta(column) if came in ("string", "empty", "timedelta") else None
        elif came in ("string", "empty"):
            times = pd.to_datetime(column, format="ISO8601", utc=utc)
        else:
            times = pd.to_datetime(column, utc=utc) if came in ("date", "datetime") else None
    return None if times is None else times.astype(wanted)


def _numbers(column: pd.Series[Any], wanted: np.dtype[Any]) -> pd.Series[Any] | None:
    if column.dtype.kind in "Mm":
        return None
    if column.dtype == object or is_text(column.dtype):
        if wanted.kind == "b":  # no text is a truth value
            return None if pd.api.types.infer_dtype(column, skipna=False) != "boolean" else column.astype(bool)
        column = pd.to_numeric(column)
    values = cast(column.to_numpy(), wanted)
    return None if values is None else pd.Series(values, index=column.index, name=column.name)


def _others(column: pd.Series[Any], wanted: Any) -> pd.Series[Any] | None:
    if isinstance(wanted, pd.CategoricalDtype) and wanted.categories is not None:
        return column.astype(wanted) if column.dropna().isin(wanted.categories).all() else None
    converted = column.astype(wanted)
    kept = converted.isna().equals(column.isna()) and bool((converted.dropna() == column.dropna()).all())
    return converted if kept or (wanted.kind == "O" and isinstance(wanted, np.dtype)) else None

"""CSV: how data frames are read from it, and written."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from typing import Any

import pandas as pd

from adapter.exceptions import BadInput, InternalServerError
from adapter.io.column import check_width, twice

CSV_TYPE = "text/csv"


def read_csv(text: str, dtypes: Any) -> pd.DataFrame:
    """The frame that a text with a header line describes, or BadInput.

    `dtypes`, one or a dict of them by column, are those that pandas has to know while it reads: in a column of texts,
    `007` is no number.
    """
    names = _header(text)
    if not names:
        raise BadInput("The body is empty, but CSV with a header line was expected.")
    check_width(len(names))
    if (name := twice(filter(None, names))) is not None:
        raise BadInput(f"The body is CSV with two columns called {name!r}: name them apart.")
    # pandas fills short rows up, so that a wide header over many of them could fill the memory
    if len(names) * text.count("\n") > 2 * len(text):
        _check_widths(text, len(names))
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=dtypes, low_memory=False)
    except (ValueError, OverflowError, csv.Error) as error:  # pandas' ParserError is a ValueError
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise BadInput(f"The body is no CSV that can be read: {reason.rstrip('.')}.") from error
    if not isinstance(frame.index, pd.RangeIndex) or frame.iloc[:, -1:].isna().to_numpy().any():
        with contextlib.suppress(csv.Error):  # a field longer than the standard library takes
            _check_widths(text, len(names))
    if not isinstance(frame.index, pd.RangeIndex):
        raise BadInput("The body is CSV whose rows have more values than its header line has names.")
    return frame


def write_csv(frame: pd.DataFrame) -> bytes:
    """A frame as CSV in UTF-8, without its index; or InternalServerError."""
    try:
        return frame.to_csv(index=False).encode()
    except (ValueError, TypeError, csv.Error) as error:
        raise InternalServerError(f"The result cannot be written as CSV: {error}.") from error


def _lines(text: str) -> Iterator[list[str]]:
    return (line for line in csv.reader(io.StringIO(text, newline="")) if line)


def _header(text: str) -> list[str]:
    try:
        return next(_lines(text.removeprefix("\ufeff")), [])
    except csv.Error as error:
        raise BadInput(f"The body is no CSV: its header line cannot be read ({error}).") from error


def _check_widths(text: str, width: int) -> None:
    for number, line in enumerate(_lines(text), 1):
        if len(line) != width:
            raise BadInput(
                f"The body is CSV whose row {number} has {len(line)} values, but its header line has {width} names."
            )

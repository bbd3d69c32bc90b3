"""Parquet: how data frames are read from it, and written; with pyarrow, which is optional."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import pandas as pd

from adapter.exceptions import BadInput, InternalServerError
from adapter.io.column import check_width
from adapter.io.thrift import read_struct

PARQUET_TYPE = "application/vnd.apache.parquet"
_MARK = b"PAR1"
_TEXTS, _FIXED_LENGTH = 6, 7  # BYTE_ARRAY and FIXED_LEN_BYTE_ARRAY
INSTALLED = importlib.util.find_spec("pyarrow") is not None

# a column of one value is written once, however many rows it has: a body of 1 kB can stand for any number of bytes
_MAX_BYTES = 512 << 20


def read_parquet(body: bytes) -> pd.DataFrame:
    """The frame of a Parquet file, or BadInput."""
    import pyarrow as pa
    from pyarrow import parquet

    size, texts = _sizes(_footer(body))
    try:
        if size <= _MAX_BYTES and texts:
            indexed = parquet.ParquetFile(pa.BufferReader(body), read_dictionary=texts)
            size += _size_of_texts(indexed.read(columns=texts))
        if size <= _MAX_BYTES:
            return parquet.ParquetFile(pa.BufferReader(body)).read().to_pandas()
    except Exception as error:  # pyarrow and pandas raise anything on a file that is broken
        raise _broken(" ".join(str(error).split()).rstrip(".") or type(error).__name__) from error
    raise BadInput(
        f"The body is a Parquet file of {len(body)} bytes that holds at least {size} of data, but no more than "
        f"{_MAX_BYTES} are taken: send fewer rows at a time."
    )


def write_parquet(frame: pd.DataFrame) -> bytes:
    """A frame as a Parquet file, its index included; or InternalServerError."""
    file = io.BytesIO()
    try:
        frame.to_parquet(file, engine="pyarrow")
    except Exception as error:  # pyarrow raises errors of its own on columns of several types
        raise InternalServerError(
            f"The result cannot be written as Parquet: {' '.join(str(error).split())}."
        ) from error
    return file.getvalue()


def _footer(body: bytes) -> dict[int, Any]:
    length = int.from_bytes(body[-8:-4], "little")
    if body[:4] != _MARK or body[-4:] != _MARK or not 0 < length <= len(body) - 12:
        raise _broken("it does not begin and end as one")
    try:
        return read_struct(body[-8 - length : -8])
    except (ValueError, IndexError, RecursionError) as error:
        raise _broken("its footer is damaged") from error


def _sizes(footer: dict[int, Any]) -> tuple[int, list[str]]:
    """How many bytes the file holds at least, and the columns of texts of which only their values tell.

    The numbers are those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
    """
    size = 0
    texts: dict[str, None] = {}
    try:
        longest = max(element.get(2, 0) for element in footer[2])
        check_width(sum(not element.get(5) for element in footer[2]))
        for column in (chunk[3] for group in footer[4] for chunk in group[1]):
            physical, path, values, uncompressed = column[1], column[3], column[5], column[6]
            size += max(uncompressed, values * (longest if physical == _FIXED_LENGTH else 8))
            if physical == _TEXTS and values * uncompressed > _MAX_BYTES:
                texts[".".join(name.decode() for name in path)] = None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _broken("its footer is damaged") from error
    return size, list(texts)


def _broken(reason: str) -> BadInput:
    return BadInput(f"The body is no Parquet file that can be read: {reason}.")


def _size_of_texts(table: Any) -> int:
    return sum(_expanded(chunk) for column in table.columns for chunk in column.chunks)


def _expanded(array: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return pc.sum(pc.take(lengths, array.indices)).as_py() or 0
    if pa.types.is_struct(array.type) or pa.types.is_list(array.type) or pa.types.is_map(array.type):
        children = array.flatten()
        return sum(map(_expanded, children if isinstance(children, list) else [children]))
    return int(array.nbytes)

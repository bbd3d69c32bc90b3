"""PandasDataFrame and PandasSeries: tables and columns as JSON, CSV or Parquet."""

from __future__ import annotations

import contextlib
import reprlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import numpy as np
import orjson
import pandas as pd
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import (
    AdapterError,
    BadInput,
    InternalServerError,
    InvalidArgument,
    MissingDependencyException,
    UnprocessableEntity,
    UnsupportedMediaType,
)
from adapter.io import parquet
from adapter.io.arguments import refuse_arguments
from adapter.io.base import IODescriptor, media_type_of, text_of
from adapter.io.column import cast_column, cast_frame, first_misfit, is_text, json_type, with_columns
from adapter.io.csv import CSV_TYPE, read_csv, write_csv
from adapter.io.negotiation import negotiated
from adapter.io.numpy import ARGUMENTS_OF_SEEDS, JSON_TYPE, checked_shape, shape_fits
from adapter.io.orient import (
    FRAME_ORIENTS,
    SERIES_ORIENTS,
    frame_schema,
    read_frame,
    read_series,
    series_schema,
    write_frame,
    write_series,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
Format = Literal["json", "csv", "parquet"]

_TYPES = {"json": JSON_TYPE, "csv": CSV_TYPE, "parquet": parquet.PARQUET_TYPE}
_PATTERNS = {
    "json": (JSON_TYPE, "*/*+json", "*/json", "*/x-json"),
    "csv": (CSV_TYPE, "application/csv", "text/x-csv", "text/comma-separated-values"),
    "parquet": (parquet.PARQUET_TYPE, "application/parquet", "application/x-parquet", "application/octet-stream"),
}
# what curl and simple clients send when they are told nothing: the default format
_UNTOLD = ("text/plain", "application/text", "application/x-www-form-urlencoded")
_FORMATS = {pattern: name for name, patterns in _PATTERNS.items() for pattern in patterns}
_MAX_EXAMPLE_CELLS = 1000


class _Tabular(IODescriptor[T]):
    """What frames and series have in common: formats, data types, shape."""

    orient: str
    dtype: Any
    shape: tuple[int, ...] | None
    enforce_dtype: bool
    enforce_shape: bool
    default_format: str

    def __init__(
        self,
        orients: Sequence[str],
        orient: str,
        dtype: Any,
        enforce_dtype: bool,
        shape: Sequence[int] | None,
        enforce_shape: bool,
        default_format: str,
    ) -> None:
        if orient not in orients:
            raise InvalidArgument(
                f"The orient of {type(self).__name__} is one of {', '.join(orients)}, not {orient!r}."
            )
        if default_format not in _TYPES:
            raise InvalidArgument(f"default_format is one of {', '.join(_TYPES)}, not {default_format!r}.")
        if default_format == "parquet" and not parquet.INSTALLED:
            raise MissingDependencyException("pyarrow", extra="parquet", feature="Parquet")
        self.orient = orient
        # pandas' own True and False leave the data types to what comes
        self.dtype = None if dtype is None or isinstance(dtype, bool) else _dtypes(dtype)
        self.shape = None if shape is None else checked_shape(shape)
        for enforced, what in ((enforce_dtype, "dtype"), (enforce_shape, "shape")):
            if enforced and getattr(self, what) is None:
                raise InvalidArgument(f"enforce_{what}=True needs the {what} to enforce: give {what}=… as well.")
        self.enforce_dtype = enforce_dtype
        self.enforce_shape = enforce_shape
        self.default_format = default_format
        self.mime_type = _TYPES[default_format]
        others = (pattern for name, patterns in _PATTERNS.items() if name != default_format for pattern in patterns)
        self.accepts = (*_PATTERNS[default_format], *others, *_UNTOLD)
        self.sends = (self.mime_type, *(_TYPES[f] for f in _TYPES if f != default_format and _writes(f)))

    def to_spec(self) -> dict[str, Any]:
        spec = super().to_spec()
        if isinstance(self.dtype, dict):
            spec["args"]["dtype"] = {name: str(dtype) for name, dtype in self.dtype.items()}
        elif self.dtype is not None:
            spec["args"]["dtype"] = str(self.dtype)
        return spec

    def _format_of(self, request: Request) -> str:
        name = media_type_of(request).name
        found = _FORMATS.get(name, "json" if name.endswith("json") else self.default_format)
        if found == "parquet" and not parquet.INSTALLED:
            missing = MissingDependencyException("pyarrow", extra="parquet", feature="Parquet")
            raise UnsupportedMediaType(f"The body came as {name!r}, which this server cannot read: {missing}")
        return found

    def _text_dtypes(self) -> Any:
        """The data types that must be known while CSV is read: `007` is a text where a text is wanted."""
        if isinstance(self.dtype, dict):
            return {name: str for name, dtype in self.dtype.items() if is_text(dtype)}
        return str if is_text(self.dtype) else None

    def _wanted(self, name: Any) -> Any:
        return self.dtype.get(str(name)) if isinstance(self.dtype, dict) else self.dtype

    def _fit_column(self, column: pd.Series[Any], wanted: Any, error: type[AdapterError], which: str, end: str) -> Any:
        fitting = cast_column(column, wanted)
        if fitting is not None:
            return fitting
        if self.enforce_dtype:
            raise error(
                f"{which} is of data type {column.dtype} and does not fit {wanted} without loss: it holds "
                f"{first_misfit(column, wanted)}{end}."
            )
        return column

    def _check_shape(self, shape: tuple[int, ...], error: type[AdapterError], subject: str, end: str) -> None:
        if self.enforce_shape and self.shape is not None and not shape_fits(shape, self.shape):
            raise error(f"{subject} has the shape {shape}, but {self.shape} was expected{end}.")


class PandasDataFrame(_Tabular[pd.DataFrame]):
    """Read and send data frames as JSON, CSV or Parquet.

    The content type of a body tells its format (`application/json`, `text/csv`, `application/vnd.apache.parquet` or
    `application/octet-stream`), the Accept header of a request that of the answer; where they tell nothing it is
    `default_format`. `orient` is the layout in JSON, as in `pandas.DataFrame.to_json`; `records` reads a list of lists
    as well. Parquet needs pyarrow: `pip install 'triton-adapter[parquet]'`.

    `columns` are the names that a frame must have; it is put into their order, and gets them where it came without
    names (a list of lists). With `apply_column_names=True` it gets them in place of its own. `dtype` is one data type,
    or a dict of them by column: values are cast where none of them changes by it beyond rounding, times are read from
    ISO 8601 texts or milliseconds since 1970. What does not fit passes unchanged, unless `enforce_dtype` makes it an
    error: 400 for an input, 500 for an output. So does `enforce_shape`; -1 in `shape` stands for any number.

    A text in JSON stays a text, unlike with `pandas.read_json`. In JSON that is sent, missing values, NaN and the
    infinities are null, and times ISO 8601 texts; CSV is sent without the index. An output may be anything that pandas
    makes a frame of.
    """

    def __init__(
        self,
        orient: Literal["records", "split", "columns", "index", "values", "table"] = "records",
        columns: Sequence[Any] | None = None,
        apply_column_names: bool = False,
        dtype: Any = None,
        enforce_dtype: bool = False,
        shape: Sequence[int] | None = None,
        enforce_shape: bool = False,
        default_format: Format = "json",
        **others: NoReturn,
    ) -> None:
        refuse_arguments(type(self), others, ARGUMENTS_OF_SEEDS)
        super().__init__(FRAME_ORIENTS, orient, dtype, enforce_dtype, shape, enforce_shape, default_format)
        if self.shape is not None and len(self.shape) != 2:
            raise InvalidArgument(f"The shape of a data frame has two numbers, such as (-1, 4), not {self.shape!r}.")
        self.columns = None if columns is None else _names(columns)
        if apply_column_names and self.columns is None:
            raise InvalidArgument("apply_column_names=True needs the names to apply: give columns=[…] as well.")
        self.apply_column_names = apply_column_names
        self._columns_of_sample: list[Any] | None = None
        if default_format == "json":
            self.placeholder = self._example()

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Take columns, data types and shape from a frame, or what makes one; nothing is enforced by that alone.

        The number of rows stays open.
        """
        with _no_sample(sample, "data frame"):
            frame = _frame(sample)
            arguments = {"dtype": frame.dtypes.to_dict(), "shape": (-1, frame.shape[1]), **kwargs}
            descriptor = super().from_sample(frame, **arguments)
            rows = frame.head(_MAX_EXAMPLE_CELLS // max(1, frame.shape[1]))
            descriptor.example = orjson.loads(write_frame(rows, descriptor.orient))
        descriptor._columns_of_sample = list(frame.columns)
        return descriptor

    async def from_http_request(self, request: Request) -> pd.DataFrame:
        body = await self.body_of(request)
        match self._format_of(request):
            case "csv":
                frame = read_csv(text_of(body, request), self._text_dtypes())
            case "parquet":
                frame = parquet.read_parquet(body)
            case _:
                frame = read_frame(_utf8(body, request), self.orient, self.advice)
                return self._fit(frame, BadInput, "The body", f"; {self.advice}")
        return self._fit(frame, BadInput, "The body", "")

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        frame = self._fit(_frame(obj), InternalServerError, "The result", "")
        media_type = negotiated(self.sends, self.mime_type)
        if media_type == CSV_TYPE:
            body = write_csv(frame)
        elif media_type == JSON_TYPE:
            body = write_frame(frame, self.orient)
        else:
            body = parquet.write_parquet(frame)
        return self.respond(body, ctx, mime_type=media_type)

    def python_type(self) -> type:
        return pd.DataFrame

    def json_schema(self) -> dict[str, Any]:
        columns = {str(name): json_type(self._wanted(name)) for name in self._known_names()}
        return frame_schema(self.orient, columns, required=self.columns is not None and not self.apply_column_names)

    def _example(self) -> str:
        """A body of the right columns and shape, for error messages; "" where it would be long."""
        rows, width = (1, 2) if self.shape is None else _lengths(self.shape, (1, 2))
        names = self._known_names() or _letters(min(width, _MAX_EXAMPLE_CELLS + 1))
        if rows * len(names) > _MAX_EXAMPLE_CELLS:
            return ""
        frame = pd.DataFrame({str(name): [_placeholder(self._wanted(name))] * rows for name in names})
        return write_frame(frame, self.orient).decode()

    def _known_names(self) -> list[Any]:
        return self.columns or self._columns_of_sample or (list(self.dtype) if isinstance(self.dtype, dict) else [])

    def _fit(self, frame: pd.DataFrame, error: type[AdapterError], subject: str, end: str) -> pd.DataFrame:
        if not frame.columns.is_unique:
            if error is BadInput:
                twice = frame.columns[frame.columns.duplicated()][0]
                raise error(f"{subject} has two columns called {str(twice)!r}: name them apart.")
        elif self.columns is not None or self._columns_of_sample is not None:
            frame = self._with_names(frame, error, subject, end)
        self._check_shape(frame.shape, error, subject, end)
        return frame if self.dtype is None else self._with_dtypes(frame, error, subject, end)

    def _with_names(self, frame: pd.DataFrame, error: type[AdapterError], subject: str, end: str) -> pd.DataFrame:
        width = frame.shape[1]
        nameless = frame.columns.dtype.kind == "i" and frame.columns.equals(pd.RangeIndex(width))
        if self.columns is None:
            if nameless and self._columns_of_sample is not None and len(self._columns_of_sample) == width:
                return frame.set_axis(self._columns_of_sample, axis=1)
            return frame
        if self.apply_column_names or nameless:
            if len(self.columns) == width:
                return frame.set_axis(self.columns, axis=1)
            if not width and not len(frame):
                return pd.DataFrame(columns=self.columns)
            raise error(
                f"{subject} has {width} columns, but the {len(self.columns)} of {self._shown()} were expected{end}."
            )
        came = {str(name): i for i, name in enumerate(frame.columns)}
        wanted = dict.fromkeys(map(str, self.columns))
        if list(came) != list(wanted):
            if missing := [name for name in wanted if name not in came]:
                raise error(f"{subject} has no column {missing[0]!r}; the columns {self._shown()} were expected{end}.")
            if extra := [name for name in came if name not in wanted]:
                raise error(f"{subject} has a column {extra[0]!r}, but only {self._shown()} were expected{end}.")
            frame = frame.iloc[:, [came[name] for name in wanted]]
        return frame.set_axis(self.columns, axis=1)

    def _shown(self) -> str:
        return reprlib.repr(self.columns)

    def _with_dtypes(self, frame: pd.DataFrame, error: type[AdapterError], subject: str, end: str) -> pd.DataFrame:
        if self.enforce_dtype and isinstance(self.dtype, dict):
            here = set(map(str, frame.columns))
            if missing := [name for name in self.dtype if name not in here]:
                raise error(f"{subject} has no column {missing[0]!r}, whose data type is enforced{end}.")
        if not isinstance(self.dtype, dict) and (cast := cast_frame(frame, self.dtype)) is not None:
            return cast
        changed = {}
        for i, (name, column) in enumerate(frame.items()):
            wanted = self._wanted(name)
            if wanted is not None and column.dtype != wanted:
                which = f"{subject} has a column {str(name)!r} that"
                changed[i] = self._fit_column(column, wanted, error, which, end)
        return with_columns(frame, changed)


class PandasSeries(_Tabular["pd.Series[Any]"]):
    """Read and send series, in the formats and with the arguments of `PandasDataFrame`.

    In JSON `records` and `values` are a list, `index` an object by label, `split` has the name as well. A CSV or
    Parquet body has one column.
    """

    def __init__(
        self,
        orient: Literal["records", "values", "split", "index", "table"] = "records",
        dtype: Any = None,
        enforce_dtype: bool = False,
        shape: Sequence[int] | None = None,
        enforce_shape: bool = False,
        default_format: Format = "json",
        **others: NoReturn,
    ) -> None:
        refuse_arguments(type(self), others, ARGUMENTS_OF_SEEDS)
        super().__init__(SERIES_ORIENTS, orient, dtype, enforce_dtype, shape, enforce_shape, default_format)
        if isinstance(self.dtype, dict):
            raise InvalidArgument(f"A series has one data type, not {dtype!r}.")
        if self.shape is not None and len(self.shape) != 1:
            raise InvalidArgument(f"The shape of a series has one number, such as (-1,), not {self.shape!r}.")
        if default_format == "json":
            (length,) = (2,) if self.shape is None else _lengths(self.shape, (2,))
            if length <= _MAX_EXAMPLE_CELLS:
                example = pd.Series([_placeholder(self.dtype)] * length, name="a")
                self.placeholder = write_series(example, orient).decode()

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Take the data type from a series, or what makes one; the length stays open, and nothing is enforced."""
        with _no_sample(sample, "series"):
            series = _series(sample)
            descriptor = super().from_sample(series, **{"dtype": series.dtype, "shape": (-1,), **kwargs})
            descriptor.example = orjson.loads(write_series(series.head(_MAX_EXAMPLE_CELLS), descriptor.orient))
        return descriptor

    async def from_http_request(self, request: Request) -> pd.Series[Any]:
        body = await self.body_of(request)
        match self._format_of(request):
            case "csv":
                series = _only_column(read_csv(text_of(body, request), self._text_dtypes()))
            case "parquet":
                series = _only_column(parquet.read_parquet(body))
            case _:
                series = read_series(_utf8(body, request), self.orient, self.advice)
                return self._fit(series, BadInput, "The body", f"; {self.advice}")
        return self._fit(series, BadInput, "The body", "")

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        series = self._fit(_series(obj), InternalServerError, "The result", "")
        media_type = negotiated(self.sends, self.mime_type)
        if media_type == JSON_TYPE:
            body = write_series(series, self.orient)
        else:
            frame = series.to_frame("value" if series.name is None else str(series.name))
            body = write_csv(frame) if media_type == CSV_TYPE else parquet.write_parquet(frame)
        return self.respond(body, ctx, mime_type=media_type)

    def python_type(self) -> type:
        return pd.Series

    def json_schema(self) -> dict[str, Any]:
        return series_schema(self.orient, json_type(self.dtype))

    def _fit(self, series: pd.Series[Any], error: type[AdapterError], subject: str, end: str) -> pd.Series[Any]:
        if self.dtype is not None and series.dtype != self.dtype:
            series = self._fit_column(series, self.dtype, error, subject, end)
        self._check_shape(series.shape, error, subject, end)
        return series


def _writes(format_name: str) -> bool:
    return format_name != "parquet" or parquet.INSTALLED


def _dtypes(dtype: Any) -> Any:
    if isinstance(dtype, (Mapping, pd.Series)):
        return {str(name): _dtype(one) for name, one in dtype.items()}
    return _dtype(dtype)


def _dtype(dtype: Any) -> Any:
    try:
        return pd.api.types.pandas_dtype(dtype)
    except (TypeError, ValueError) as error:
        raise UnprocessableEntity(f"{dtype!r} is not a data type of pandas such as 'float32'.") from error


def _names(columns: Sequence[Any]) -> list[Any]:
    names = [columns] if isinstance(columns, str) else list(columns)
    if isinstance(columns, str) or len(set(map(str, names))) < len(names):
        raise InvalidArgument(f"columns is a list of names, each of them once, not {columns!r}.")
    return names


def _frame(obj: Any) -> pd.DataFrame:
    if isinstance(obj, pd.DataFrame):
        return obj
    if isinstance(obj, pd.Series):
        return obj.to_frame()
    _check_result(obj, "data frame")
    try:
        return pd.DataFrame(_detached(obj))
    except Exception as error:  # pandas raises anything on what makes no frame
        raise InternalServerError(
            f"The result is a {type(obj).__qualname__} that pandas cannot make a data frame of: "
            f"{str(error).rstrip('.')}."
        ) from error


def _series(obj: Any) -> pd.Series[Any]:
    if isinstance(obj, pd.Series):
        return obj
    if isinstance(obj, pd.DataFrame) and obj.shape[1] == 1:
        return obj.iloc[:, 0]
    _check_result(obj, "series")
    try:
        return pd.Series(np.squeeze(obj) if isinstance(obj, np.ndarray) and obj.ndim > 1 else _detached(obj))
    except Exception as error:  # as above
        raise InternalServerError(
            f"The result is a {type(obj).__qualname__} that pandas cannot make a series of: {str(error).rstrip('.')}."
        ) from error


def _placeholder(dtype: Any) -> Any:
    return "text" if is_text(dtype) else 1


def _lengths(shape: tuple[int, ...], free: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an example: `free` where a length is not fixed."""
    return tuple(n if wanted == -1 else wanted for wanted, n in zip(shape, free, strict=True))


def _letters(count: int) -> list[str]:
    """Names of columns: a, b, …, z, a1, …"""
    letters = string.ascii_lowercase
    return [letters[i % len(letters)] + (str(i // len(letters)) if i >= len(letters) else "") for i in range(count)]


@contextlib.contextmanager
def _no_sample(sample: Any, kind: str) -> Iterator[None]:
    try:
        yield
    except InternalServerError as error:
        raise BadInput(f"The sample {reprlib.repr(sample)} cannot be used as a {kind}: {error}") from error


def _only_column(frame: pd.DataFrame) -> pd.Series[Any]:
    if frame.shape[1] != 1:
        raise BadInput(f"The body has {frame.shape[1]} columns, but a series is one.")
    return frame.iloc[:, 0]


def _utf8(body: bytes, request: Request) -> bytes:
    """The body in UTF-8, where its content type names another charset."""
    charset = media_type_of(request).parameters.get("charset", "utf-8").lower()
    return body if charset in ("utf-8", "utf8") else text_of(body, request).encode("utf-8", "surrogatepass")


def _check_result(obj: Any, kind: str) -> None:
    if obj is None or np.isscalar(obj):
        end = "; is a `return` missing?" if obj is None else "."
        raise InternalServerError(f"The result is {reprlib.repr(obj)} instead of a {kind}{end}")


def _detached(obj: Any) -> Any:
    # neither pandas nor numpy reads a torch tensor that has a gradient or lies on a GPU
    return obj.detach().cpu().numpy() if hasattr(obj, "detach") else obj

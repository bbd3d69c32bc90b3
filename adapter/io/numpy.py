"""NumpyNdarray: arrays as nested JSON lists."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import reprlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnprocessableEntity
from adapter.io.base import IODescriptor
from adapter.io.json import JSON_TYPES, loads, plain, simpler
from adapter.tensor import Array, cast, infer

if TYPE_CHECKING:
    from typing_extensions import Self

_JSON_TYPE_OF_KIND = {
    "b": {"type": "boolean"},
    "i": {"type": "integer"},
    "u": {"type": "integer"},
    "f": {"type": "number"},
    "c": {"type": "number"},
    "U": {"type": "string"},
    "S": {"type": "string"},
    "M": {"type": "string", "format": "date-time"},
}
_MAX_EXAMPLE_ITEMS = 1000
# numpy gives every text of an array the room of the longest: one long text among many could fill the memory
_MAX_BYTES_OF_TEXT = 256 << 20


class NumpyNdarray(IODescriptor[Array]):
    """Read and send arrays as nested JSON lists; a bare number or text is an array without axes.

    Values are cast to `dtype` where none of them changes by it beyond rounding: `[1, 2]` and `["1", "2"]` to float32,
    `[1.0]` to int64, `[300]` not to uint8. -1 in `shape` stands for any length. What does not fit passes unchanged
    (another shape with as many items is reshaped), unless `enforce_dtype` or `enforce_shape` make it an error: 400 for
    an input, 500 for an output. NaN and the infinities are read, and sent as `NaN` and `Infinity`; times as ISO text.

    An output may be anything that numpy makes an array of: lists, numbers, data frames, tensors.
    """

    mime_type = "application/json"
    accepts = JSON_TYPES

    def __init__(
        self,
        dtype: npt.DTypeLike | None = None,
        enforce_dtype: bool = False,
        shape: Sequence[int] | None = None,
        enforce_shape: bool = False,
    ) -> None:
        try:
            self.dtype: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise UnprocessableEntity(f"{dtype!r} is not a numpy data type such as 'float32'.") from error
        self.shape = None if shape is None else _shape(shape)
        for enforced, what in ((enforce_dtype, "dtype"), (enforce_shape, "shape")):
            if enforced and getattr(self, what) is None:
                raise InvalidArgument(f"enforce_{what}=True needs the {what} to enforce: give {what}=… as well.")
        self.enforce_dtype = enforce_dtype
        self.enforce_shape = enforce_shape
        self.placeholder = _placeholder(self.dtype, self.shape)

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Take data type and shape from a sample, an array or nested sequences; nothing is enforced by that alone."""
        if isinstance(sample, (str, bytes)) or not isinstance(sample, (np.ndarray, Sequence)):
            raise BadInput(f"NumpyNdarray.from_sample takes an array or nested lists, not {reprlib.repr(sample)}.")
        try:
            array = np.asarray(sample)
        except ValueError as error:
            raise BadInput(f"The sample is ragged, so it is no array: {reprlib.repr(sample)}.") from error
        descriptor = super().from_sample(array, **{"dtype": array.dtype, "shape": array.shape, **kwargs})
        if array.size <= _MAX_EXAMPLE_ITEMS:
            descriptor.example = orjson.loads(orjson.dumps(plain(simpler(array))))
        return descriptor

    async def from_http_request(self, request: Request) -> Array:
        body = await self.body_of(request)
        value = loads(body, self.advice)
        if b'"' in body:
            self._refuse_padding(value)
        return self._fit(self._array(value), BadInput, "The body", f"; {self.advice}")

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return self.respond(self.dump(obj), ctx)

    def dump(self, obj: Any) -> bytes:
        """The body for a result, or InternalServerError that says why it has none."""
        return _written(
            self._fit(_result_array(obj), InternalServerError, "The result", ", as its descriptor enforces")
        )

    def python_type(self) -> type:
        return np.ndarray

    def json_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = dict(_JSON_TYPE_OF_KIND.get(self.dtype.kind, {})) if self.dtype is not None else {}
        for length in reversed((-1,) if self.shape is None else self.shape):
            schema = {"type": "array", "items": schema}
            if self.enforce_shape and length != -1:
                schema |= {"minItems": length, "maxItems": length}
        return schema

    def _array(self, value: Any) -> Array:
        try:
            if self.dtype == object:
                return np.array(value, dtype=object)
            array = np.array(value)
        except ValueError as error:
            raise BadInput(
                f"The body is no array: its lists differ in length or depth, or are nested too deeply; {self.advice}."
            ) from error
        if array.dtype == object:
            odd = next((leaf for leaf in _leaves(value) if not _has_dtype(leaf)), None)
            what = "null" if odd is None else reprlib.repr(odd)
            raise BadInput(f"The body is no array of numbers, texts or truth values: it holds {what}; {self.advice}.")
        return array

    def _refuse_padding(self, value: Any) -> None:
        lengths = [len(leaf) if isinstance(leaf, str) else 0 for leaf in _leaves(value)]
        if 4 * max(lengths, default=0) * len(lengths) > _MAX_BYTES_OF_TEXT:
            raise BadInput(
                f"The body holds {len(lengths)} items and the longest text has {max(lengths)} characters; an array "
                "would need that room for each of them: send shorter texts, or fewer at a time."
            )

    def _fit(self, array: Array, error: type[AdapterError], subject: str, end: str) -> Array:
        wanted = self.dtype
        if wanted is not None and array.dtype != wanted:
            fitting = _cast(array, wanted)
            if fitting is not None:
                array = fitting
            elif self.enforce_dtype:
                raise error(f"{subject} is of data type {array.dtype} and does not fit {wanted} without loss{end}.")
        if self.shape is not None and not _shape_fits(array.shape, self.shape):
            if self.enforce_shape:
                raise error(f"{subject} has the shape {array.shape}, but {self.shape} was expected{end}.")
            with contextlib.suppress(ValueError):
                array = array.reshape(self.shape)
        return array


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(operator.index(n) for n in shape)
    except TypeError:
        lengths = (-2,)
    if any(n < -1 for n in lengths):
        raise InvalidArgument(f"A shape is a tuple of whole numbers such as (-1, 4), not {shape!r}.")
    return lengths


def _shape_fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for n, w in zip(shape, wanted, strict=True):  # noqa: SIM110  # once a request, and a generator costs twice as much
        if w not in (-1, n):
            return False
    return True


def _placeholder(dtype: np.dtype[Any] | None, shape: tuple[int, ...] | None) -> str:
    """A body of the right data type and shape, for error messages."""
    if shape is None and (dtype is None or dtype.kind in "fc"):
        return "[[5.9, 3, 5.1, 1.8]]"
    lengths = [1 if n == -1 else n for n in shape or (1,)]
    if math.prod(lengths) > _MAX_EXAMPLE_ITEMS or (dtype is not None and dtype.kind not in "biufUS"):
        return ""
    return json.dumps(plain(simpler(np.zeros(lengths, dtype=dtype))))


def _leaves(value: Any) -> Iterator[Any]:
    """The items of nested lists, depth first."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(reversed(item))
        else:
            yield item


def _has_dtype(leaf: Any) -> bool:
    if isinstance(leaf, int):
        return -(2**63) <= leaf < 2**64
    return isinstance(leaf, (float, str))


def _cast(array: Array, wanted: np.dtype[Any]) -> Array | None:
    """`tensor.cast`, and texts of numbers and times besides: JSON has no times, and people quote numbers."""
    fitting = cast(array, wanted)
    if fitting is not None or wanted.kind not in "iufcMm":  # not to truth values: numpy takes any text for one
        return fitting
    texts = infer(array) if array.dtype == object else array
    if texts.dtype.kind != "U":
        return None
    try:
        with np.errstate(over="raise"):
            return texts.astype(wanted)
    except (ValueError, OverflowError, FloatingPointError):
        return None


def _result_array(obj: Any) -> Array:
    if isinstance(obj, np.ndarray):
        return obj
    if obj is None:
        raise InternalServerError("The API function returned None instead of an array; is a `return` missing?")
    try:
        # numpy reads no torch tensor that has a gradient or lies on a GPU
        array = np.asarray(obj.detach().cpu() if hasattr(obj, "detach") else obj)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InternalServerError(
            f"The API function returned a {type(obj).__qualname__} that numpy cannot make an array of: {error}."
        ) from error
    if array.dtype == object and array.ndim == 0:
        raise InternalServerError(
            f"The API function returned a {type(obj).__qualname__} instead of an array: {reprlib.repr(obj)}; "
            "adapter.io.JSON sends any value."
        )
    return array


def _written(array: Array) -> bytes:
    if array.dtype.kind in "biuf" and array.ndim:
        with contextlib.suppress(orjson.JSONEncodeError):  # a data type that it does not know: longdouble
            # orjson wants C order and this machine's byte order; where both are so, nothing is copied
            ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
            body = orjson.dumps(ordered, option=orjson.OPT_SERIALIZE_NUMPY)
            if b"null" not in body:
                return body
            if not np.isinf(array).any():
                return body.replace(b"null", b"NaN")
    try:
        return json.dumps(plain(simpler(array)), ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InternalServerError(f"The array of {array.dtype} cannot be written as JSON: {error}.") from error

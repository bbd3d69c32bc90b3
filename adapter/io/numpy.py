"""NumpyNdarray: arrays as nested JSON lists, or as .npy files."""

from __future__ import annotations

import contextlib
import io
import json
import math
import operator
import reprlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import orjson
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnprocessableEntity
from adapter.io.arguments import refuse_arguments
from adapter.io.base import IODescriptor, accept, media_type_of
from adapter.io.json import JSON_TYPES, loads, plain, simpler
from adapter.io.negotiation import negotiated
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
    "M": {"type": "string"},
}
JSON_TYPE = "application/json"
NPY_TYPE = "application/x-npy"
_BINARY_TYPES = (NPY_TYPE, "application/octet-stream")
_NPY_BEGINNING = b"\x93NUMPY"  # no JSON begins so
_NPY_KINDS = "biufcUSMm"
_WRITE_NPY = "write one with numpy.save(file, array)"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# an axis without length lets a body of 100 bytes stand for any number of empty lists
_MAX_EMPTY_LISTS = 1_000_000
_MAX_EXAMPLE_ITEMS = 1000
# numpy gives every text of an array the room of the longest: one long text among many could fill the memory
_MAX_BYTES_OF_TEXT = 256 << 20


# what seeds 001 and 002 call the arguments in their table
ARGUMENTS_OF_SEEDS = {
    "validate": "enforce_dtype=True and enforce_shape=True make it check",
    "schema": "it is called dtype, and shape",
}


class NumpyNdarray(IODescriptor[Array]):
    """Read and send arrays as nested JSON lists, or as .npy files; a bare number or text is an array without axes.

    A .npy file (`numpy.save`) is read when it comes as `application/x-npy` or `application/octet-stream`, and sent to
    a client that asks for it with `Accept: application/x-npy`: large arrays take a hundredth of the time of JSON. It
    holds numbers, truth values, texts or times; objects and records are refused.

    Values are cast to `dtype` where none of them changes by it beyond rounding: `[1, 2]` and `["1", "2"]` to float32,
    `[1.0]` to int64, `[300]` not to uint8. -1 in `shape` stands for any length. What does not fit passes unchanged
    (another shape with as many items is reshaped), unless `enforce_dtype` or `enforce_shape` make it an error: 400 for
    an input, 500 for an output. NaN and the infinities are read, and sent as `NaN` and `Infinity`; times as ISO text.

    An output may be anything that numpy makes an array of: lists, numbers, data frames, tensors.
    """

    mime_type = JSON_TYPE
    accepts = (*JSON_TYPES, *_BINARY_TYPES)
    sends = (JSON_TYPE, NPY_TYPE)

    def __init__(
        self,
        dtype: npt.DTypeLike | None = None,
        enforce_dtype: bool = False,
        shape: Sequence[int] | None = None,
        enforce_shape: bool = False,
        **others: NoReturn,
    ) -> None:
        refuse_arguments(type(self), others, ARGUMENTS_OF_SEEDS)
        try:
            self.dtype: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise UnprocessableEntity(f"{dtype!r} is not a numpy data type such as 'float32'.") from error
        self.shape = None if shape is None else checked_shape(shape)
        for enforced, what in ((enforce_dtype, "dtype"), (enforce_shape, "shape")):
            if enforced and getattr(self, what) is None:
                raise InvalidArgument(f"enforce_{what}=True needs the {what} to enforce: give {what}=… as well.")
        self.enforce_dtype = enforce_dtype
        self.enforce_shape = enforce_shape
        self.placeholder = _placeholder(self.dtype, self.shape)
        # a small request takes a few microseconds in all, so these are not asked again for each
        self._free = dtype is None and shape is None
        self._of_objects = self.dtype == object

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
        # JSON has no NaN, so an example with one would not be a body of this schema
        if array.size <= _MAX_EXAMPLE_ITEMS and (array.dtype.kind not in "fc" or np.isfinite(array).all()):
            descriptor.example = orjson.loads(orjson.dumps(plain(simpler(array))))
        return descriptor

    async def from_http_request(self, request: Request) -> Array:
        body = await self.body_of(request)
        if body[:6] == _NPY_BEGINNING:
            array = _read_npy(body)
        else:
            try:
                value = loads(body, self.advice)
            except BadInput as error:
                if (name := media_type_of(request).name) in _BINARY_TYPES:
                    raise BadInput(f"The body came as {name!r}, but it is no .npy file: {_WRITE_NPY}.") from error
                raise
            if b'"' in body:
                self._refuse_padding(value)
            array = self._array(value)
        if self._free:
            return array
        return self._fit(array, BadInput, "The body", f"; {self.advice}")

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if accept.get() and negotiated(self.sends, JSON_TYPE) == NPY_TYPE:
            return self.respond(_npy(self._result(obj)), ctx, mime_type=NPY_TYPE)
        return self.respond(self.dump(obj), ctx)

    def of_json(self, value: Any) -> Any:
        """The array of nested lists that have been read already, or BadInput."""
        if isinstance(value, np.ndarray):
            return self._fit(value, BadInput, "It", "")
        if any(isinstance(leaf, str) for leaf in _leaves(value)):
            self._refuse_padding(value)
        return self._fit(self._array(value), BadInput, "It", "")

    def dump(self, obj: Any) -> bytes:
        """The JSON body for a result, or InternalServerError that says why it has none."""
        return _written(self._result(obj))

    def python_type(self) -> type:
        return np.ndarray

    def json_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = dict(_JSON_TYPE_OF_KIND.get(self.dtype.kind, {})) if self.dtype is not None else {}
        for length in reversed((-1,) if self.shape is None else self.shape):
            schema = {"type": "array", "items": schema}
            if self.enforce_shape and length != -1:
                schema |= {"minItems": length, "maxItems": length}
        return schema

    def _result(self, obj: Any) -> Array:
        array = obj if isinstance(obj, np.ndarray) else _result_array(obj)
        if self._free:
            return array
        return self._fit(array, InternalServerError, "The result", ", as its descriptor enforces")

    def _array(self, value: Any) -> Array:
        try:
            if self._of_objects:
                return np.array(value, dtype=object)
            array = np.array(value)
        except ValueError as error:
            raise BadInput(
                f"The body is no array: its lists differ in length or depth, or are nested too deeply; {self.advice}."
            ) from error
        if array.dtype.kind == "O":
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
            fitting = cast_json(array, wanted)
            if fitting is not None:
                array = fitting
            elif self.enforce_dtype:
                raise error(f"{subject} is of data type {array.dtype} and does not fit {wanted} without loss{end}.")
        if self.shape is not None and not shape_fits(array.shape, self.shape):
            if self.enforce_shape:
                raise error(f"{subject} has the shape {array.shape}, but {self.shape} was expected{end}.")
            with contextlib.suppress(ValueError):
                array = array.reshape(self.shape)
        return array


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(operator.index(n) for n in shape)
    except TypeError:
        lengths = (-2,)
    if any(n < -1 for n in lengths):
        raise InvalidArgument(f"A shape is a tuple of whole numbers such as (-1, 4), not {shape!r}.")
    return lengths


def shape_fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
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


def cast_json(array: Array, wanted: np.dtype[Any]) -> Array | None:
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
        body = _quickly_written(array)
        if body is not None:
            if b"null" not in body:
                return body
            if not np.isinf(array).any():
                return body.replace(b"null", b"NaN")
    try:
        return json.dumps(plain(simpler(array)), ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InternalServerError(f"The array of {array.dtype} cannot be written as JSON: {error}.") from error


def _quickly_written(array: Array) -> bytes | None:
    try:
        return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        # it wants C order and this machine's byte order, and does not know each data type (longdouble)
        ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        return orjson.dumps(ordered, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        return None


def _read_npy(body: bytes) -> Array:
    """The array of a .npy file, writable; or BadInput with a sentence."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = _NPY_HEADERS[version](file)
    except Exception as error:  # numpy evaluates the header, and raises anything on a broken one
        raise BadInput(f"The .npy file has a header that numpy cannot read: {_WRITE_NPY}.") from error
    if dtype.kind not in _NPY_KINDS or not dtype.itemsize:
        raise BadInput(
            f"The .npy file holds values of data type {dtype}; it may hold numbers, truth values, texts and times."
        )
    start = file.tell()
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != len(body) - start:
        raise BadInput(
            f"The header of the .npy file tells of shape {shape} and {dtype}, which are {expected} bytes, but "
            f"{len(body) - start} follow: {_WRITE_NPY}."
        )
    if math.prod(n for n in shape if n) > _MAX_EMPTY_LISTS and not expected:
        raise BadInput(f"The .npy file holds an array of shape {shape}, which is empty, but too long.")
    # a copy in any case: the body cannot be written to, and where its array begins is not aligned
    flat = np.frombuffer(body, dtype, offset=start).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _npy(array: Array) -> bytes:
    """The .npy file of an array, or InternalServerError."""
    if array.dtype.kind == "O" and (
        all(isinstance(item, str) for item in array.flat) or infer(array).dtype.kind != "U"
    ):
        array = infer(array)
    if array.dtype.kind not in _NPY_KINDS:
        raise InternalServerError(f"The array of {array.dtype} cannot be written as a .npy file.")
    ordered = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(ordered))
    # times have no buffer of their own kind
    return b"".join((header.getvalue(), ordered.reshape(-1).view(np.uint8).data))

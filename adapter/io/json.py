"""JSON: structured data, checked by a pydantic model where one is given, and how JSON bodies are read and written."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import reprlib
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, get_origin

import numpy as np
import orjson
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import BadInput, InternalServerError, InvalidArgument
from adapter.io.arguments import refuse_arguments
from adapter.io.base import DEFINITIONS, IODescriptor

if TYPE_CHECKING:
    from typing_extensions import Self

# text/plain and the form type are what curl and simple clients send when they are told nothing
JSON_TYPES = (
    "application/json",
    "*/*+json",
    "*/json",
    "*/x-json",
    "text/plain",
    "application/text",
    "application/x-www-form-urlencoded",
)
# dataclasses are left to `simpler`, so that they look the same with and without orjson
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
_MAX_FAILURES = 5
_MAX_DETAILS = 100
# what seeds 001 and 002 call the arguments in their table
_ARGUMENTS_OF_SEEDS = {
    "validate": "a body is checked where a pydantic_model is given",
    "schema": "it is called pydantic_model",
}


class JSON(IODescriptor[Any]):
    """Read and send JSON: `JSON()` any value, `JSON(pydantic_model=Features)` an instance of that model.

    `pydantic_model` is a pydantic model or another type that pydantic can check (a dataclass, a TypedDict,
    `list[Features]`). On input the function gets an instance; on output a result that does not fit it is an error of
    the service, and one that fits is sent as the model writes it. `json_encoder` is a subclass of json.JSONEncoder
    for results; without it dataclasses, attrs, pydantic models, arrays, data frames, times, enums, sets and bytes (as
    UTF-8) are known. NaN and the infinities are read, but not sent. `validate_json` is an old argument without effect.

    A result is written compactly and in UTF-8; None is `null`.
    """

    mime_type = "application/json"
    accepts = JSON_TYPES
    placeholder = '{"name": "value"}'

    def __init__(
        self,
        *,
        pydantic_model: Any = None,
        validate_json: bool | None = None,
        json_encoder: type[json.JSONEncoder] | None = None,
        **others: NoReturn,
    ) -> None:
        refuse_arguments(type(self), others, _ARGUMENTS_OF_SEEDS)
        if validate_json is not None:
            warnings.warn(
                "JSON(validate_json=…) has no effect: a body is checked where a pydantic_model is given.",
                DeprecationWarning,
                stacklevel=2,
            )
        if json_encoder is not None and not (
            isinstance(json_encoder, type) and issubclass(json_encoder, json.JSONEncoder)
        ):
            raise InvalidArgument(f"json_encoder is a subclass of json.JSONEncoder, not {json_encoder!r}.")
        self.pydantic_model = pydantic_model
        self.json_encoder = json_encoder
        self._adapter: TypeAdapter[Any] | None = None
        if pydantic_model is not None:
            self._adapter = _type_adapter(pydantic_model)

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor of values like `sample`: a dict, a list, the text of one, or an instance of a model."""
        if isinstance(sample, (str, bytes)):
            try:
                sample = json.loads(sample)
            except ValueError as error:
                raise BadInput(f"The sample {reprlib.repr(sample)} is not JSON: {error}.") from error
        elif isinstance(sample, BaseModel) or (dataclasses.is_dataclass(sample) and not isinstance(sample, type)):
            kwargs.setdefault("pydantic_model", type(sample))
        elif not isinstance(sample, (dict, list)):
            raise BadInput(
                f"JSON.from_sample takes a dict, a list, JSON text or an instance of a pydantic model or dataclass, "
                f"not {reprlib.repr(sample)}."
            )
        descriptor = super().from_sample(sample, **kwargs)
        try:
            descriptor.example = orjson.loads(descriptor.dump(sample))
        except InternalServerError as error:
            raise BadInput(f"The sample {reprlib.repr(sample)} cannot be used: {error}") from error
        return descriptor

    async def from_http_request(self, request: Request) -> Any:
        body = await self.body_of(request)
        if self._adapter is None:
            return loads(body, self.advice)
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] != "json_invalid":
                raise self._misfit(error) from error
        # not JSON to pydantic's parser, which is stricter than ours (a byte order mark): ours has the last word
        value = loads(body, self.advice)
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise self._misfit(error) from error

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return self.respond(self.dump(obj), ctx)

    def dump(self, obj: Any) -> bytes:
        """The body for a result, or InternalServerError that says why it has none."""
        if self._adapter is not None:
            try:
                obj = self._adapter.validate_python(obj)
            except ValidationError as error:
                raise InternalServerError(
                    f"The result does not fit {_name_of(self.pydantic_model)}: {failures(error)}."
                ) from error
            obj = _dumped(self._adapter.dump_python, obj, by_alias=True)  # as its schema names them
        return dumps(obj, self.json_encoder)

    def python_type(self) -> type:
        if dict in getattr(self.pydantic_model, "__mro__", ()):  # a TypedDict, which issubclass refuses
            return dict
        return self.pydantic_model if _is_class(self.pydantic_model) else object

    def json_schema(self) -> dict[str, Any]:
        if self._adapter is None:
            return {"type": "array", "items": {}} if isinstance(self.sample, list) else {"type": "object"}
        schemas, definitions = TypeAdapter.json_schemas(
            [("body", "validation", self._adapter)], ref_template=DEFINITIONS + "{model}"
        )
        return {**schemas["body", "validation"], **definitions}

    def _misfit(self, error: ValidationError) -> BadInput:
        end = "" if self.example is None else f"; {self.advice}"
        bad = BadInput(f"The body does not fit {_name_of(self.pydantic_model)}: {failures(error)}{end}.")
        bad.detail = details(error)
        return bad


def _type_adapter(model: Any) -> TypeAdapter[Any]:
    if isinstance(model, BaseModel):
        raise InvalidArgument(
            f"pydantic_model is the class {type(model).__name__}, not an instance of it; "
            "JSON.from_sample takes an instance."
        )
    try:
        if isinstance(model, dict):  # pydantic would take it for a schema of its own kind
            raise TypeError(f"{model!r} is a dict")
        return TypeAdapter(model)
    except (PydanticUserError, TypeError) as error:
        raise InvalidArgument(
            f"pydantic_model={model!r} is no type that pydantic 2 can check; give a pydantic model, a dataclass or "
            "a TypedDict."
        ) from error


def _dumped(dump: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What pydantic makes of a model: JSON values, or Python ones where a field (an array) has no JSON form for it."""
    try:
        return dump(*args, mode="json", **options)
    except PydanticSerializationError:
        return dump(*args, mode="python", **options)


def _name_of(model: Any) -> str:
    return str(model.__name__ if _is_class(model) else model)


def _is_class(model: Any) -> bool:
    return isinstance(model, type) and get_origin(model) is None  # to Python 3.10, list[int] is a type as well


def failures(error: ValidationError) -> str:
    """The failing fields of a pydantic error in one line, the first few in full."""
    found = error.errors(include_url=False, include_context=False)
    parts = []
    for failure in found[:_MAX_FAILURES]:
        where = ".".join(str(step) for step in failure["loc"]) or "the whole"
        came = "" if failure["type"] == "missing" else f", not {reprlib.repr(failure['input'])}"
        parts.append(f"{where}: {failure['msg']}{came}")
    if len(found) > _MAX_FAILURES:
        parts.append(f"and {len(found) - _MAX_FAILURES} more")
    return "; ".join(parts)


def details(error: ValidationError) -> list[dict[str, Any]]:
    """The failing fields of a pydantic error for programs: where, what kind, and a message each."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**failure, "loc": list(failure["loc"])} for failure in found[:_MAX_DETAILS]]


def loads(body: bytes, advice: str) -> Any:
    """Read JSON, NaN and the infinities included, or raise BadInput with a sentence that ends in `advice`."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise BadInput(f"The body is empty, but JSON was expected; {advice}.") from error
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"The body is not UTF-8, as JSON must be: {error.reason} at byte {error.start}; {advice}."
        ) from error
    try:
        value = json.loads(text)
        # the standard library lets it pass, and such a text could not be sent again
        if "\\ud" in text.lower():
            orjson.dumps(value)
        return value
    except orjson.JSONEncodeError as error:
        raise BadInput(f"The body is not JSON: half a surrogate pair in a string; {advice}.") from error
    except json.JSONDecodeError as error:
        raise BadInput(
            f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}; {advice}."
        ) from error
    except RecursionError as error:
        raise BadInput("The body is not JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise BadInput(f"The body is not JSON that can be read: {error}; {advice}.") from error


def dumps(value: Any, encoder: type[json.JSONEncoder] | None = None) -> bytes:
    """Write JSON compactly, or raise InternalServerError that says why the value has no JSON form.

    >>> dumps({"label": "ä", "scores": np.array([0.5, 1.0])})
    b'{"label":"\\xc3\\xa4","scores":[0.5,1.0]}'
    """
    try:
        if encoder is not None:
            return _standard(_dumped(value.model_dump) if isinstance(value, BaseModel) else value, encoder)
        try:
            body = orjson.dumps(value, default=simpler, option=_OPTIONS)
        except orjson.JSONEncodeError:
            # keys that are not text, integers of more than 64 bits, or truly no JSON: `plain` tells
            return _standard(plain(value))
        if b"null" in body:
            _standard(plain(value))  # orjson writes null for NaN, where this raises
        return body
    except RecursionError as error:
        raise InternalServerError(
            "The result cannot be written as JSON: it is nested too deeply or holds itself."
        ) from error
    except UnicodeEncodeError as error:
        raise InternalServerError(
            f"The result cannot be written as JSON: a text is not valid Unicode: {error}."
        ) from error
    except (TypeError, ValueError) as error:
        if "not JSON compliant" in str(error):
            raise InternalServerError(
                "The result cannot be written as JSON: it holds NaN or an infinity, which JSON does not have; "
                "return None in its place."
            ) from error
        raise InternalServerError(f"The result cannot be written as JSON: {error}.") from error


def _standard(value: Any, encoder: type[json.JSONEncoder] | None = None) -> bytes:
    text = json.dumps(value, cls=encoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def simpler(value: Any) -> Any:
    """One step from an object to what JSON has; raises TypeError for a type that is not known."""
    if isinstance(value, BaseModel):
        return _dumped(value.model_dump)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(type(value), "__attrs_attrs__"):
        return {attribute.name: getattr(value, attribute.name) for attribute in type(value).__attrs_attrs__}
    if isinstance(value, np.ndarray):
        return np.datetime_as_string(value).tolist() if value.dtype.kind == "M" else value.tolist()
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, np.generic):
        # item() of a longdouble is a longdouble again
        return float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Set, Sequence, ValuesView)):
        return list(value)
    # data frames and series have the first, tensors and indexes of every library the second
    for method in ("to_dict", "tolist"):
        if callable(getattr(value, method, None)) and not isinstance(value, type):
            return getattr(value, method)()
    raise TypeError(f"the type {type(value).__qualname__!r} has no JSON form: {reprlib.repr(value)}")


def plain(value: Any) -> Any:
    """The value in the types that the standard library writes, keys included."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (int, float, str)) and not isinstance(value, (enum.Enum, np.generic)):
        return value  # a subclass of one of these
    return plain(simpler(value))


def _key(key: Any) -> Any:
    simple = plain(key)
    if simple is None or isinstance(simple, (bool, int, float, str)):
        return simple
    raise TypeError(f"{reprlib.repr(key)} cannot be a key of an object")

"""From the annotations of a method to the descriptors of its input and its output."""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Any, Union

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, RootModel, WithJsonSchema, create_model
from pydantic import Field as PydanticField
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import PydanticJsonSchemaWarning
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, message_of
from adapter.io import from_spec
from adapter.io.base import IODescriptor
from adapter.io.fields import Fields
from adapter.io.file import File
from adapter.io.json import JSON, plain
from adapter.io.numpy import NumpyNdarray
from adapter.io.orient import read_frame
from adapter.io.path import PathFile
from adapter.io.stream import Stream
from adapter.io.text import Text
from adapter.io.upload import UploadedFile
from adapter.tensor import Array, TensorSpec
from adapter.validators import ContentType, DataframeSchema, DType, Shape

_STREAMS = (
    *(collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable),
    *(collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable),
)
UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Hint:
    """An annotation taken apart: the type, and what `Annotated` says beside it of arrays, frames and files."""

    type: Any
    shape: tuple[int, ...] | None = None
    dtype: Any = None
    content_type: str | None = None
    frame: DataframeSchema | None = None
    rest: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any) -> Hint:
        if annotation is inspect.Parameter.empty:
            return cls(Any)
        if typing.get_origin(annotation) is not Annotated:
            item = typing.get_args(annotation)
            if typing.get_origin(annotation) is np.ndarray and len(item) == 2:  # numpy.typing.NDArray[numpy.float32]
                dtype = typing.get_args(item[1])[:1]
                return cls(np.ndarray, dtype=dtype[0] if dtype and isinstance(dtype[0], type) else None)
            return cls(annotation)
        inner, *metadata = typing.get_args(annotation)
        hint = cls.of(inner)
        for mark in metadata:
            if isinstance(mark, Shape):
                hint = replace(hint, shape=mark.dimensions)
            elif isinstance(mark, DType):
                hint = replace(hint, dtype=mark.dtype)
            elif isinstance(mark, TensorSpec):
                hint = replace(hint, shape=mark.shape, dtype=mark.dtype)
            elif isinstance(mark, ContentType):
                hint = replace(hint, content_type=mark.content_type)
            elif isinstance(mark, DataframeSchema):
                hint = replace(hint, frame=mark)
            else:
                hint = replace(hint, rest=(*hint.rest, mark))
        return hint

    @property
    def is_file(self) -> bool:
        return self.is_path or self.is_image

    @property
    def is_path(self) -> bool:
        return isinstance(self.type, type) and issubclass(self.type, PurePath)

    @property
    def is_image(self) -> bool:
        return _is(self.type, "PIL.Image", "Image")

    @property
    def stream_of(self) -> Any:
        """What a stream is of; None where this is none."""
        origin = typing.get_origin(self.type) or self.type
        if origin not in _STREAMS:
            return None
        return (typing.get_args(self.type) or (Any,))[0]

    def data(self) -> _Data | None:
        """The descriptor of an array, a tensor, a frame or a series; None for any other type."""
        if self.type is np.ndarray:
            return FittedArray(self.dtype, self.shape)
        if _is(self.type, "torch", "Tensor"):
            return FittedTensor(self.dtype, self.shape)
        if _is(self.type, "pandas", "DataFrame"):
            frame = self.frame or DataframeSchema()
            columns = {} if frame.columns is None else {"columns": list(frame.columns)}
            return from_spec({"id": "adapter.io.PandasDataFrame", "args": {"orient": frame.orient, **columns}})
        if _is(self.type, "pandas", "Series"):
            return from_spec({"id": "adapter.io.PandasSeries", "args": {}})
        return None

    def file(self) -> IODescriptor[Any]:
        """The descriptor of a file or an image."""
        if self.is_path:
            return PathFile(mime_type=self.content_type)
        args: dict[str, Any] = {"pilmode": None, "mime_type": self.content_type or "image/png"}
        if self.content_type is not None:
            args["allowed_mime_types"] = [self.content_type]
        return from_spec({"id": "adapter.io.Image", "args": args})


_Data = IODescriptor[Any]


def _is(found: Any, module: str, name: str) -> bool:
    """Whether a type is the one of a library that need not be installed."""
    library = sys.modules.get(module)
    return library is not None and found is getattr(library, name, None)


# ---- arrays ---------------------------------------------------------------------------------------------------------


class FittedArray(NumpyNdarray):
    """An array of a data type and a shape that are demanded; one of as many items is reshaped."""

    def __init__(self, dtype: Any = None, shape: Sequence[int] | None = None) -> None:
        super().__init__(dtype, dtype is not None, shape, shape is not None)

    @classmethod
    def descriptor_id(cls) -> str:
        return NumpyNdarray.descriptor_id()

    def to_spec(self) -> dict[str, Any]:
        # the server is who reshapes and casts: a client sends what it has
        return {"id": self.descriptor_id(), "args": {}}

    def _fit(self, array: Array, error: type[AdapterError], subject: str, end: str) -> Array:
        if self.shape is not None and array.shape != self.shape:
            with contextlib.suppress(ValueError):  # what follows says so
                array = array.reshape(self.shape)
        return super()._fit(array, error, subject, end)


class FittedTensor(FittedArray):
    """The same as a tensor of PyTorch."""

    def of_json(self, value: Any) -> Any:
        return self._tensor(super().of_json(value))

    async def from_http_request(self, request: Request) -> Any:
        return self._tensor(await super().from_http_request(request))

    def python_type(self) -> type:
        return object

    def _tensor(self, array: Any) -> Any:
        return sys.modules["torch"].from_numpy(np.array(array)) if isinstance(array, np.ndarray) else array


# ---- what pydantic checks -------------------------------------------------------------------------------------------


def checked_type(annotation: Any) -> Any:
    """The annotation with arrays, frames, images and files as pydantic can check, describe and write them."""
    hint = Hint.of(annotation)
    if hint.is_file:
        return _with_rest(Annotated[Any, BeforeValidator(_uploaded), WithJsonSchema(_BINARY)], hint.rest)
    if (data := hint.data()) is not None:
        schema = data.json_schema()
        return _with_rest(
            Annotated[Any, BeforeValidator(_reader(data)), PlainSerializer(_writer(data)), WithJsonSchema(schema)],
            hint.rest,
        )
    if typing.get_origin(annotation) is Annotated:
        return _with_rest(checked_type(hint.type), hint.rest)
    arguments = typing.get_args(annotation)
    if not arguments or typing.get_origin(annotation) is typing.Literal:
        return annotation
    inner = tuple(
        list(map(checked_type, a)) if isinstance(a, list) else a if a is ... else checked_type(a) for a in arguments
    )
    if all(a is b for a, b in zip(inner, arguments, strict=True)):
        return annotation
    origin = typing.get_origin(annotation)
    return Union[inner] if origin in UNIONS else origin[inner]  # noqa: UP007  # there are several


def _with_rest(checked: Any, rest: tuple[Any, ...]) -> Any:
    for mark in rest:
        checked = Annotated[checked, mark]
    return checked


_BINARY = {"type": "string", "format": "binary"}


def _uploaded(value: Any) -> Any:
    if value is None or isinstance(value, (UploadedFile, PurePath)) or type(value).__module__.startswith("PIL."):
        return value
    raise _misfit("it is a file: send the arguments as the parts of a form (multipart/form-data)")


def _misfit(reason: str) -> PydanticCustomError:
    return PydanticCustomError("value_error", "{reason}", {"reason": reason})


def _reader(data: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            if isinstance(data, NumpyNdarray):
                return data.of_json(value)
            if isinstance(value, data.python_type()):
                return value
            if data.python_type().__name__ == "DataFrame":
                return data._fit(read_frame(orjson.dumps(value), data.orient, data.advice), BadInput, "It", "")
            return data._fit(_series(value), BadInput, "It", "")
        except AdapterError as error:
            raise _misfit(message_of(error).removesuffix(".")) from error

    return read


def _series(value: Any) -> Any:
    if not isinstance(value, list):
        raise BadInput("it is a list of values")
    return sys.modules["pandas"].Series(value)


def _writer(data: Any) -> Callable[[Any], Any]:
    def write(value: Any) -> Any:
        if hasattr(value, "columns") and data.python_type().__name__ == "DataFrame":
            return value.to_dict("records" if data.orient == "records" else "list")
        return plain(value)

    return write


# ---- input ----------------------------------------------------------------------------------------------------------


def arguments(
    parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any], *, of: str, name: str, taken: str
) -> IODescriptor[Any]:
    """The descriptor of a method's parameters: fields by name, or the value itself where there is `/` behind it.

    `taken` is the name of the parameter that the object itself is given to.
    """
    positional = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if positional:
        if len(parameters) > 1:
            raise InvalidArgument(
                f"{of} takes {positional[0].name!r} by position only, so that the body of a request is its value: it "
                "cannot have other parameters beside the Context."
            )
        return root(hints.get(positional[0].name, Any), of=of)
    fields, files, types_, more = [], {}, {}, False
    for index, parameter in enumerate(parameters):
        annotation = hints.get(parameter.name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            more = True
            continue
        default = parameter.default
        if parameter.kind is parameter.VAR_POSITIONAL:
            annotation, default = list[annotation], []  # type: ignore[valid-type]  # it is a type when this runs
        hint, many = _file_hint(annotation)
        required = default is parameter.empty or (isinstance(default, FieldInfo) and default.is_required())
        record: dict[str, Any] = {"name": parameter.name, "required": required}
        if hint is not None:
            record["file"] = True
            files[parameter.name] = hint.file()
            if many:
                record["many"] = True
        fields.append(record)
        checked = _with_rest(checked_type(annotation), (PydanticField(alias=parameter.name),))
        types_[f"f{index}"] = (checked, ... if default is parameter.empty else default)
    config = ConfigDict(
        extra="allow" if more else "ignore", arbitrary_types_allowed=True, protected_namespaces=(), title=name
    )
    model = _made(lambda: create_model(name, __config__=config, **types_), of)  # type: ignore[call-overload]  # types
    descriptor = Fields(fields, more=more, of=of, model=model, files=files, taken=taken)
    _described(descriptor, of)
    return descriptor


def has_path(annotation: Any) -> bool:
    """Whether a parameter or a result is a file by its path, or may be one, or is a list of them."""
    hint, _ = _file_hint(annotation)
    return hint is not None and hint.is_path


def _file_hint(annotation: Any) -> tuple[Hint | None, bool]:
    """The file that an annotation means, be it optional or a list; and whether it is a list."""
    hint = Hint.of(annotation)
    if hint.is_file:
        return hint, False
    origin, inner = typing.get_origin(hint.type), typing.get_args(hint.type)
    if origin in UNIONS:
        for option in inner:
            found, many = _file_hint(option)
            if found is not None:
                return found, many
    elif origin in (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable) and inner:
        found, _ = _file_hint(inner[0])
        return found, found is not None
    return None, False


def root(annotation: Any, *, of: str) -> IODescriptor[Any]:
    """The descriptor of a body that is one value."""
    hint = Hint.of(annotation)
    if hint.is_file:
        return hint.file()
    if (data := hint.data()) is not None:
        return data
    if hint.type is str and not hint.rest:
        return Text()
    if hint.type in (bytes, bytearray):
        return Body(mime_type=hint.content_type)
    return _json(annotation, of)


class Body(File):
    """Bytes as they come."""

    async def from_http_request(self, request: Request) -> Any:
        file = await super().from_http_request(request)
        return file.read()

    @classmethod
    def descriptor_id(cls) -> str:
        return File.descriptor_id()


def arguments_of_model(model: Any, *, of: str, taken: str) -> IODescriptor[Any]:
    """The descriptor of arguments that a pydantic model describes: its fields are the names."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise InvalidArgument(f"The input_spec of {of} is a pydantic model, not {model!r}.")
    if issubclass(model, RootModel):
        return JSON(pydantic_model=model)
    fields = [{"name": f.alias or name, "required": f.is_required()} for name, f in model.model_fields.items()]
    return ModelFields(fields, more=model.model_config.get("extra") == "allow", of=of, model=model, taken=taken)


class ModelFields(Fields):
    """Fields of a person's own model: the function takes them by the names that they have there."""

    def _arguments(self, checked: BaseModel) -> dict[str, Any]:
        found = {name: getattr(checked, name) for name in type(checked).model_fields}
        return {**found, **self._more_of(checked)}

    @classmethod
    def descriptor_id(cls) -> str:
        return Fields.descriptor_id()


# ---- output ---------------------------------------------------------------------------------------------------------


def result(annotation: Any, *, of: str) -> IODescriptor[Any]:
    """The descriptor of what a method returns."""
    hint = Hint.of(annotation)
    if hint.stream_of is not None:
        return Stream(hint.content_type or "text/event-stream", values=_is_value(hint.stream_of))
    if hint.is_file:
        return hint.file()
    if (data := hint.data()) is not None:
        return data
    if hint.type is str:
        return Text() if hint.content_type is None else TypedText(hint.content_type)
    if hint.type in (bytes, bytearray, memoryview):
        return File(mime_type=hint.content_type)
    if hint.type is Any:
        return JSON()
    if typing.get_origin(hint.type) in UNIONS and any(Hint.of(a).is_path for a in typing.get_args(hint.type)):
        raise InvalidArgument(f"{of} returns a file or something else: let it return one kind of answer.")
    return _json(annotation, of)


def _is_value(item: Any) -> bool:
    """Whether the items of a stream are written as JSON: what is no text and no bytes."""
    hint = Hint.of(item)
    return (
        hint.type not in (Any, str, bytes)
        and getattr(hint.type, "__name__", "") != "SSE"
        and typing.get_origin(hint.type) not in UNIONS
    )


class Value(JSON):
    """JSON of a type; numbers and arrays of numpy count as those of Python where the type wants them."""

    def dump(self, obj: Any) -> bytes:
        try:
            return super().dump(obj)
        except InternalServerError:
            try:
                simple = plain(obj)
            except (TypeError, ValueError, RecursionError):
                simple = obj
            if simple is obj:
                raise
            return super().dump(simple)

    @classmethod
    def descriptor_id(cls) -> str:
        return JSON.descriptor_id()


def _json(annotation: Any, of: str) -> JSON:
    checked = checked_type(annotation)
    descriptor: JSON = _made(lambda: Value(pydantic_model=type(None) if checked is None else checked), of)
    _described(descriptor, of)
    return descriptor


class TypedText(Text):
    """Text of a content type of its own."""

    def __init__(self, content_type: str) -> None:
        super().__init__()
        self.mime_type = content_type

    def to_spec(self) -> dict[str, Any]:
        return Text().to_spec()


def _described(descriptor: IODescriptor[Any], of: str) -> None:
    """InvalidArgument for a type that has no description, since nothing in a request could be checked against it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # the document of the service says it again
        try:
            descriptor.json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise InvalidArgument(
                f"An annotation of {of} is a type that no JSON can be checked against: {error.message}. Write a "
                "pydantic model, a dataclass or a plain type, or leave it out."
            ) from error


def _made(make: Callable[[], Any], of: str) -> Any:
    try:
        return make()
    except (InvalidArgument, PydanticUserError, TypeError, NameError) as error:
        reason = " ".join(message_of(error).split())
        raise InvalidArgument(f"An annotation of {of} cannot be used: {reason}") from error

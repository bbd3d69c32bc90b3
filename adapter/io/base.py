"""What every IO descriptor is: the way of a value in and out over HTTP, and its description for OpenAPI and clients."""

from __future__ import annotations

import abc
import functools
import inspect
import json
from collections.abc import AsyncIterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from adapter.context import Context
from adapter.exceptions import InvalidArgument, UnsupportedMediaType

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

DEFINITIONS = "#/components/schemas/"
_MAX_SHOWN = 80


class IODescriptor(abc.ABC, Generic[T]):
    """Describe what an API reads or sends; `T` is the Python type that its function sees.

    To add a descriptor, subclass this and implement at least `from_http_request`, `to_http_response`, `python_type`
    and `json_schema`; override `from_sample` where a sample tells more than an example for the documentation.

    - Set `mime_type` to what it sends, and `accepts` to the content types it reads: `fnmatch` patterns, the one that
      an error recommends first. `body_of(request)` checks them and reads the body.
    - A body that cannot be read raises BadInput; a result that cannot be sent raises InternalServerError, before a
      byte is sent. Each with one sentence: what was expected, what came, and the way out (`self.advice` is its end).
    - End `to_http_response` with `self.respond(body, ctx)` or `self.stream(chunks, ctx)`: they put what the API
      function set on `ctx.response` onto the response.
    - Keep each constructor argument in an attribute of the same name: `to_spec` reads them there.
    - Do at construction what need not be done per request.

    One of adapter's own is a file in `adapter/io/` and a line in the table of `adapter/io/__init__.py`.
    """

    mime_type: str
    accepts: tuple[str, ...] = ("*",)
    sample: T | None = None
    """The value that the descriptor was made from, None without `from_sample`."""
    example: Any = None
    """The sample as JSON values, for OpenAPI and error messages."""

    placeholder: str = ""
    """What an error shows as an example of a body where there is no sample."""

    @abc.abstractmethod
    async def from_http_request(self, request: Request) -> T:
        """Read the value from the body of a request."""

    @abc.abstractmethod
    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        """Make the response from what the API function returned; `ctx` is given where that function takes it."""

    @abc.abstractmethod
    def python_type(self) -> type:
        """The type that `from_http_request` returns, to check annotations against; `object` where any may come."""

    @abc.abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the body; the models it refers to (`#/components/schemas/Name`) go under `$defs`."""

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor of values like `sample`; `kwargs` are arguments of the constructor."""
        descriptor = cls(**kwargs)
        descriptor.sample = sample
        return descriptor

    def schema(self) -> dict[str, Any]:
        """The schema of the body for OpenAPI, with the sample as its example."""
        schema = {key: value for key, value in self.json_schema().items() if key != "$defs"}
        if self.example is None:
            return schema
        # OpenAPI 3.0 ignores what stands beside a $ref
        return {**({"allOf": [schema]} if "$ref" in schema else schema), "example": self.example}

    def components(self) -> dict[str, Any]:
        """The schemas that `schema` refers to, for `components.schemas` of OpenAPI."""
        return dict(self.json_schema().get("$defs", {}))

    @classmethod
    def descriptor_id(cls) -> str:
        """The name of the class in a spec: `adapter.io.NumpyNdarray`."""
        package = "adapter.io"
        return f"{package if cls.__module__.startswith(package + '.') else cls.__module__}.{cls.__qualname__}"

    def to_spec(self) -> dict[str, Any]:
        """Describe the descriptor in JSON values, for clients: `{"id": "adapter.io.NumpyNdarray", "args": {…}}`.

        Arguments that have no JSON form (models, encoders) are left out: a client sends and gets plain values there.
        """
        args = {}
        for parameter in inspect.signature(type(self)).parameters.values():
            value = getattr(self, parameter.name, parameter.default)
            if value is not parameter.default and _has_json_form(value):
                args[parameter.name] = _json_form(value)
        return {"id": self.descriptor_id(), "args": args}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Make a descriptor of this class from what `to_spec` returned; `adapter.io.from_spec` finds the class."""
        if spec.get("id") != cls.descriptor_id():
            raise InvalidArgument(f"A spec of {cls.descriptor_id()!r} was expected, but {spec.get('id')!r} came.")
        try:
            return cls(**spec.get("args", {}))
        except TypeError as error:
            raise InvalidArgument(f"The args {spec['args']!r} are not those of {cls.__name__}: {error}.") from error

    async def body_of(self, request: Request) -> bytes:
        """Read the body; a content type that `accepts` does not match raises UnsupportedMediaType, none is fine."""
        for name, value in request.scope["headers"]:  # building `request.headers` would cost more than all of this
            if name == b"content-type":
                if not _accepted(value, self.accepts):
                    raise UnsupportedMediaType(
                        f"The body came as {_media_type(value)!r}, which this API does not read: send it with the "
                        f"header 'content-type: {self.accepts[0]}'."
                    )
                break
        return await request.body()

    def respond(self, body: bytes, ctx: Context | None) -> Response:
        """A response with this body, and with what the API function set on `ctx.response`."""
        response = Response(body, media_type=self.mime_type)
        return response if ctx is None else ctx.apply(response)

    def stream(self, chunks: AsyncIterable[str | bytes], ctx: Context | None) -> Response:
        """A response sent chunk by chunk; take the first chunk before, so that an error in it is still a 500."""
        response = StreamingResponse(chunks, media_type=self.mime_type)
        return response if ctx is None else ctx.apply(response)

    @functools.cached_property
    def advice(self) -> str:
        """The end of a sentence about a bad body: what to send instead."""
        example = self.placeholder if self.example is None else json.dumps(self.example, ensure_ascii=False)
        return f"send for example {shortened(example)}" if example else f"send {self.accepts[0]}"

    def __repr__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in self.to_spec()["args"].items())
        return f"{type(self).__name__}({args})"


def shortened(text: str) -> str:
    """The beginning of a text that may be long, for a sentence."""
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


@functools.lru_cache(maxsize=256)
def _accepted(header: bytes, accepts: tuple[str, ...]) -> bool:
    media_type = _media_type(header)
    return not media_type or any(fnmatchcase(media_type, pattern) for pattern in accepts)


def _media_type(header: bytes) -> str:
    return header.decode("latin-1").partition(";")[0].strip().lower()


def _has_json_form(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_has_json_form(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, np.dtype))


def _json_form(value: Any) -> Any:
    if isinstance(value, np.dtype):
        return value.str if value.kind in "USV" else value.name  # "str128" is a name that numpy does not read again
    return [_json_form(item) for item in value] if isinstance(value, (list, tuple)) else value

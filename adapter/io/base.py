"""What every IO descriptor is: the way of a value in and out over HTTP, and its description for OpenAPI and clients."""

from __future__ import annotations

import abc
import asyncio
import codecs
import functools
import inspect
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextvars import ContextVar
from email.message import Message
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import anyio
import numpy as np
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from adapter.context import Context
from adapter.exceptions import BadInput, InvalidArgument, UnsupportedMediaType

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

DEFINITIONS = "#/components/schemas/"
accept: ContextVar[str] = ContextVar("accept", default="")
"""The Accept header of the request that is answered, where it names something other than `*/*`."""

_MAX_SHOWN = 80
_CLOSE_S = 5.0
_LONGEST_TYPE = 1000  # reading parameters takes quadratic time, and they are cached
# codecs of the standard library that are no charsets of the web; the first two take quadratic time
_NO_CHARSETS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"}


class MediaType(NamedTuple):
    """A content type: `name` in lower case (`text/csv`), "" where there is none, and its parameters."""

    name: str
    parameters: Mapping[str, str]


class IODescriptor(abc.ABC, Generic[T]):
    """Describe what an API reads or sends; `T` is the Python type that its function sees.

    To add a descriptor, subclass this and implement at least `from_http_request`, `to_http_response`, `python_type`
    and `json_schema`; override `from_sample` where a sample tells more than an example for the documentation.

    - Set `mime_type` to what it sends (and `sends`, where that depends on the request), and `accepts` to the content
      types it reads: `fnmatch` patterns, the one that an error recommends first. `body_of(request)` checks them and
      reads the body.
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

    sends: tuple[str, ...] = ()
    """The content types it can answer with, by the request's Accept header; `mime_type` alone where it is empty."""

    by_name: bool = False
    """Whether the value is a dict of arguments, which an API function takes by keyword."""

    parts: Mapping[str, IODescriptor[Any]] = MappingProxyType({})
    """The descriptors of named parts (`Multipart`)."""

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
        self.check_type(request)
        if hasattr(request, "_body"):  # somebody has read it
            return await request.body()
        # request.body() makes two generators for what is nearly always one message
        chunks = []
        while True:
            message = await request.receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        # where request.body() keeps it: an API function may ask for it by its Context
        body: bytes = b"".join(chunks)
        request._body = body
        return body

    def check_type(self, request: Request) -> None:
        """Raise UnsupportedMediaType for a content type that `accepts` does not match; none is fine."""
        for name, value in request.scope["headers"]:  # building `request.headers` would cost more than all of this
            if name == b"content-type":
                if not self.reads(value):
                    raise UnsupportedMediaType(
                        f"The body came as {media_type(value).name!r}, which this API does not read: send it with "
                        f"the header 'content-type: {self.accepts[0]}'."
                    )
                return

    def reads(self, header: bytes) -> bool:
        """Whether `accepts` matches this content type; an empty one is fine."""
        return _accepted(header[:_LONGEST_TYPE], self.accepts)

    def respond(
        self,
        body: bytes,
        ctx: Context | None,
        *,
        mime_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """A response with this body, and with what the API function set on `ctx.response`."""
        response = Response(body, media_type=mime_type or self.mime_type, headers=headers)
        return response if ctx is None else ctx.apply(response)

    def stream(
        self,
        chunks: AsyncIterable[str | bytes],
        ctx: Context | None,
        *,
        mime_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> Response:
        """A response sent chunk by chunk; take the first chunk before, so that an error in it is still a 500.

        A generator is closed, and `close` called, when the client has everything or is gone.
        """
        response = _Stream(chunks, close, media_type=mime_type or self.mime_type, headers=headers)
        sent = response if ctx is None else ctx.apply(response)
        if sent is not response:  # its status allows no body
            sent.background = BackgroundTask(close_stream, response)
        return sent

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


def media_type(header: bytes) -> MediaType:
    """Read a content-type header; what is very long is cut off."""
    return _parsed(header[:_LONGEST_TYPE])


def media_type_of(request: Request) -> MediaType:
    """The content type of a request."""
    return media_type(next((value for name, value in request.scope["headers"] if name == b"content-type"), b""))


def text_of(body: bytes, request: Request) -> str:
    """Decode a body in the charset that its content type names, UTF-8 where it names none, or raise BadInput."""
    charset = media_type_of(request).parameters.get("charset", "utf-8")
    try:
        if codecs.lookup(charset).name.replace("-", "_") in _NO_CHARSETS:
            raise LookupError
        return body.decode(charset)
    except (LookupError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise BadInput(
                f"The body is not text in {charset.upper()}: {error.reason} at byte {error.start} "
                f"({body[error.start : error.start + 1]!r}); encode it in UTF-8."
            ) from error
        raise BadInput(f"The charset {shortened(charset)!r} of the body is not known; encode it in UTF-8.") from error


def one_at_a_time() -> Callable[..., Awaitable[Any]]:
    """Make `call(function, *args)`, which runs functions on threads, each after the one before has ended.

    A call that is cancelled goes on in its thread, and what it works on must not be closed under it.
    """
    lock = threading.Lock()

    def locked(function: Callable[..., Any], *args: Any) -> Any:
        with lock:
            return function(*args)

    async def call(function: Callable[..., Any], *args: Any) -> Any:
        return await run_in_threadpool(locked, function, *args)

    return call


@functools.lru_cache(maxsize=256)
def _accepted(header: bytes, accepts: tuple[str, ...]) -> bool:
    name = _parsed(header).name
    return not name or any(fnmatchcase(name, pattern) for pattern in accepts)


@functools.lru_cache(maxsize=256)
def _parsed(header: bytes) -> MediaType:
    text = header.decode("latin-1")
    name, semicolon, _ = text.partition(";")
    parameters: dict[str, str] = {}
    if semicolon:
        message = Message()
        message["content-type"] = "".join(character for character in text if character.isprintable())
        for key, value in message.get_params(failobj=[])[1:]:
            # RFC 2231 gives a tuple of charset, language and value
            parameters.setdefault(key.lower(), value if isinstance(value, str) else value[2])
    return MediaType(name.strip().lower(), MappingProxyType(parameters))


class _Stream(StreamingResponse):
    """A streaming response that closes what it streams, which starlette leaves to the garbage collector."""

    def __init__(
        self, chunks: AsyncIterable[str | bytes], close: Callable[[], Awaitable[None]] | None, **options: Any
    ) -> None:
        super().__init__(chunks, **options)
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # tasks, where starlette has a task group: that one would cancel the generator's own cleaning up as well
        sending = asyncio.create_task(self.stream_response(send))
        leaving = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            with anyio.CancelScope(shield=True):
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.wait((sending, leaving))
                await close_stream(self)
        if not sending.cancelled():
            sending.result()
        if self.background is not None:
            await self.background()


async def close_stream(response: Response) -> None:
    """Close what a response streams; one that streams nothing is left as it is."""
    chunks = getattr(response, "body_iterator", None)
    with anyio.move_on_after(_CLOSE_S, shield=True):  # the request may be cancelled, as its client is gone
        try:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        finally:
            if isinstance(response, _Stream) and response.close is not None:
                await response.close()


def _has_json_form(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_has_json_form(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, np.dtype))


def _json_form(value: Any) -> Any:
    if isinstance(value, np.dtype):
        return value.str if value.kind in "USV" else value.name  # "str128" is a name that numpy does not read again
    return [_json_form(item) for item in value] if isinstance(value, (list, tuple)) else value

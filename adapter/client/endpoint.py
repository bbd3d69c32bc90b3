"""One API as a client sees it: where it is, how a value becomes the body of a request, and a response a value.

A descriptor knows one direction: it reads requests and writes responses. A client goes the other way with the same two
methods: it sends what a response would hold, and reads a response as if it were a request.
"""

from __future__ import annotations

import json
import mimetypes
import re
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message

from adapter.exceptions import AdapterError, InvalidArgument, RemoteException, ServiceUnavailable
from adapter.io import JSON, SSE, Fields, File, Image, IODescriptor, Multipart, Stream, Text, from_spec
from adapter.io.base import accept

NOTHING: Any = object()
_NPY = "application/x-npy"
_EVENTS = "text/event-stream"
_WITHOUT_BODY = (204, 205)
_OF_THE_TRANSPORT = (b"content-encoding", b"content-length", b"transfer-encoding")  # httpx has undone them
_TYPES = {".npy": _NPY, ".parquet": "application/vnd.apache.parquet"}  # that Python does not know
_OF_RESULTS = re.compile("The API function returned|The result is")  # what a descriptor writes for a service
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")


@dataclass(frozen=True)
class Endpoint:
    """One API; `accepts` and `answers` are the content types that the server names for it.

    `problem` says why it cannot be called, "" where it can.
    """

    name: str
    route: str
    input: IODescriptor[Any]
    output: IODescriptor[Any]
    accepts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    problem: str = ""
    task: bool = False

    # ---- the way out ----------------------------------------------------------------------------------------------

    def path(self, given: Mapping[str, Any]) -> str:
        """The route with its parameters filled in; InvalidArgument where one is missing."""

        def fill(match: re.Match[str]) -> str:
            name, kind = match.groups()
            if name not in given:
                raise InvalidArgument(
                    f"The API {self.name!r} is at {self.route}: give path_params={{{name!r}: …}} as well."
                )
            return urllib.parse.quote(str(given[name]), safe="/" if kind == "path" else "")

        return _PARAMETER.sub(fill, self.route)

    def headers(self, content_type: str | None) -> dict[str, str]:
        """The headers that a request has of its own; arrays come back as npy, which keeps their data type."""
        headers = {"accept": f"{_NPY}, */*;q=0.9"} if _has_npy(self.output, self.answers) else {}
        return headers if content_type is None else {**headers, "content-type": content_type}

    def argument(self, values: Sequence[Any], parts: Mapping[str, Any]) -> Any:
        """The one value to send; InvalidArgument where parts are missing, or are not the API's."""
        if isinstance(self.input, Fields):
            return self._arguments(self.input, values, parts)
        if len(values) > 1:
            raise InvalidArgument(f"The API {self.name!r} takes one value, but {len(values)} came.")
        value = values[0] if values else NOTHING
        if not self.input.parts:
            if parts:
                raise InvalidArgument(f"The API {self.name!r} takes one value, not the keywords {', '.join(parts)}.")
            if value is NOTHING:
                raise InvalidArgument(f"The API {self.name!r} takes a value: write client.{self.name}(value).")
            return value
        expected = ", ".join(self.input.parts)
        if value is NOTHING:
            value = parts
        elif parts or not isinstance(value, Mapping):
            raise InvalidArgument(f"The API {self.name!r} takes its parts as keywords, or as one dict: {expected}.")
        if set(value) != set(self.input.parts):
            came = ", ".join(map(str, value)) or "none"
            raise InvalidArgument(f"The API {self.name!r} takes the parts {expected}, but {came} came.")
        return dict(value)

    def _arguments(self, fields: Fields, values: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a method by name; those without a name are in the order of its parameters."""
        known = ", ".join(fields.names) or "none"
        if len(values) > len(fields.names):
            raise InvalidArgument(f"The API {self.name!r} takes the arguments {known}, but {len(values)} values came.")
        found = dict(zip(fields.names, values, strict=False))
        for name, value in named.items():
            if name in found:
                raise InvalidArgument(f"The API {self.name!r} got the argument {name!r} twice.")
            if name not in fields.names and not fields.more:
                raise InvalidArgument(f"The API {self.name!r} has no argument {name!r}; it takes {known}.")
            found[name] = value
        if missing := [field["name"] for field in fields.fields if field["required"] and field["name"] not in found]:
            raise InvalidArgument(f"The API {self.name!r} needs the argument {missing[0]!r}; it takes {known}.")
        return found

    async def body(self, value: Any) -> tuple[bytes, str | None]:
        """The body of a request for a value, and its content type; InvalidArgument where the value has none."""
        arrays = [v for v in (value.values() if self.input.parts else (value,)) if isinstance(v, np.ndarray)]
        if isinstance(self.input, Fields):
            arrays = []  # they are in JSON
        as_npy = _has_npy(self.input, self.accepts) and all(array.dtype != object for array in arrays)
        # set even where there is none: the caller may be an API function, whose own request has set it
        token = accept.set(_NPY if arrays and as_npy else "")
        try:
            sender, value = await _sender(self.input, value)
            response = await sender.to_http_response(value)
        except AdapterError as error:
            reason = _OF_RESULTS.sub("the value is", error.message)
            raise InvalidArgument(f"{self.name!r} cannot be called with this value: {reason}") from error
        finally:
            accept.reset(token)
        if isinstance(response, StreamingResponse):  # joined, so that it can be sent again
            chunks = [c if isinstance(c, bytes) else str(c).encode() async for c in response.body_iterator]
            return b"".join(chunks), response.headers.get("content-type")
        return bytes(response.body), response.headers.get("content-type")

    # ---- the way back ---------------------------------------------------------------------------------------------

    def streams(self, wanted: bool) -> bool:
        """Whether the answer is read piece by piece; InvalidArgument where it cannot be."""
        if wanted and not isinstance(self.output, Text):
            raise InvalidArgument(f"The API {self.name!r} answers with {self.output!r}: only Text is streamed.")
        return (
            wanted
            or isinstance(self.output, Stream)
            or (isinstance(self.output, Text) and self.output.mime_type == _EVENTS)
        )

    async def value(self, response: httpx.Response) -> Any:
        """The value that a successful response holds; None where its status says that it holds nothing."""
        if response.status_code in _WITHOUT_BODY:
            return None

        async def receive() -> Message:
            return {"type": "http.request", "body": response.content, "more_body": False}

        headers = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in _OF_THE_TRANSPORT]
        scope = {"type": "http", "method": "POST", "path": self.route, "query_string": b"", "headers": headers}
        try:
            return await self.output.from_http_request(Request(scope, receive))
        except AdapterError as error:
            raise RemoteException(f"The answer of {self.name!r} cannot be read: {error.message}") from error

    async def pieces(self, response: httpx.Response) -> AsyncIterator[Any]:
        """Events, or pieces of text, as they arrive; the items of a stream of values as these."""
        stream = self.output if isinstance(self.output, Stream) else None
        try:
            if stream is not None and stream.values:
                async for event in SSE.from_iterator(response.aiter_text()):
                    yield json.loads(event.data)
                return
            if stream is not None and not _is_text(response):
                async for chunk in response.aiter_bytes():
                    yield chunk
                return
            text = response.aiter_text()
            as_events = stream is None and self.output.mime_type == _EVENTS
            async for piece in SSE.from_iterator(text) if as_events else text:
                if piece:
                    yield piece
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise ServiceUnavailable(f"The stream of {self.name!r} broke off: {why}.") from error
        finally:
            await response.aclose()


def _is_text(response: httpx.Response) -> bool:
    name = str(response.headers.get("content-type", "")).partition(";")[0]
    return name.startswith("text/") or name.endswith("json")


def _has_npy(descriptor: IODescriptor[Any], types: Sequence[str]) -> bool:
    """Whether arrays go as npy, beside the content types that the server names; it names none for a part of a form."""
    return _NPY in types or any(_NPY in part.accepts for part in descriptor.parts.values())


async def _sender(descriptor: IODescriptor[Any], value: Any) -> tuple[IODescriptor[Any], Any]:
    """What writes a value for this descriptor to read, and the value as it takes it."""
    if descriptor.parts:
        senders = {name: await _sender(part, value[name]) for name, part in descriptor.parts.items()}
        return (
            Multipart(**{name: sender for name, (sender, _) in senders.items()}),
            {name: part for name, (_, part) in senders.items()},
        )
    if isinstance(value, Path):
        known = _TYPES.get(value.suffix) or mimetypes.guess_type(value.name)[0]
        return File(mime_type=known and known.lower()), await anyio.Path(value).read_bytes()
    if isinstance(value, (bytes, bytearray)) and not isinstance(descriptor, (File, JSON)):
        return File(), value
    if isinstance(descriptor, Image) and descriptor.reads(b"image/png"):
        return Image(descriptor.pilmode, "image/png"), value  # JPEG, which services answer with, would lose some of it
    return descriptor, value


def endpoints_of(
    document: Mapping[str, Any], descriptors: Sequence[type[IODescriptor[Any]]] = ()
) -> dict[str, Endpoint]:
    """Read the APIs, by name, out of an OpenAPI document that adapter wrote; InvalidArgument for any other.

    `descriptors` are classes of one's own that the service uses.
    """
    own = {cls.descriptor_id(): cls for cls in descriptors}
    found: dict[str, Endpoint] = {}
    try:
        for route, operations in document["paths"].items():
            operation = operations.get("post", {})
            if (name := operation.get("x-adapter-name")) is None:
                continue
            sent, answered = operation["requestBody"], operation["responses"]["200"]
            input_: IODescriptor[Any] = JSON()
            output, problem = input_, ""
            try:
                input_, output = (_descriptor(side["x-adapter-io-descriptor"], own) for side in (sent, answered))
            except AdapterError as error:
                problem = (
                    f"The API {name!r} has a descriptor that is not known here ({error}): give its class to "
                    "from_url(…, descriptors=[…])."
                )
            found[name] = Endpoint(
                name,
                route,
                input_,
                output,
                tuple(sent["content"]),
                tuple(answered["content"]),
                problem,
                bool(operation.get("x-adapter-task")),
            )
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidArgument(f"This is not the OpenAPI document of an adapter service: {error!r}.") from error
    return found


def _descriptor(spec: Mapping[str, Any], own: Mapping[str, type[IODescriptor[Any]]]) -> IODescriptor[Any]:
    cls = own.get(spec["id"])
    return from_spec(spec) if cls is None else cls.from_spec(spec)

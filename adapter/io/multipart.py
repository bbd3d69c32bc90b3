"""Multipart: several values in one form, each under a name and with a descriptor of its own."""

from __future__ import annotations

import contextlib
import reprlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, message_of
from adapter.io import from_spec
from adapter.io.base import IODescriptor, close_stream
from adapter.io.form import FORM, Head, PartRequest, named, parts
from adapter.io.upload import IN_MEMORY_BYTES

if TYPE_CHECKING:
    from typing_extensions import Self


class Multipart(IODescriptor[dict[str, Any]]):
    """Read and send several values as multipart/form-data: `Multipart(image=Image(), rows=NumpyNdarray())`.

    Each part is read and sent by the descriptor of its name, with the part's own headers; a part without a content
    type is fine. A form has each of the parts once and no others. As the input of an API, the function takes the
    values by keyword: its parameters have the names of the parts, in any order, and `ctx` may stand beside them. A
    result is a dict with all the names. Source: seeds 001 and 002.
    """

    by_name = True
    mime_type = FORM
    accepts = (FORM,)

    def __init__(self, /, **descriptors: IODescriptor[Any]) -> None:
        if not descriptors:
            raise InvalidArgument("A Multipart has at least one part: write for example Multipart(rows=JSON()).")
        for name, descriptor in descriptors.items():
            if not name.isidentifier():
                raise InvalidArgument(f"{name!r} cannot be the name of a part: it is a Python identifier.")
            if isinstance(descriptor, Multipart):
                raise InvalidArgument(f"The part {name!r} is a Multipart again; put its parts beside the others.")
            if not isinstance(descriptor, IODescriptor):
                raise InvalidArgument(
                    f"{name}={descriptor!r} is not an IO descriptor: write for example {name}=adapter.io.JSON()."
                )
        self.parts = descriptors

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Refused: the samples belong to the parts, as in `Multipart(rows=NumpyNdarray.from_sample(…))`."""
        raise InvalidArgument(
            "A Multipart has no sample of its own: write for example Multipart(rows=NumpyNdarray.from_sample(…))."
        )

    async def from_http_request(self, request: Request) -> dict[str, Any]:
        self.check_type(request)
        seen: set[str] = set()

        def wanted(head: Head) -> bool:
            if head.name not in self.parts:
                raise BadInput(f"The form has a part {named([head.name])}, but its parts are {named([*self.parts])}.")
            if head.name in seen:
                raise BadInput(f"The form has the part {head.name!r} twice; send it once.")
            seen.add(head.name)
            return True

        found = {part.head.name: part for part in await parts(request, wanted)}
        if missing := [name for name in self.parts if name not in found]:
            raise BadInput(f"The form lacks the part {named(missing)}; its parts are {named([*self.parts])}.")
        values = {}
        for name, descriptor in self.parts.items():
            with _of_part(name):
                values[name] = await descriptor.from_http_request(PartRequest(request, found[name], descriptor))
        return values

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if not isinstance(obj, Mapping) or set(obj) != set(self.parts):
            raise InternalServerError(
                f"The result is to be a dict with {named([*self.parts])}, not {reprlib.repr(obj)}."
            )
        boundary = secrets.token_hex(16)
        begun: list[tuple[bytes, Response]] = []
        for name, descriptor in self.parts.items():
            with _of_part(name):
                response = await descriptor.to_http_response(obj[name])
            begun.append((_head(boundary, name, response), response))
        end = f"--{boundary}--\r\n".encode()
        mime_type = f"{FORM}; boundary={boundary}"

        async def close() -> None:
            for _, response in begun:
                await close_stream(response)

        if any(hasattr(response, "body_iterator") for _, response in begun):
            return self.stream(_streamed(begun, end), ctx, mime_type=mime_type, close=close)
        length = sum(len(head) + len(response.body) + 2 for head, response in begun) + len(end)
        if length > IN_MEMORY_BYTES:  # joined, the parts would be in memory twice
            headers = {"content-length": str(length)}
            return self.stream(_streamed(begun, end), ctx, mime_type=mime_type, headers=headers)
        body = b"".join(piece for head, response in begun for piece in (head, response.body, b"\r\n"))
        return self.respond(body + end, ctx, mime_type=mime_type)

    def python_type(self) -> type:
        return dict

    def json_schema(self) -> dict[str, Any]:
        definitions: dict[str, Any] = {}
        for descriptor in self.parts.values():
            definitions |= descriptor.components()
        return {
            "type": "object",
            "properties": {name: descriptor.schema() for name, descriptor in self.parts.items()},
            "required": [*self.parts],
            **({"$defs": definitions} if definitions else {}),
        }

    def to_spec(self) -> dict[str, Any]:
        args = {name: descriptor.to_spec() for name, descriptor in self.parts.items()}
        return {"id": self.descriptor_id(), "args": args}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        try:
            descriptors = {name: from_spec(part) for name, part in spec["args"].items()}
        except (AttributeError, KeyError) as error:
            raise InvalidArgument(f"The args {spec.get('args')!r} are not the specs of descriptors.") from error
        return super().from_spec({**spec, "args": descriptors})

    def __repr__(self) -> str:
        return f"Multipart({', '.join(f'{name}={descriptor!r}' for name, descriptor in self.parts.items())})"


@contextlib.contextmanager
def _of_part(name: str) -> Iterator[None]:
    """Let an error about a part name it."""
    try:
        yield
    except AdapterError as error:
        error.message = f"In the part {name!r}: {message_of(error)}"
        error.args = (error.message,)
        raise


def _head(boundary: str, name: str, response: Response) -> bytes:
    """The lines before the data of a part."""
    disposition = f'form-data; name="{name}"'
    _, options = parse_options_header(response.headers.get("content-disposition", ""))
    if filename := options.get(b"filename", b"").decode("latin-1"):
        disposition += '; filename="{}"'.format(filename.replace('"', "%22"))
    lines = [f"--{boundary}", f"content-disposition: {disposition}"]
    lines += [
        f"{key}: {response.headers[key]}" for key in ("content-type", "content-length") if key in response.headers
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def _streamed(begun: list[tuple[bytes, Response]], end: bytes) -> AsyncIterator[bytes]:
    for head, response in begun:
        yield head
        if isinstance(pieces := getattr(response, "body_iterator", None), AsyncIterable):
            async for piece in pieces:
                yield piece
        else:
            yield bytes(response.body)
        yield b"\r\n"
    yield end

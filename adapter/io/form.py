"""Forms: the parts of a multipart/form-data body, each kept as an upload, and read like a request of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Message, Receive

from adapter.exceptions import BadInput
from adapter.io.base import IODescriptor, media_type, media_type_of, shortened
from adapter.io.upload import Upload, UploadedFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
# what curl, requests and browsers say of a file whose type they do not know
UNKNOWN = "application/octet-stream"

_MAX_PARTS = 1000
_MAX_HEADER_BYTES = 16 << 10
_MAX_NAMED = 10

# a bad form is its sender's business, and not worth a line of the log
_SILENT = logging.Logger("form", logging.CRITICAL)

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Head:
    """What stands before the data of a part."""

    name: str
    filename: str | None
    content_type: bytes
    headers: Headers

    @property
    def undeclared(self) -> bool:
        """Whether the client does not say what the part is."""
        return media_type(self.content_type).name in ("", UNKNOWN)


@dataclass(frozen=True)
class Part:
    """One part of a form."""

    head: Head
    file: UploadedFile


class PartRequest(Request):
    """A part as the request that a descriptor reads: with its own headers and body, and the rest of its request's."""

    def __init__(self, request: Request, part: Part, descriptor: IODescriptor[Any]) -> None:
        headers = [
            (name, value)
            for name, value in part.head.headers
            if name != b"content-type" or not part.head.undeclared or descriptor.reads(value)
        ]
        super().__init__({**request.scope, "headers": headers}, _receive(part.file))
        self.file = part.file


def _receive(file: UploadedFile) -> Receive:
    # no method of the request: the file would end with the garbage collector, and not with the request
    async def receive() -> Message:
        body = file.read() if file.in_memory else await run_in_threadpool(file.read)
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def is_form(request: Request) -> bool:
    return media_type_of(request).name == FORM


async def parts(request: Request, wanted: Callable[[Head], bool]) -> list[Part]:
    """Read a form; the parts that are not wanted are skipped. `wanted` may raise to refuse the form."""
    boundary = media_type_of(request).parameters.get("boundary", "")
    if not boundary:
        raise BadInput(
            f"The content type of the body names no boundary: send 'content-type: {FORM}; boundary=…', as HTTP "
            "clients do for a form with files."
        )
    form = _Form(wanted)
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), form.callbacks())
        parser.logger = _SILENT
        async for chunk in request.stream():
            parser.write(chunk)
            for upload, data in form.arrived:
                await upload.write(data)
            form.arrived.clear()
        if not form.complete:
            raise BadInput("The body is not a form that can be read: it ends before its closing boundary.")
        return [
            Part(head, await upload.file(_file_name(head), head.content_type.decode("latin-1")))
            for head, upload in form.found
        ]
    except BaseException as error:
        for _, upload in form.found:
            upload.close()
        if isinstance(error, FormParserError):
            raise BadInput(f"The body is not a form that can be read: {shortened(str(error))}.") from error
        raise


async def first_part(request: Request, descriptor: IODescriptor[Any], what: str) -> Part:
    """The first part of a form whose content type `descriptor` reads, or that may be one as its type is not known."""
    names: list[str] = []
    fitting = plain = False

    def wanted(head: Head) -> bool:
        nonlocal fitting, plain
        names.append(head.name)
        if not head.content_type and head.filename is None:  # an ordinary field: taken where there is nothing else
            first, plain = not plain, True
            return first
        if fitting or not (head.undeclared or descriptor.reads(head.content_type)):
            return False
        fitting = True
        return True

    found = await parts(request, wanted)
    chosen = next((part for part in found if part.head.content_type or part.head.filename is not None), None)
    for part in found:
        if chosen is None:
            chosen = part
        elif part is not chosen:
            part.file.close()
    if chosen is None:
        raise BadInput(
            f"No part of the form is {what}: send one of the type {descriptor.accepts[0]}; the form has "
            f"{named(names) or 'no part at all'}."
        )
    return chosen


def named(names: Sequence[str]) -> str:
    """Names from a client, for a sentence."""
    shown = [repr(shortened(name)) for name in names[:_MAX_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


class _Form:
    """What the parser calls, in the order of the body."""

    def __init__(self, wanted: Callable[[Head], bool]) -> None:
        self.found: list[tuple[Head, Upload]] = []
        self.arrived: list[tuple[Upload, bytes]] = []
        """What is to be written before the next chunk of the body is parsed."""
        self.complete = False
        self._wanted = wanted
        self._parts = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._field = self._value = b""
        self._upload: Upload | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise BadInput(f"The form has more than {_MAX_PARTS} parts; send fewer.")
        self._headers, self._header_bytes, self._upload = [], 0, None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, length: int) -> None:
        self._header_bytes += length
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise BadInput(f"A part of the form has headers of more than {_MAX_HEADER_BYTES} bytes; send fewer.")

    def _header_end(self) -> None:
        self._headers.append((self._field.lower(), self._value))
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        headers = dict(self._headers)
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise BadInput(
                f"Part {self._parts} of the form has no name: give it 'content-disposition: form-data; name=\"…\"'."
            )
        filename = options.get(b"filename")
        content_type = headers.get(b"content-type", b"").strip()
        head = Head(_text(options[b"name"]), None if filename is None else _text(filename), content_type, self._headers)
        if self._wanted(head):
            self._upload = Upload()
            self.found.append((head, self._upload))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._upload is not None:
            self.arrived.append((self._upload, data[start:end]))

    def _end(self) -> None:
        self.complete = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _file_name(head: Head) -> str:
    """The name without folders, which a client must not choose for us."""
    name = (head.filename or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable()) or head.name

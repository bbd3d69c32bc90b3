"""File: any bytes, as a file."""

from __future__ import annotations

import mimetypes
import os
import re
import reprlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import BadInput, InternalServerError, InvalidArgument
from adapter.io.base import IODescriptor, media_type_of, one_at_a_time
from adapter.io.form import FORM, UNKNOWN, PartRequest, first_part, is_form
from adapter.io.upload import Upload, UploadedFile

if TYPE_CHECKING:
    from typing_extensions import Self

_MIME_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_CHUNK_BYTES = 256 << 10


class File(IODescriptor[UploadedFile]):
    """Read and send bytes as a file.

    The function gets a file open for reading, with the client's file name as its `name`: the body of the request, or
    of a form the first part of a fitting type. A large one lies on disk, not in memory. With `mime_type` a body of
    another type is refused, one of no type is not. A result is bytes, or a file open for reading bytes, which is sent
    piece by piece and closed. `kind` is always "binaryio".
    """

    def __init__(self, kind: Literal["binaryio"] = "binaryio", mime_type: str | None = None) -> None:
        if kind != "binaryio":
            raise InvalidArgument(f"The kind of File is 'binaryio', not {kind!r}; adapter.io.Text reads text.")
        if mime_type is not None and not _MIME_TYPE.fullmatch(str(mime_type)):
            raise InvalidArgument(
                f"mime_type={mime_type!r} is no content type: write for example 'application/pdf', in lower case."
            )
        self.kind = kind
        self.mime_type = mime_type or UNKNOWN
        self.accepts = (UNKNOWN, "*") if self.mime_type == UNKNOWN else (self.mime_type, FORM)

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor of files like `sample`: a path, whose ending gives the mime_type, bytes or an open file."""
        if isinstance(sample, (str, os.PathLike)):
            if not Path(sample).is_file():
                raise BadInput(f"The sample {str(sample)!r} is no file.")
            kwargs.setdefault("mime_type", mimetypes.guess_type(sample)[0])
        elif not isinstance(sample, (bytes, bytearray)) and not callable(getattr(sample, "read", None)):
            raise BadInput(f"File.from_sample takes a path, bytes or an open file, not {reprlib.repr(sample)}.")
        return super().from_sample(sample, **kwargs)

    async def from_http_request(self, request: Request) -> UploadedFile:
        if isinstance(request, PartRequest):
            self.check_type(request)
            return request.file
        if is_form(request) and self.mime_type != FORM:
            return (await first_part(request, self, "the file")).file
        self.check_type(request)
        upload = Upload()
        try:
            async for chunk in request.stream():
                await upload.write(chunk)
            return await upload.file("<request body>", media_type_of(request).name)
        except BaseException:
            upload.close()
            raise

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if isinstance(obj, (bytes, bytearray, memoryview)):
            return self.respond(bytes(obj), ctx)
        if not callable(getattr(obj, "read", None)):
            raise InternalServerError(
                f"The result is a {type(obj).__qualname__} instead of bytes or a file open for reading bytes: "
                f"{reprlib.repr(obj)}."
            )
        on_thread = one_at_a_time()

        async def close() -> None:
            if callable(getattr(obj, "close", None)):
                await on_thread(obj.close)

        async def chunks(chunk: bytes) -> AsyncIterator[bytes]:
            while chunk:
                yield chunk
                chunk = await on_thread(_read, obj)

        try:
            length, first = await on_thread(_begin, obj)
            headers = {} if length is None else {"content-length": str(length)}
            return self.stream(chunks(first), ctx, headers=headers, close=close)
        except BaseException:
            await close()
            raise

    def python_type(self) -> type:
        return object  # people write BinaryIO, io.BytesIO or IO[bytes]

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}


def _begin(file: Any) -> tuple[int | None, bytes]:
    """How many bytes are left in a file, where it can tell, and the first of them."""
    length = None
    if callable(getattr(file, "seekable", None)) and file.seekable():
        here = file.tell()
        file.seek(0, os.SEEK_END)
        length = file.tell() - here
        file.seek(here)
    return length, _read(file)


def _read(file: Any) -> bytes:
    chunk = file.read(_CHUNK_BYTES)
    if not isinstance(chunk, bytes):
        raise InternalServerError(
            f"Reading the file that is the result gave a {type(chunk).__qualname__} instead of bytes: open it with "
            "mode 'rb'."
        )
    return chunk

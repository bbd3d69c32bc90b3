"""PathFile: files by their path, for results that lie on disk."""

from __future__ import annotations

import mimetypes
import urllib.parse
from pathlib import Path
from typing import Any

import anyio
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import InternalServerError
from adapter.io.file import File
from adapter.io.form import UNKNOWN


class PathFile(File):
    """Send a result that is a path as the file that it names; read what `File` reads.

    The content type is `mime_type`, else what the ending of the name tells. An image is shown by a browser, any other
    file is saved under its own name.
    """

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if not isinstance(obj, (Path, str)):
            return await super().to_http_response(obj, ctx)
        path = Path(obj)
        try:
            file = await anyio.to_thread.run_sync(path.open, "rb")
        except OSError as error:
            raise InternalServerError(f"The result is the path of no file that can be read: {error}.") from error
        mime_type = self.mime_type
        if mime_type == UNKNOWN:
            mime_type = mimetypes.guess_type(path.name)[0] or UNKNOWN
        shown = "inline" if mime_type.startswith("image/") else "attachment"
        response = await super().to_http_response(file, ctx)
        response.headers.setdefault(
            "content-disposition", f"{shown}; filename*=UTF-8''{urllib.parse.quote(path.name, safe='')}"
        )
        if ctx is None or "content-type" not in ctx.response.headers:
            response.headers["content-type"] = mime_type
        return response

    @classmethod
    def descriptor_id(cls) -> str:
        return File.descriptor_id()  # to a client it is one

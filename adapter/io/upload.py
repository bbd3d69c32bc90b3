"""Uploads: files that come with a request, in memory or, when they are large, on disk."""

from __future__ import annotations

import io
import tempfile

from starlette.concurrency import run_in_threadpool

IN_MEMORY_BYTES = 1 << 20


class UploadedFile(io.BufferedReader):
    """A file that came with a request, open for reading bytes; it ends with the request.

    `name` is the file name that the client gave, without folders; `size` is in bytes; `content_type` is "" where the
    client named none.
    """

    def __init__(self, raw: io.BytesIO | io.FileIO, *, name: str, content_type: str, size: int) -> None:
        super().__init__(raw)
        self._name = name
        self.content_type = content_type
        self.size = size

    @property
    def name(self) -> str:
        return self._name

    @property
    def in_memory(self) -> bool:
        """Whether reading it needs no disk."""
        return isinstance(self.raw, io.BytesIO)

    def __repr__(self) -> str:
        return f"UploadedFile(name={self.name!r}, content_type={self.content_type!r}, size={self.size})"

    def __del__(self) -> None:  # else a file on disk that the API function left open is warned about
        self.close()


class Upload:
    """Collects an upload as it arrives."""

    def __init__(self) -> None:
        self.size = 0
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._disk: io.FileIO | None = None

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self._waiting += len(data)
        self._chunks.append(data)
        if self._waiting > IN_MEMORY_BYTES:
            await run_in_threadpool(self._spill)

    async def file(self, name: str, content_type: str) -> UploadedFile:
        """What was written, as a file that stands at its beginning."""
        if self._disk is None:
            raw: io.BytesIO | io.FileIO = io.BytesIO(b"".join(self._chunks))
        else:
            await run_in_threadpool(self._spill)
            self._disk.seek(0)
            raw = self._disk
        return UploadedFile(raw, name=name, content_type=content_type, size=self.size)

    def close(self) -> None:
        """Drop what was written."""
        if self._disk is not None:
            self._disk.close()

    def _spill(self) -> None:
        if self._disk is None:
            # closed by the UploadedFile, or by `close` where there will be none
            self._disk = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        for chunk in self._chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._disk.write(rest) :]
        self._chunks, self._waiting = [], 0

"""Forms as HTTP clients write them."""

from __future__ import annotations

from typing import Any

import httpx


def form(files: Any = None, data: Any = None) -> tuple[bytes, str]:
    """The body of a form, and its content type."""
    request = httpx.Request("POST", "http://127.0.0.1", files=files, data=data)
    return request.read(), request.headers["content-type"]


def written(*parts: tuple[str, bytes], boundary: str = "b") -> tuple[bytes, str]:
    """A form of parts whose header lines are given as they are."""
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"

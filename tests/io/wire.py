"""What stands for the server in these tests: a request with a body, and what a response puts on the wire."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from adapter.context import Context
from adapter.io import IODescriptor


def request(body: bytes = b"", content_type: str | None = None, headers: dict[str, str] | None = None) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    everything = {**(headers or {}), **({} if content_type is None else {"content-type": content_type})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "query_string": b"threshold=0.5",
        "headers": [(name.lower().encode(), value.encode()) for name, value in everything.items()],
    }
    return Request(scope, receive)


def read(descriptor: IODescriptor[Any], body: bytes | str, content_type: str | None = "application/json") -> Any:
    raw = body.encode() if isinstance(body, str) else body
    return asyncio.run(descriptor.from_http_request(request(raw, content_type)))


@dataclass
class Sent:
    """A response as the client sees it."""

    status: int
    headers: list[tuple[str, str]]
    chunks: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name]


def send(descriptor: IODescriptor[Any], obj: Any, ctx: Context | None = None) -> Sent:
    async def respond() -> Sent:
        return await transmit(await descriptor.to_http_response(obj, ctx))

    return asyncio.run(respond())


async def transmit(response: Response) -> Sent:
    messages: list[Any] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, keep)
    start, *rest = messages
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return Sent(start["status"], headers, [message["body"] for message in rest if message["body"]])

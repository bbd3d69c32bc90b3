"""APIs that take their time, for the limits of a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

import adapter
from adapter.io import JSON, Text

svc = adapter.Service("limits")


@svc.api(input=JSON(), output=JSON())
def echo(value: Any) -> Any:
    return value


@svc.api(input=JSON(), output=JSON())
def hold(seconds: float) -> str:
    time.sleep(seconds)
    return "held"


@svc.api(input=JSON(), output=JSON())
async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


@svc.api(input=JSON(), output=Text())
def drip(seconds: float) -> Iterator[str]:
    def drops() -> Iterator[str]:
        for n in range(3):
            time.sleep(seconds)
            yield f"{n}\n"

    return drops()


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    if scope["path"].endswith("/fails"):
        raise ValueError("the mounted application failed")
    await PlainTextResponse("mounted")(scope, receive, send)


svc.mount_asgi_app(mounted, "/mounted")

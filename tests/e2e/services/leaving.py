"""Calls that are waited for by clients which go away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import adapter
from adapter.io import JSON


def note(body: dict[str, Any], word: str) -> None:
    with Path(body["file"]).open("a") as out:
        out.write(f"{body['name']} {word}\n")


class Slow(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method
    def alone(self, body: dict[str, Any]) -> str:
        note(body, "begun")
        time.sleep(body["seconds"])
        return str(body["name"])


class Together(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method(batchable=True)
    def batch(self, bodies: list[dict[str, Any]]) -> list[str]:
        for body in bodies:
            note(body, f"begun with {len(bodies)}")
        time.sleep(max(body["seconds"] for body in bodies))
        return [body["name"] for body in bodies]


slow = adapter.Runner(Slow, name="slow", cpu=1)
together = adapter.Runner(Together, name="together", cpu=1)
svc = adapter.Service("leaving", runners=[slow, together])


@svc.api(input=JSON(), output=JSON())
async def alone(body: dict[str, Any]) -> str:
    try:
        return str(await slow.alone.async_run(body))
    except adapter.exceptions.ClientGone:
        note(body, "left")
        raise


@svc.api(input=JSON(), output=JSON())
def plain_alone(body: dict[str, Any]) -> str:
    try:
        return str(slow.alone.run(body))
    except adapter.exceptions.ClientGone:
        note(body, "left")
        raise


@svc.api(input=JSON(), output=JSON())
async def batch(body: dict[str, Any]) -> str:
    (name,) = await together.batch.async_run([body])
    return str(name)

"""Runners that tell which process answers, for fronts whose Tritons run elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import adapter
from adapter.io import Text


class Which(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def say(self, texts: Any) -> Any:
        time.sleep(0.01)
        return [f"{text} {os.getpid()}" for text in texts]


class Counts(Which):
    @adapter.Runnable.method
    def count(self, number: int) -> Iterator[str]:
        for _ in range(number):
            yield f"{os.getpid()}\n"


one = adapter.Runner(Counts, name="one", cpu=1)
two = adapter.Runner(Which, name="two", cpu=1)
svc = adapter.Service("remote", runners=[one, two])


@svc.api(input=Text(), output=Text(), route="/one")
async def ask_one(text: str) -> str:
    return str((await one.say.async_run([text]))[0])


@svc.api(input=Text(), output=Text(), route="/two")
async def ask_two(text: str) -> str:
    return str((await two.say.async_run([text]))[0])


@svc.api(input=Text(), output=Text(), route="/count")
async def count(text: str) -> Any:
    return one.count.async_stream(int(text))

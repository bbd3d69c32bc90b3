"""Generator methods of runners, and APIs that pass their values on."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import adapter
from adapter.io import JSON, SSE, Text


def note(file: str, line: str) -> None:
    """Add a line to a file that the test reads."""
    if file:
        with Path(file).open("a") as out:
            out.write(f"{line}\n")


class Speaker(adapter.Runnable):
    """Methods of both kinds: the generators have an object of their own."""

    SUPPORTED_RESOURCES = ("cpu",)

    def __init__(self) -> None:
        self.calls = 0

    @adapter.Runnable.method
    def count(self, word: str) -> list[Any]:
        self.calls += 1
        return [self.calls, os.getpid()]

    @adapter.Runnable.method
    async def words(self, text: str, pause: float = 0.0, file: str = "") -> AsyncIterator[str]:
        note(file, "begun")
        try:
            for word in text.split():
                if word == "fail":
                    raise ValueError("a secret")
                if word == "refuse":
                    raise adapter.exceptions.TooManyRequests("enough words")
                if word == "die":
                    os._exit(3)
                if word == "hang":
                    await asyncio.sleep(3600)
                yield word
                note(file, word)
                await asyncio.sleep(pause)
        except BaseException as error:
            note(file, f"ended by {type(error).__name__}")
            raise
        finally:
            note(file, "closed")

    @adapter.Runnable.method
    def numbers(self, count: int, size: int = 1, pause: float = 0.0, file: str = "") -> Iterator[Any]:
        self.calls += 1
        try:
            for i in range(count):
                note(file, str(i))
                yield {"i": i, "array": np.full(size, i, np.float32), "calls": self.calls, "pid": os.getpid()}
                time.sleep(pause)
        except GeneratorExit:
            note(file, "closed")
            raise

    @adapter.Runnable.method
    def stuck(self) -> Iterator[int]:
        yield 1
        re.match("(a+)+$", "a" * 100 + "b")  # takes for ever, and no other thread of the process runs meanwhile


class Echo(adapter.Runnable):
    """Generators alone."""

    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method
    async def letters(self, text: str) -> AsyncIterator[str]:
        for letter in text:
            yield letter


speaker = adapter.Runner(Speaker, name="speaker", cpu=1)
echo = adapter.Runner(Echo, name="echo", cpu=2)
svc = adapter.Service("streams", runners=[speaker, echo])


@svc.api(input=JSON(), output=Text())
async def words(body: dict[str, Any]) -> AsyncIterator[str]:
    async for word in speaker.words.async_stream(**body):
        yield f"{word} "


@svc.api(input=JSON(), output=Text())
def plain_words(body: dict[str, Any]) -> Iterator[str]:
    for word in speaker.words.stream(**body):
        yield f"{word} "


@svc.api(input=JSON(), output=Text())
def passed_on(body: dict[str, Any]) -> Any:
    return speaker.words.stream(**body)


@svc.api(input=JSON(), output=Text(content_type="text/event-stream"))
async def events(body: dict[str, Any]) -> Any:
    words = speaker.words.async_stream(**body)
    return (SSE(word, event="word") async for word in words)


@svc.api(input=Text(), output=Text())
async def letters(text: str) -> Any:
    return echo.letters.async_stream(text)


@svc.api(input=JSON(), output=JSON())
async def numbers(body: dict[str, Any]) -> list[Any]:
    """All values in one answer."""
    found = [value async for value in speaker.numbers.async_stream(**body)]
    return [[v["i"], len(v["array"]), float(v["array"].sum()), v["calls"], v["pid"]] for v in found]


@svc.api(input=JSON(), output=Text())
async def many(body: dict[str, Any]) -> AsyncIterator[str]:
    async for value in speaker.numbers.async_stream(**body):
        yield f"{value['i']} " + "x" * body.get("size", 0)


@svc.api(input=JSON(), output=JSON())
async def first(body: dict[str, Any]) -> Any:
    """One value, and no more of it."""
    async for value in speaker.numbers.async_stream(**body):
        return value["i"]
    return None


@svc.api(input=Text(), output=JSON())
async def count(text: str) -> list[Any]:
    return list(await speaker.count.async_run(text))


@svc.api(input=Text(), output=Text())
async def stuck(text: str) -> AsyncIterator[str]:
    async for value in speaker.stuck.async_stream():
        yield str(value)


@svc.api(input=Text(), output=JSON())
async def wrong(text: str) -> list[str]:
    found = []
    for call in (
        lambda: speaker.words.async_run(text),
        lambda: speaker.words.run(text),
        lambda: speaker.count.async_stream(text),
        lambda: speaker.words.stream(text),
        lambda: speaker.words.async_stream(),
        lambda: speaker.words.async_stream(object()),
    ):
        try:
            call()
        except (adapter.exceptions.AdapterError, TypeError) as error:
            found.append(str(error))
    return found

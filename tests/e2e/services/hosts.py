"""One class for two hosts: in the front, and with a batchable method on Triton."""

from __future__ import annotations

import datetime
import enum
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import PIL.Image
from pydantic import BaseModel

import adapter
from adapter.validators import DType, Shape


class Colour(str, enum.Enum):
    red = "red"
    blue = "blue"


class Item(BaseModel):
    name: str
    count: int = 1


class Scale(adapter.Runnable):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @adapter.Runnable.method(batchable=True)
    def scale(self, rows: np.ndarray) -> np.ndarray:
        return self.factor * rows


@adapter.service
class Helper:
    def __init__(self) -> None:
        self.times = 0

    @adapter.on_startup
    async def begin(self) -> None:
        self.times = 2

    @adapter.api
    def twice(self, n: int) -> int:
        return self.times * n


@adapter.service  # a service that others inherit from
class Both:
    helper = adapter.depends(Helper)
    scale = adapter.Runner(Scale, runnable_init_params={"factor": 3.0})
    iris = adapter.sklearn.get("iris_clf:latest").to_runner()
    model = adapter.models.get("iris_clf:latest")

    def __init__(self) -> None:
        self.calls = 0

    @adapter.on_startup
    def begin(self) -> None:
        self.greeting = "hello"

    @adapter.on_startup
    async def begin_async(self) -> None:
        self.greeting += "!"

    @adapter.on_shutdown
    def end(self) -> None:
        if "NOTES" in os.environ:
            with open(os.environ["NOTES"], "a") as file:
                file.write(f"{type(self).__name__} ended\n")

    @adapter.api
    def greet(self, text) -> str:  # type: ignore[no-untyped-def]  # as people write it
        return f"{self.greeting} {text}"

    @adapter.api
    def item(self, item: Item, suffix: str = "?") -> Item:
        self.calls += 1
        return Item(name=item.name + suffix, count=self.helper.twice(item.count))

    @adapter.api
    async def counted(self) -> int:
        return self.calls

    @adapter.api
    def root(self, text: str, /) -> str:
        return text.upper()

    @adapter.api
    def fitted(self, rows: Annotated[np.ndarray, Shape((-1, 2)), DType("float32")]) -> np.ndarray:
        return np.asarray(self.scale.scale.run(rows))

    @adapter.api
    async def classify(self, rows: np.ndarray) -> list[int]:
        return [int(label) for label in await self.iris.predict.async_run(rows)]

    @adapter.api
    def tag(self) -> str:
        return self.model.tag.name

    @adapter.api
    def frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        counted: pd.DataFrame = frame.assign(n=len(frame))
        return counted

    @adapter.api
    def image(self, image: PIL.Image.Image) -> list[int]:
        return list(image.size)

    @adapter.api
    def file(self, file: Path) -> Path:
        path = file.with_suffix(".out")
        path.write_bytes(file.read_bytes()[::-1])
        return path

    @adapter.api
    def context(self, ctx: adapter.Context) -> str:
        ctx.response.status_code = 201
        ctx.response.headers["x-seen"] = ctx.request.headers["X-In"]
        ctx.response.set_cookie("a", "b")
        return ctx.request.query_params["q"]

    @adapter.api
    def words(self, n: int) -> Iterator[str]:
        for i in range(n):
            yield f"{self.greeting}{i} "

    @adapter.api
    async def values(self, n: int) -> AsyncIterator[dict[str, int]]:
        for i in range(n):
            yield {"i": i}

    @adapter.api
    def refuse(self, text: str) -> str:
        raise adapter.exceptions.NotFound(f"There is no {text}.")

    @adapter.api
    def due(self, day: datetime.date, colour: Colour = Colour.red) -> list[str]:
        return [(day + datetime.timedelta(days=1)).isoformat(), colour.name]

    @adapter.api
    def several(self, first: int, *more: int, ctx: adapter.Context | None = None) -> list[int]:
        assert ctx is not None
        return [first, *more]

    @adapter.api
    def sizes(self, *files: Path) -> list[int]:
        return [len(file.read_bytes()) for file in files]

    @adapter.api
    def named(self, function: str, **others: int) -> str:
        return function + "".join(others)

    @adapter.api
    def state(self) -> str:  # what holds the object on Triton has names of its own
        return "state"

    @adapter.api
    def served(self, a: int, *more: int) -> int:
        return a + sum(more)

    @adapter.api
    async def leave(self) -> str:
        raise SystemExit(3)

    @adapter.api
    def fail(self) -> str:
        raise ValueError("secret")

    @adapter.api
    def unfit(self) -> int:
        return "many"  # type: ignore[return-value]  # that is the point

    @adapter.task
    def job(self, n: int) -> int:
        return int(self.helper.twice(n))

    def __is_ready__(self) -> bool:
        return self.greeting == "hello!"


@adapter.service
class InFront(Both):
    @adapter.api
    def batch(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]


@adapter.service(workers=1)
class OnTriton(Both):
    @adapter.api(batchable=True)
    def batch(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]


@adapter.service
class User:
    far = adapter.depends(OnTriton)
    near = adapter.depends(InFront)

    @adapter.api
    def lengths(self, texts: list[str]) -> list[list[int]]:
        return [self.far.batch(texts), self.near.batch(texts)]

    @adapter.api
    async def async_lengths(self, texts: list[str]) -> list[list[int]]:
        return [await self.far.to_async.batch(texts), await self.near.to_async.batch(texts)]

    @adapter.api
    async def words(self, n: int) -> AsyncIterator[str]:
        async for word in self.far.to_async.words(n):
            yield word.upper()

    @adapter.api
    async def wrong(self, texts: list[str]) -> list[int]:
        lengths: list[int] = self.far.batch(texts)
        return lengths

"""One Runnable with a method for each kind of call, and one whose tensors are typed."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel

import adapter
from adapter.exceptions import NotFound


class Teapot(adapter.exceptions.AdapterError):
    error_code = 418


class Silent(adapter.exceptions.AdapterError):
    error_code = 418

    def __init__(self) -> None:
        """Not calling the base class, as people do."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Statusless(adapter.exceptions.AdapterError):
    error_code = "abc"  # type: ignore[assignment]  # what a person may write


@dataclass
class Half:
    whole: int


class Row(BaseModel):
    name: str
    size: float = 1.0


@dataclass
class Box:
    rows: list[Row]
    label: str | None = None


class Calls(adapter.Runnable):
    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen = 0

    @adapter.Runnable.method
    def echo(self, value: Any) -> Any:
        return value

    @adapter.Runnable.method
    def type_of(self, value: Any) -> str:
        return type(value).__name__

    @adapter.Runnable.method
    def named(self, a: int, *, b: int = 2, **rest: int) -> dict[str, Any]:
        return {"a": a, "b": b, **rest}

    @adapter.Runnable.method
    def grow(self, box: Box) -> Box:
        assert isinstance(box, Box)
        assert all(isinstance(row, Row) for row in box.rows)
        return Box([row.model_copy(update={"size": row.size * self.factor}) for row in box.rows], box.label)

    @adapter.Runnable.method(batchable=True)
    def scale(self, x: Any, by: float = 1.0) -> Any:
        x *= self.factor * by  # in place: nobody but this method may see it
        return x

    @adapter.Runnable.method(batchable=True)
    def two(self, x: npt.NDArray[Any]) -> tuple[Any, Any]:
        return x + 1, [str(v) for v in x.tolist()]

    @adapter.Runnable.method(batchable=True, batch_dim=(1, 0))
    def columns(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(x.sum(axis=0))

    @adapter.Runnable.method(batchable=True)
    def frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        with_total: pd.DataFrame = rows.assign(total=rows["a"] + rows["b"])
        return with_total

    @adapter.Runnable.method(batchable=True)
    def texts(self, items: list[str]) -> list[str]:
        return [item.upper() for item in items]

    @adapter.Runnable.method(batchable=True)
    def short(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x[:-1]

    @adapter.Runnable.method(batchable=True)
    def picky(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (x < 0).any():
            raise ValueError("no negative numbers")
        return x

    @adapter.Runnable.method
    def missing(self) -> None:
        raise NotFound("no such thing in the runner")

    @adapter.Runnable.method
    def teapot(self) -> None:
        raise Teapot("short and stout")

    @adapter.Runnable.method
    def bad_error(self, kind: str) -> Any:
        if kind == "no message":
            raise Silent
        if kind == "no text":
            raise Unprintable
        if kind == "no status":
            raise Statusless("odd")
        if kind == "exit":
            raise SystemExit(3)
        if kind == "cancelled":
            raise asyncio.CancelledError
        if kind == "long":
            raise NotFound("ü" * 100_000)
        if kind == "surrogate":
            raise NotFound("a\ud800b\0c")
        return {"unsendable": object(), "half a dataclass": Half.__new__(Half)}[kind]

    @adapter.Runnable.method
    async def later(self, value: int) -> int:
        return value + 1


class Typed(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def norm(
        self, x: Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1, 3))], power: int = 2
    ) -> tuple[
        Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1,))],
        Annotated[npt.NDArray[np.bool_], adapter.TensorSpec("bool", (-1, 3))],
    ]:
        return (np.abs(x) ** power).sum(axis=1), x > 0


class Sideways(adapter.Runnable):
    @adapter.Runnable.method(
        batchable=True, batch_dim=(1, 0), input_spec=("float64", (2, -1)), output_spec=("float64", (-1,))
    )
    def add(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(x[0] + x[1])


class Single(adapter.Runnable):
    @adapter.Runnable.method(input_spec=("float64", ()), output_spec=("int32", ()))
    def __call__(self, x: Any) -> Any:
        return np.int32(round(float(x)))


def runners(**options: Any) -> list[adapter.Runner]:
    return [
        adapter.Runner(Calls, name="calls", runnable_init_params={"factor": 2}, max_batch_size=8, **options),
        adapter.Runner(Typed, name="typed", max_batch_size=4, **options),
        adapter.Runner(Sideways, name="sideways", max_batch_size=4, **options),
        adapter.Runner(Single, name="single", **options),
    ]


svc = adapter.Service("wire", runners=runners())
in_stub = adapter.Service("wire_in_stub", runners=runners(isolated=False))
calls = svc.runners[0]

"""A service whose APIs tell how it lives: hooks, state, slow answers, and code that fails."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import adapter
from adapter.io import JSON, NumpyNdarray, Text

NOTES = Path(os.environ.get("NOTES", os.devnull))


def note(text: str) -> None:
    with NOTES.open("a") as file:
        file.write(f"{text} {os.getpid()}\n")


class Fragile(adapter.Runnable):
    """Does what it is told, dying included."""

    @adapter.Runnable.method
    def do(self, what: str) -> str:
        if what == "raise":
            raise ValueError("a secret of the server")
        if what == "exit":
            os._exit(3)
        if what == "sleep":
            time.sleep(0.5)
        return f"did {what} in {os.getpid()}"

    @adapter.Runnable.method
    def nap(self, seconds: float) -> str:
        time.sleep(seconds)
        return "rested"

    @adapter.Runnable.method(batchable=True)
    def positive(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (x < 0).any():
            raise ValueError("negative")
        return x


fragile = adapter.Runner(Fragile, name="fragile", cpu=1)
unlisted = adapter.Runner(Fragile, name="unlisted")
svc = adapter.Service("life", runners=[fragile])


@svc.on_deployment
def first() -> None:
    note("deployment 1")


@svc.on_deployment
async def second() -> None:
    await asyncio.sleep(0)
    note("deployment 2")


@svc.on_startup
def begin(context: adapter.Context) -> None:
    context.state["begun"] = ["sync"]
    note("startup 1")


@svc.on_startup
async def begin_too(context: adapter.Context) -> None:
    context.state["begun"].append("async")
    note("startup 2")


@svc.on_shutdown
async def end(context: adapter.Context) -> None:
    note(f"shutdown {context.state['begun']}")


@svc.api(input=Text(), output=Text())
def do(what: str) -> str:
    result: str = fragile.do.run(what)
    return result


@svc.api(input=Text(), output=Text())
async def do_async(what: str) -> str:
    result: str = await fragile.do.async_run(what)
    return result


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def positive(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = await fragile.positive.async_run(x)
    return result


@svc.api(input=JSON(), output=JSON())
def state(_: Any, ctx: adapter.Context) -> Any:
    ctx.response.status_code = 202
    ctx.response.headers.append("x-begun", ",".join(ctx.state["begun"]))
    return {"begun": ctx.state["begun"], "agent": ctx.request.headers["user-agent"]}


@svc.api(input=Text(), output=Text())
async def nap(seconds: str) -> str:
    result: str = await fragile.nap.async_run(float(seconds))
    return result


@svc.api(input=Text(), output=JSON())
def unsendable(what: str) -> Any:
    return fragile.do.run([what, object()])


@svc.api(input=Text(), output=Text())
def leave(what: str) -> str:
    raise SystemExit(what)


@svc.api(input=Text(), output=JSON())
def saved(tag: str) -> Any:
    model = adapter.picklable_model.save_model(tag, len)
    return [str(m.tag) for m in adapter.models.list(tag)] == [str(adapter.models.get(f"{tag}:latest").tag)] and (
        adapter.picklable_model.load_model(model.tag)("four")
    )


@svc.api(input=Text(), output=Text())
async def blocking(what: str) -> str:
    result: str = fragile.do.run(what)
    return result


@svc.api(input=Text(), output=Text())
def not_listed(what: str) -> str:
    result: str = unlisted.do.run(what)
    return result


@svc.api(input=Text(), output=JSON())
def refuse(what: str) -> Any:
    raise adapter.exceptions.NotFound(f"there is no {what}")


@svc.api(input=Text(), output=Text())
def own_code_fails(what: str) -> str:
    raise KeyError("a secret of the server")


@svc.api(input=Text(), output=Text())
async def slow(seconds: str) -> str:
    await asyncio.sleep(float(seconds))
    return "done"


@svc.api(input=Text(), output=Text())
def slow_sync(seconds: str) -> str:
    time.sleep(float(seconds))
    return "done"

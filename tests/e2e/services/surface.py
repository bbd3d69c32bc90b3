"""Routes, mounts, middlewares and what a Context can do, without any runner."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import PIL.Image
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import adapter
from adapter.io import JSON, Image, Multipart, NumpyNdarray, Text


class Flower(BaseModel):
    """One flower."""

    name: str
    petals: list[float]


class Marking:
    """Writes its mark into a header, after those that are inside it."""

    def __init__(self, app: ASGIApp, mark: str) -> None:
        self.app = app
        self.mark = mark

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", self.mark.encode())]
            await send(message)

        if scope["type"] == "http" and scope["path"] == "/broken-middleware":
            raise RuntimeError("the middleware failed")
        await self.app(scope, receive, marked)


svc = adapter.Service("surface")


@svc.on_startup
def count(ctx: adapter.Context) -> None:
    ctx.state["calls"] = 0


# ---- routes ---------------------------------------------------------------------------------------------------------


@svc.api(input=JSON(), output=JSON(), route="/v3/{item}/x")
def by_item(body: Any, ctx: adapter.Context) -> Any:
    """Answer with what stood in the path."""
    return {"item": ctx.request.path_params["item"], "body": body}


@svc.api(input=JSON(), output=JSON(), route="/v3/{number:int}/of/{rest:path}")
async def typed(body: Any, ctx: adapter.Context) -> Any:
    return ctx.request.path_params


@svc.api(input=JSON(), output=JSON(), route="/v3/fixed/x")
def fixed(body: Any) -> Any:
    return "fixed"


@svc.api(input=JSON(), output=JSON(), route="/{anything}")
def anything(body: Any, ctx: adapter.Context) -> Any:
    return ctx.request.path_params


@svc.api(input=JSON(pydantic_model=Flower), output=JSON(pydantic_model=Flower))
def pick(flower: Flower) -> Flower:
    """Give the flower back with its petals in order."""
    return Flower(name=flower.name, petals=sorted(flower.petals))


@svc.api(
    input=Multipart(rows=NumpyNdarray.from_sample([[1.0, 2.0]]), flower=JSON(pydantic_model=Flower), note=Text()),
    output=JSON(),
)
def join(rows: Any, flower: Flower, note: str) -> Any:
    """Join three parts."""
    return {"sum": float(rows.sum()), "name": flower.name, "note": note}


@svc.api(input=Image(), output=Image(mime_type="image/png"))
def turn(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.rotate(90, expand=True)


# ---- the context ----------------------------------------------------------------------------------------------------


def tell(ctx: adapter.Context, number: int) -> None:
    """Put all that a response may carry on it, with the number of the request in it."""
    ctx.response.status_code = 200 + number % 3
    ctx.response.headers["x-number"] = str(number)
    ctx.response.headers.append("x-many", f"a{number}")
    ctx.response.headers.append("x-many", f"b{number}")
    ctx.response.set_cookie("number", str(number))
    (Path(ctx.temp_dir) / "number").write_text(str(number))


def seen(ctx: adapter.Context) -> dict[str, Any]:
    return {
        "header": ctx.request.headers["x-sent"],
        "query": ctx.request.query_params["q"],
        "cookie": ctx.request.cookies["c"],
        "files": [path.read_text() for path in Path(ctx.temp_dir).iterdir()],
        "folder": ctx.temp_dir,
    }


@svc.api(input=JSON(), output=JSON())
async def mix_async(number: int, ctx: adapter.Context) -> Any:
    tell(ctx, number)
    await asyncio.sleep(0.001 * (number % 7))
    ctx.state["calls"] += 1
    return seen(ctx)


@svc.api(input=JSON(), output=JSON())
def mix_sync(number: int, ctx: adapter.Context) -> Any:
    tell(ctx, number)
    time.sleep(0.001 * (number % 7))
    return seen(ctx)


@svc.api(input=JSON(), output=JSON())
def fail(number: int, ctx: adapter.Context) -> Any:
    tell(ctx, number)
    folder = ctx.temp_dir
    raise adapter.exceptions.NotFound(folder)


@svc.api(input=JSON(), output=Text())
async def stream(number: int, ctx: adapter.Context) -> AsyncIterator[str]:
    async def pieces() -> AsyncIterator[str]:
        (Path(ctx.temp_dir) / "page").write_text("x")
        yield ctx.temp_dir
        for _ in range(number):
            yield "."
            await asyncio.sleep(0.01)
        yield str(len(list(Path(ctx.temp_dir).iterdir())))

    return pieces()


@svc.api(input=JSON(), output=JSON())
async def slow(number: float, ctx: adapter.Context) -> Any:
    ctx.state["slow"] = ctx.temp_dir
    await asyncio.sleep(number)
    return number


@svc.api(input=JSON(), output=JSON())
def slow_folder(_: Any, ctx: adapter.Context) -> Any:
    return ctx.state["slow"]


# ---- mounts and middlewares -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def begin_and_end(app: FastAPI) -> AsyncIterator[None]:
    app.state.begun = True
    yield


fast = FastAPI(lifespan=begin_and_end)


class Item(BaseModel):
    name: str


@fast.get("/items/{number}")
async def item(number: int) -> Item:
    return Item(name=f"item {number}" if fast.state.begun else "")


@fast.get("/broken")
async def broken() -> Item:
    raise RuntimeError("the mounted application failed")


async def rest(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"rest " + scope["path"].encode()})


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("201 Created", [("Content-Type", "text/plain"), ("X-Path", environ["PATH_INFO"])])
    return [b"wsgi ", body]


svc.mount_asgi_app(rest)
svc.mount_asgi_app(fast, path="/fast", name="fast")
svc.mount_wsgi_app(wsgi, path="/old/wsgi")
svc.add_asgi_middleware(Marking, mark="outer")
svc.add_asgi_middleware(Marking, mark="inner")
svc.add_asgi_middleware(GZipMiddleware, minimum_size=10_000)

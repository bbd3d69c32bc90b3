"""A service with every descriptor for media, forms and streams, and one of its own."""

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

import adapter
from adapter.io import JSON, SSE, File, Image, IODescriptor, Multipart, NumpyNdarray, Text
from adapter.io.upload import UploadedFile

NOTES = Path(os.environ.get("NOTES", os.devnull))


class IrisFeatures(BaseModel):
    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Semicolons(IODescriptor[list[str]]):
    """A descriptor of one's own."""

    mime_type = "text/x-semicolons"
    accepts = ("text/x-semicolons",)

    async def from_http_request(self, request: Request) -> list[str]:
        body = await self.body_of(request)
        if not body:
            raise adapter.exceptions.BadInput(f"The body is empty; {self.advice}.")
        return body.decode().split(";")

    async def to_http_response(self, obj: Any, ctx: adapter.Context | None = None) -> Response:
        return self.respond(";".join(obj).encode(), ctx)

    def python_type(self) -> type:
        return list

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string"}


svc = adapter.Service("descriptors")


@svc.api(input=Image(), output=JSON())
def look(image: PIL.Image.Image) -> Any:
    return {"size": image.size, "mode": image.mode, "mean": float(np.asarray(image).mean())}


@svc.api(input=Image(pilmode="RGBA"), output=Image(pilmode="RGBA", mime_type="image/png"))
async def turn(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.transpose(PIL.Image.Transpose.ROTATE_90)


@svc.api(input=NumpyNdarray(dtype="uint8", enforce_dtype=True), output=Image(pilmode="L", mime_type="image/png"))
def paint(pixels: npt.NDArray[np.uint8], ctx: adapter.Context) -> npt.NDArray[np.uint8]:
    ctx.response.headers["x-painted"] = "yes"
    return pixels


@svc.api(input=File(), output=JSON())
def weigh(file: UploadedFile) -> Any:
    return {"name": file.name, "type": file.content_type, "size": len(file.read()), "in_memory": file.in_memory}


@svc.api(input=Text(), output=File(mime_type="application/pdf"))
def print_out(size: str) -> io.BytesIO:
    return io.BytesIO(b"%PDF" + bytes(int(size) - 4))


@svc.api(
    input=Multipart(
        arr=NumpyNdarray(shape=(-1, 4), dtype=np.float32, enforce_dtype=True, enforce_shape=True),
        json=JSON(pydantic_model=IrisFeatures),
    ),
    output=NumpyNdarray.from_sample(np.array([2])),
)
def multi_part_predict(arr: npt.NDArray[np.float32], json: IrisFeatures) -> npt.NDArray[Any]:
    return np.array([len(arr) + json.sepal_length])


@svc.api(
    input=Multipart(image=Image(), note=Text(), file=File()),
    output=Multipart(image=Image(mime_type="image/png"), note=Text(), meta=JSON()),
)
async def both(note: str, file: UploadedFile, image: PIL.Image.Image, ctx: adapter.Context) -> dict[str, Any]:
    meta = {"agent": ctx.request.headers["user-agent"], "file": file.read().decode(), "mode": image.mode}
    return {"image": image, "note": note.upper(), "meta": meta}


@svc.api(input=Text(), output=Text())
def echo(text: str, ctx: adapter.Context) -> Iterator[str]:
    ctx.response.headers["x-length"] = str(len(text))
    yield from text


@svc.api(input=Text(), output=Text(content_type="text/event-stream"))
async def count(last: str) -> AsyncIterator[SSE]:
    async def events() -> AsyncIterator[SSE]:
        try:
            for number in range(int(last)):
                yield SSE(str(number), event="number")
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0)
            note_down("count closed")

    return events()


@svc.api(input=Text(), output=Text())
async def spell(text: str) -> AsyncIterator[str]:
    for letter in text:
        await asyncio.sleep(0)
        yield f"{letter}-"


@svc.api(input=Text(), output=Text())
def tick(seconds: str) -> Iterator[str]:
    try:
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until:
            yield "tick\n"
            time.sleep(0.01)
    finally:
        note_down("tick closed")


@svc.api(input=Text(), output=Text())
def break_off(when: str) -> Iterator[str]:
    if when == "at once":
        raise KeyError("a secret of the server")
    yield "first"
    raise KeyError("a secret of the server")


@svc.api(input=Semicolons(), output=Semicolons())
def reverse(items: list[str]) -> list[str]:
    return items[::-1]


@svc.api(input=JSON(), output=JSON())
async def read_twice(value: Any, ctx: adapter.Context) -> Any:
    return {"value": value, "body": (await ctx.request.body()).decode()}


def note_down(text: str) -> None:
    with NOTES.open("a") as file:
        file.write(f"{text}\n")

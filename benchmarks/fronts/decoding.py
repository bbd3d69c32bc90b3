"""FastAPI endpoints that decode by hand what `benchmarks.services.decoding` reads."""

import io
from typing import Any

import numpy as np
import orjson
import pandas as pd
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.datastructures import UploadFile

from benchmarks import facts

app = FastAPI()


@app.get("/")
async def ready() -> Response:
    """Tell that it runs."""
    return Response()


@app.post("/image")
async def image(request: Request) -> Response:
    """Tell of an image."""
    return _json(facts.of_image(_image(await request.body())))


@app.post("/array")
async def array(request: Request) -> Response:
    """Tell of an array, which comes as a .npy file or as JSON."""
    body = await request.body()
    if request.headers["content-type"] == "application/x-npy":
        return _json(facts.of_array(np.load(io.BytesIO(body), allow_pickle=False)))
    return _json(facts.of_array(np.array(orjson.loads(body), np.float32)))


@app.post("/frame")
async def frame(request: Request) -> Response:
    """Tell of a data frame."""
    return _json(facts.of_frame(_frame(await request.body())))


@app.post("/both")
async def both(request: Request) -> Response:
    """Tell of an image and of a data frame."""
    async with request.form() as form:
        image, rows = form["image"], form["rows"]
        assert isinstance(image, UploadFile)
        assert isinstance(rows, UploadFile)
        return _json([facts.of_image(_image(await image.read())), facts.of_frame(_frame(await rows.read()))])


def _image(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    return image if image.mode == "RGB" else image.convert("RGB")


def _frame(body: bytes) -> pd.DataFrame:
    frame: pd.DataFrame = pd.DataFrame(orjson.loads(body))
    return frame


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")

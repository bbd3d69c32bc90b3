"""FastAPI and Triton's own client for gRPC, put together by hand, on the entries of `benchmarks.services.larger`."""

import contextlib
import io
import os
from collections.abc import AsyncIterator

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from tritonclient.grpc.aio import InferenceServerClient, InferInput

from adapter import payload

state: dict[str, InferenceServerClient] = {}


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect to Triton for as long as the application lives."""
    async with InferenceServerClient(os.environ["BENCHMARKS_TRITON"]) as client:
        state["triton"] = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def ready() -> Response:
    """Tell that it runs."""
    return Response()


@app.post("/negate")
async def negate(request: Request) -> Response:
    """Send an array of a .npy file through Triton."""
    pixels = np.load(io.BytesIO(await request.body()), allow_pickle=False)
    tensor = InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)
    result = await state["triton"].infer("larger.negative", [tensor])
    file = io.BytesIO()
    np.save(file, result.as_numpy("output_0"))
    return Response(file.getvalue(), media_type="application/x-npy")


@app.post("/classify")
async def classify(request: Request) -> Response:
    """Send rows of JSON through Triton."""
    rows = np.array(orjson.loads(await request.body()), np.float64)
    tensor = InferInput("X", list(rows.shape), "FP64")
    tensor.set_data_from_numpy(rows)
    result = await state["triton"].infer("iris_clf.predict", [tensor])
    kinds = result.as_numpy("output_0")[:, 0]  # Triton knows no tensor without an axis beside that of the batch
    body = orjson.dumps(kinds, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


@app.post("/shout")
async def shout(request: Request) -> Response:
    """Send a text through Triton, as the blob that the entry takes."""
    text = (await request.body()).decode()
    blob = np.frombuffer(payload.encode([[text], {}]), np.uint8)
    tensor = InferInput("payload", list(blob.shape), "UINT8")
    tensor.set_data_from_numpy(blob)
    result = await state["triton"].infer("larger.capitals", [tensor])
    return Response(payload.decode(result.as_numpy("payload").data), media_type="text/plain")

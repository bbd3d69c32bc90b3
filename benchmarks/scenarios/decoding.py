"""Bodies that are expensive to read: what our descriptors cost more than decoding by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
from PIL import Image

from benchmarks import answers, facts
from benchmarks.by_hand import Endpoint, Servers
from benchmarks.comparison import JSON
from benchmarks.load import Sample
from benchmarks.sizes import FLOATS
from benchmarks.stage import Stage

_SAMPLES = 3
_PIXELS = 224
_ROWS = 1000
_BOUNDARY = "a-boundary-that-is-nowhere-else"


def start(stage: Stage) -> Servers:
    """Our front, and the one by hand; no runner is involved."""
    return stage.adapter("benchmarks.services.decoding:svc"), stage.uvicorn("benchmarks.fronts.decoding:app")


def images() -> list[Sample]:
    """Images as PNG."""
    return [Sample(_png(image), answers.same_json(facts.of_image(image))) for image in _images()]


def npy_arrays() -> list[Sample]:
    """Arrays of 1 MB as .npy files."""
    return [Sample(answers.npy(array), answers.same_json(facts.of_array(array))) for array in _arrays()]


def json_arrays() -> list[Sample]:
    """Arrays of 1 MB as JSON."""
    bodies = [orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY) for array in _arrays()]
    return [Sample(b, answers.same_json(facts.of_array(a))) for a, b in zip(_arrays(), bodies, strict=True)]


def frames() -> list[Sample]:
    """Data frames as JSON, an object for each row."""
    return [Sample(_records(frame), answers.same_json(facts.of_frame(frame))) for frame in _frames()]


def forms() -> list[Sample]:
    """An image and a data frame in a form."""
    found = []
    for image, frame in zip(_images(), _frames(), strict=True):
        parts = [("image", "image/png", _png(image)), ("rows", "application/json", _records(frame))]
        told = [facts.of_image(image), facts.of_frame(frame)]
        found.append(Sample(form(parts), answers.same_json(told)))
    return found


def form(parts: Sequence[tuple[str, str, bytes]]) -> bytes:
    """The body of a form of files, each with its name and content type."""
    lines = []
    for name, content_type, content in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{name}"'
        head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: {content_type}\r\n\r\n"
        lines += [head.encode(), content, b"\r\n"]
    return b"".join([*lines, f"--{_BOUNDARY}--\r\n".encode()])


def _images() -> list[Image.Image]:
    """Gradients under noise, which compress about as well as photographs."""
    found = []
    for seed in range(_SAMPLES):
        random = np.random.default_rng(seed)
        gradient = np.add.outer(np.arange(_PIXELS), np.arange(_PIXELS))[..., None] / 2
        noise = random.integers(0, 16, (_PIXELS, _PIXELS, 3))
        found.append(Image.fromarray((gradient + noise).astype(np.uint8)))
    return found


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _arrays() -> list[npt.NDArray[np.float32]]:
    return [np.random.default_rng(seed).random((FLOATS // 512, 512), np.float32) for seed in range(_SAMPLES)]


def _frames() -> list[pd.DataFrame]:
    found = []
    for seed in range(_SAMPLES):
        random = np.random.default_rng(seed)
        columns: dict[str, Any] = {
            "age": random.integers(18, 90, _ROWS),
            "income": random.normal(40_000, 9_000, _ROWS).round(2),
            "height": random.normal(1.7, 0.1, _ROWS).round(3),
            "city": random.choice(["Berlin", "Lagos", "Lima", "Osaka"], _ROWS),
            "member": random.random(_ROWS) < 0.5,
        }
        found.append(pd.DataFrame(columns))
    return found


def _records(frame: pd.DataFrame) -> bytes:
    return frame.to_json(orient="records").encode()


_PNG = {"Content-Type": "image/png"}
_NPY = {"Content-Type": "application/x-npy"}
_FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_NOTES = (
    "By hand: FastAPI endpoints that read the body themselves with orjson, numpy, Pillow and pandas, under uvicorn "
    "with the settings of ours, without an access log. Both answer with the same short JSON document.",
)

ENDPOINTS = (
    Endpoint("png", f"PNG of {_PIXELS}x{_PIXELS} in, JSON out", "/image", images, _PNG, _NOTES),
    Endpoint("npy", "1 MB float32 array in, as .npy", "/array", npy_arrays, _NPY, _NOTES),
    Endpoint("json", "1 MB float32 array in, as JSON", "/array", json_arrays, JSON, _NOTES),
    Endpoint("frame", f"DataFrame of {_ROWS:,} rows in, as JSON", "/frame", frames, JSON, _NOTES),
    Endpoint("form", "PNG and DataFrame in one form", "/both", forms, _FORM, _NOTES),
)
SCENARIOS = tuple(endpoint.comparison(start, floor=0.8) for endpoint in ENDPOINTS)

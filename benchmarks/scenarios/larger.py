"""Larger work through Triton: what our front costs more than one that is written by hand for it."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import answers
from benchmarks.by_hand import Endpoint, Servers
from benchmarks.comparison import JSON
from benchmarks.load import Sample
from benchmarks.sizes import FLOATS, ROWS, TEXT_BYTES
from benchmarks.stage import Stage

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
TEXT = {"Content-Type": "text/plain"}
_SAMPLES = 3


def start(stage: Stage) -> Servers:
    """Our front, and the one by hand with a tritonserver on the same entries."""
    stage.train_iris()
    ours = stage.adapter("benchmarks.services.larger:svc")
    triton = stage.triton()
    return ours, stage.uvicorn("benchmarks.fronts.larger:app", env={"BENCHMARKS_TRITON": triton.grpc})


def arrays() -> list[Sample]:
    """Arrays of 1 MB, and their negatives."""
    pixels = [np.random.default_rng(i).random((1, FLOATS), np.float32) for i in range(_SAMPLES)]
    return [Sample(answers.npy(array), answers.same_npy(-array)) for array in pixels]


def rows() -> list[Sample]:
    """Batches of irises, of which every fourth is of another kind."""
    setosa, virginica = [5.1, 3.5, 1.4, 0.2], [5.9, 3.0, 5.1, 1.8]
    kinds = [[2 if (row + shift) % 4 == 0 else 0 for row in range(ROWS)] for shift in range(_SAMPLES)]
    bodies = [json.dumps([virginica if kind else setosa for kind in batch]).encode() for batch in kinds]
    return [Sample(body, answers.same_json(batch)) for body, batch in zip(bodies, kinds, strict=True)]


def texts() -> list[Sample]:
    """Texts of 100 KB, and the same in capitals."""
    words = [f"the quick brown fox {i} jumps over the lazy dog\n" for i in range(_SAMPLES)]
    found = [(word * (TEXT_BYTES // len(word) + 1))[:TEXT_BYTES] for word in words]
    return [Sample(text.encode(), answers.same_text(text.upper())) for text in found]


_NOTE = (
    "By hand: FastAPI and tritonclient.grpc.aio, which call a tritonserver of the same installation on the same "
    "repository, under uvicorn with the settings of ours, without an access log."
)
_BLOB = (
    "The entry takes adapter's blob, so the front by hand writes and reads it with adapter.payload: a method with a "
    "tensor of its own would be another entry."
)

ENDPOINTS = (
    Endpoint("arrays", "1 MB float32 array in and out, as .npy, through a runner", "/negate", arrays, NPY, (_NOTE,)),
    Endpoint("rows", f"Batch of {ROWS} rows, as JSON, through a runner", "/classify", rows, JSON, (_NOTE,)),
    Endpoint("blob", "Text of 100 KB through a runner, as a blob", "/shout", texts, TEXT, (_NOTE, _BLOB)),
)
SCENARIOS = tuple(endpoint.comparison(start, floor=0.9) for endpoint in ENDPOINTS)

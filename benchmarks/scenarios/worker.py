"""What it costs that user code runs in a worker process, and not in Triton's stub."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from benchmarks.comparison import Comparison, Contender
from benchmarks.findings import Difference, Ratio
from benchmarks.load import Sample
from benchmarks.stage import Stage

SIZES = {"small": ("32 B", 8), "large": ("4 MB", 1 << 20)}  # and how many float32 that are
_ENTRY, _HAND = "doubling.worker", "doubling.stub"


def contenders(stage: Stage) -> Sequence[Contender]:
    """The entry, and a model that is written by hand, on one tritonserver."""
    stage.export("benchmarks.services.doubling:svc")
    stage.by_hand(_HAND, like=_ENTRY, model="doubling.py")
    triton = stage.triton()
    return [
        Contender(
            f"{where}_{key}", f"{text} through {told}", triton.server, f"/v2/models/{entry}/infer", samples, headers
        )
        for key, (text, count) in SIZES.items()
        for samples, headers in [_binary(count)]
        for where, entry, told in (("worker", _ENTRY, "our worker"), ("stub", _HAND, "a model.py by hand"))
    ]


def _binary(count: int) -> tuple[list[Sample], dict[str, str]]:
    """Requests in Triton's binary form, and what says where their numbers begin."""
    tensor = {"name": "x", "shape": [1, count], "datatype": "FP32", "parameters": {"binary_data_size": 4 * count}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    def sample(seed: int) -> Sample:
        x = np.random.default_rng(seed).random(count, np.float32)
        return Sample(head + x.tobytes(), lambda answer: answer.endswith((x * np.float32(2)).tobytes()))

    return [sample(n) for n in range(3)], {"Inference-Header-Content-Length": str(len(head))}


SCENARIOS = (
    Comparison(
        "worker",
        "User code in a worker process, and in Triton's stub",
        contenders,
        (
            Difference("worker_small", "stub_small", "p50_ms", at=1, ceiling=0.15),
            Difference("worker_large", "stub_large", "p50_ms", at=1),
            Ratio("worker_small", "stub_small"),
            Ratio("worker_large", "stub_large"),
        ),
        connections=(1, 16),
        notes=(
            "Both behind the HTTP of one tritonserver, with the same configuration; the numbers travel in Triton's "
            "binary form.",
        ),
    ),
)

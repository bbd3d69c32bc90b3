"""What batching is worth to a method whose time does not depend on the size of its batch."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks import answers
from benchmarks.comparison import Comparison, Contender
from benchmarks.findings import Ratio
from benchmarks.load import Sample
from benchmarks.stage import Stage

_SAMPLES = [Sample(json.dumps([[n]]).encode(), answers.same_json([[-n]])) for n in (1.5, 2.5, 3.5)]


def contenders(stage: Stage) -> Sequence[Contender]:
    """The same work with batching, and without it."""
    server = stage.adapter("benchmarks.services.sleeping:svc")
    return [
        Contender("on", "5 ms a batch of up to 32", server, "/together", _SAMPLES),
        Contender("off", "5 ms a call", server, "/alone", _SAMPLES),
    ]


SCENARIOS = (
    Comparison(
        "batching",
        "A Runnable that sleeps 5 ms a batch, with batching and without",
        contenders,
        (Ratio("on", "off", at=32, floor=15),),
        connections=(1, 32),
        notes=("One instance each.",),
    ),
)

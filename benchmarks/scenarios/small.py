"""Small requests: one iris, as JSON. What is measured is what each layer costs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from benchmarks import answers
from benchmarks.comparison import Comparison, Contender
from benchmarks.findings import Ratio
from benchmarks.load import Sample
from benchmarks.stage import IRIS, Stage

ROWS = (([5.9, 3.0, 5.1, 1.8], 2), ([5.1, 3.5, 1.4, 0.2], 0), ([6.0, 2.9, 4.5, 1.5], 1))
ECHOED = [Sample(json.dumps([row]).encode(), answers.same_json([row])) for row, _ in ROWS]
CLASSIFIED = [Sample(json.dumps([row]).encode(), answers.same_json([kind])) for row, kind in ROWS]


def contenders(workers: int) -> Callable[[Stage], Sequence[Contender]]:
    """The five layers, with so many processes each."""

    def start(stage: Stage) -> Sequence[Contender]:
        stage.train_iris()
        yardstick = stage.uvicorn("benchmarks.fronts.echo:app", workers=workers)
        echo = stage.adapter("benchmarks.services.echo:svc", workers=workers)
        iris = stage.adapter("service:svc", working_dir=IRIS, workers=workers)
        triton = stage.triton()
        return [
            Contender("a", "Starlette, echo of the body", yardstick, "/echo", ECHOED),
            Contender("b", "adapter, echo of the array", echo, "/echo", ECHOED),
            Contender("c", "adapter, iris, async", iris, "/classify_async", CLASSIFIED),
            Contender("d", "adapter, iris, sync", iris, "/classify", CLASSIFIED),
            Contender("e", "Triton's own HTTP, iris", triton.server, "/v2/models/iris_clf.predict/infer", _kserve()),
        ]

    return start


def _kserve() -> list[Sample]:
    def body(row: list[float]) -> bytes:
        tensor = {"name": "X", "shape": [1, len(row)], "datatype": "FP64", "data": row}
        return json.dumps({"inputs": [tensor]}).encode()

    return [Sample(body(row), answers.triton_output([kind])) for row, kind in ROWS]


_NOTES = (
    "All take and give JSON. (a) runs under uvicorn with the settings of our front, without an access log; (b) to (d) "
    "have access log and metrics on, as by default.",
    "(e) is a tritonserver of the same installation on the same repository, since the embedded one answers gRPC alone; "
    "it serves with threads of its own, whatever the number of workers.",
)

SCENARIOS = (
    Comparison(
        "small",
        "Small requests, one worker",
        contenders(1),
        (
            Ratio("b", "a", at=64, floor=0.7),
            Ratio("c", "b", at=64, floor=0.8, aim=0.95),
            Ratio("d", "b", at=64, floor=0.35, aim=0.5),
            Ratio("c", "e"),
            Ratio("c", "e", "p50_ms", at=1, only=True, ceiling=3, aim=1.8),
        ),
        notes=_NOTES,
    ),
    Comparison(
        "workers",
        "Small requests, as many workers as CPUs",
        contenders(len(os.sched_getaffinity(0))),
        (Ratio("b", "a"), Ratio("c", "b"), Ratio("d", "b"), Ratio("c", "e")),
        threads=max(1, len(os.sched_getaffinity(0)) // 2),
        notes=_NOTES,
    ),
)

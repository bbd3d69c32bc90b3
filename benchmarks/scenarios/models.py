"""Saved models through their entries, and through a model.py that calls the library itself, on one tritonserver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.comparison import Comparison, Contender
from benchmarks.findings import Ratio
from benchmarks.load import Sample
from benchmarks.stage import ROOT, Stage

FEATURES, CLASSES = 30, 3
BATCHES = (1, 256)
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Model:
    """A saved model: its entry, the tensor that it takes, and the file of `benchmarks/stubs/` that does the same."""

    key: str
    title: str
    entry: str
    input: str
    dtype: str
    answer: str
    sums_to_one: bool = False

    @property
    def in_stub(self) -> str:
        """Its entry of a runner that is not isolated."""
        runner, method = self.entry.split(".")
        return f"{runner}_in_stub.{method}"


_TREES = _Model("trees", "100 trees of scikit-learn", "bench_trees.predict_proba", "X", "FP64", "<f8", True)
_GRAPH = _Model("graph", "MLP in ONNX Runtime", "bench_graph.run", "x0", "FP32", "<f4")
_EAGER = _Model("eager", "MLP in eager PyTorch", "bench_eager.__call__", "input", "FP32", "<f4")
_SCRIPT = _Model("script", "MLP in TorchScript", "bench_script.__call__", "input", "FP32", "<f4")


def _contenders(service: str, train: str, *models: _Model) -> Callable[[Stage], Sequence[Contender]]:
    def start(stage: Stage) -> Sequence[Contender]:
        stage.run([sys.executable, "-m", f"benchmarks.services.{train}"], ROOT)
        stage.export(f"benchmarks.services.{service}:svc")
        for model in models:
            stage.by_hand(f"{model.key}_by_hand", like=model.entry, model=f"{model.key}.py")
        triton = stage.triton()
        found = []
        for model in models:
            for rows in BATCHES:
                samples, headers = _binary(model, rows)
                for whose, entry, told in (
                    ("ours", model.entry, "our entry"),
                    ("stub", model.in_stub, "our entry, not isolated"),
                    ("hand", f"{model.key}_by_hand", "a model.py by hand"),
                ):
                    path = f"/v2/models/{entry}/infer"
                    key = f"{model.key}_{rows}_{whose}"
                    name = f"{model.title}, {rows} row{'s' if rows > 1 else ''}, {told}"
                    found.append(Contender(key, name, triton.server, path, samples, headers))
        return found

    return start


def _binary(model: _Model, rows: int) -> tuple[list[Sample], dict[str, str]]:
    """Requests in Triton's binary form, and what says where their numbers begin."""
    dtype = np.dtype(model.answer)
    size = {"binary_data_size": rows * FEATURES * dtype.itemsize}
    tensor = {"name": model.input, "shape": [rows, FEATURES], "datatype": model.dtype, "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    def is_right(answer: bytes) -> bool:
        scores = np.frombuffer(answer[-rows * CLASSES * dtype.itemsize :], dtype).reshape(rows, CLASSES)
        if model.sums_to_one:
            return bool((abs(scores.sum(axis=1) - 1) < _TOLERANCE).all() and scores.min() >= 0)
        return bool((scores == np.rint(scores)).all() and scores.any())

    random = np.random.default_rng(0)
    bodies = [head + random.integers(-3, 4, (rows, FEATURES)).astype(dtype).tobytes() for _ in range(3)]
    return [Sample(body, is_right) for body in bodies], {"Inference-Header-Content-Length": str(len(head))}


def _ratios(*models: _Model) -> tuple[Ratio, ...]:
    keys = [f"{model.key}_{rows}" for model in models for rows in BATCHES]
    return tuple(Ratio(f"{key}_{whose}", f"{key}_hand", floor=0.8) for key in keys for whose in ("ours", "stub"))


_NOTE = (
    "Both behind the HTTP of one tritonserver, with the same configuration; the numbers travel in Triton's binary "
    "form. By hand: the requests of a batch are joined to one call of the library, in Triton's stub. Our entry runs "
    "the library in a process of its own, unless its runner is not isolated: then in the stub, too."
)


SCENARIOS = (
    Comparison(
        "models",
        "Saved models, and a model.py by hand",
        _contenders("models", "train_models", _TREES, _GRAPH),
        _ratios(_TREES, _GRAPH),
        connections=(1, 16),
        notes=(_NOTE,),
    ),
    Comparison(
        "torch",
        "Modules of PyTorch, and a model.py by hand",
        _contenders("torch_models", "train_torch", _EAGER, _SCRIPT),
        _ratios(_EAGER, _SCRIPT),
        connections=(1, 16),
        notes=(_NOTE,),
        by_default=False,  # it needs an environment that has PyTorch
    ),
)

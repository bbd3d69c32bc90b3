"""Saves the models of `benchmarks.services.models`: `python -m benchmarks.services.train_models`."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier

import adapter

FEATURES, HIDDEN, CLASSES, TREES = 30, 256, 3, 100
BATCHED = {"batchable": True}


def main() -> None:
    """Train, and save."""
    x, y = make_classification(1000, FEATURES, n_informative=10, n_classes=CLASSES, random_state=0)
    trees = GradientBoostingClassifier(n_estimators=TREES, random_state=0).fit(x, y)
    adapter.sklearn.save_model("bench_trees", trees, signatures={"predict_proba": BATCHED}, sample=x)
    adapter.onnx.save_model("bench_graph", perceptron(), signatures={"run": BATCHED})


def perceptron() -> onnx.ModelProto:
    """A multi-layer perceptron, with whole numbers as weights: its sums are the same in any order, in any batch."""
    random, sizes = np.random.default_rng(0), (FEATURES, HIDDEN, HIDDEN, CLASSES)
    nodes, weights = [], []
    for i, (height, width) in enumerate(itertools.pairwise(sizes)):
        values = random.integers(-1, 2, (height, width)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], ["y" if last else f"m{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"x{i + 1}"]))
    inputs = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", FEATURES])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])]
    graph = helper.make_graph(nodes, "perceptron", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


if __name__ == "__main__":
    main()

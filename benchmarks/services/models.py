"""Saved models as runners, of which the entries alone are called."""

import adapter

MOST = 256

trees = adapter.sklearn.get("bench_trees:latest").to_runner(max_batch_size=MOST)
graph = adapter.onnx.get("bench_graph:latest").to_runner(max_batch_size=MOST)
svc = adapter.Service("models", runners=[trees, graph])

"""Saved models as runners, of which the entries alone are called."""

import adapter

MOST = 256

saved = [adapter.sklearn.get("bench_trees:latest"), adapter.onnx.get("bench_graph:latest")]
runners = [model.to_runner(max_batch_size=MOST) for model in saved]
in_stub = [model.to_runner(name=f"{model.tag.name}_in_stub", max_batch_size=MOST, isolated=False) for model in saved]
svc = adapter.Service("models", runners=[*runners, *in_stub])

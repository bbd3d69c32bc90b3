"""Modules of PyTorch as runners, of which the entries alone are called."""

import adapter

MOST = 256

saved = [adapter.pytorch.get("bench_eager:latest"), adapter.torchscript.get("bench_script:latest")]
runners = [model.to_runner(max_batch_size=MOST) for model in saved]
in_stub = [model.to_runner(name=f"{model.tag.name}_in_stub", max_batch_size=MOST, isolated=False) for model in saved]
svc = adapter.Service("torch_models", runners=[*runners, *in_stub])

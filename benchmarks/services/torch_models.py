"""Modules of PyTorch as runners, of which the entries alone are called."""

import adapter

MOST = 256

eager = adapter.pytorch.get("bench_eager:latest").to_runner(max_batch_size=MOST)
script = adapter.torchscript.get("bench_script:latest").to_runner(max_batch_size=MOST)
svc = adapter.Service("torch_models", runners=[eager, script])

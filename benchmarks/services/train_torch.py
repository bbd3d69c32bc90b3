"""Saves the models of `benchmarks.services.torch_models`: `python -m benchmarks.services.train_torch`."""

from __future__ import annotations

import numpy as np
import torch

import adapter
from adapter.frameworks.torchscript import undeprecated

FEATURES, HIDDEN, CLASSES = 30, 256, 3
SIGNATURES = {"__call__": {"batchable": True}}


def main() -> None:
    """Make a multi-layer perceptron as `train_models` makes one, and save it, eager and compiled."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU()]
    eager = torch.nn.Sequential(*layers, torch.nn.Linear(HIDDEN, CLASSES)).eval()
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    sample = np.random.default_rng(0).integers(-3, 4, (300, FEATURES)).astype(np.float32)
    adapter.pytorch.save_model("bench_eager", eager, signatures=SIGNATURES, sample=sample)
    with undeprecated():
        compiled = torch.jit.script(eager)
    adapter.torchscript.save_model("bench_script", compiled, signatures=SIGNATURES, sample=sample)


if __name__ == "__main__":
    main()

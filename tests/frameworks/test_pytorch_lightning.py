from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as lightning
import torch

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import pytorch_lightning
from adapter.tensor import TensorSpec

Call = Callable[..., Any]
ROWS = np.random.default_rng(0).normal(size=(6, 4))


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.linear, self.dropout = torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x)).softmax(dim=1)

    def training_step(self, batch: Any, index: int) -> Any:
        rows, labels = batch
        return torch.nn.functional.cross_entropy(self.linear(rows), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Uncompiled(Classifier):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return eval("x")  # what TorchScript has not


@pytest.fixture(scope="module")
def trained() -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = model.configure_optimizers()
    rows = torch.from_numpy(ROWS).float()
    for _ in range(3):
        optimizer.zero_grad()
        model.training_step((rows, torch.tensor([0, 1, 0, 1, 0, 1])), 0).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def call(trained: Classifier, adapter_home: Any, serve_models: Callable[..., Call]) -> Call:
    signatures = {"__call__": {"batchable": True}}
    pytorch_lightning.save_model("lit", trained, signatures=signatures)
    pytorch_lightning.save_model("sampled", trained, signatures=signatures, sample=ROWS)
    return serve_models(models.get("lit"), models.get("sampled"))


def test_save_model_when_it_is_trained(trained: Classifier) -> None:
    saved = pytorch_lightning.save_model("once", trained, sample=ROWS)
    assert trained.training  # as it was
    signature = models.get("once").info.signatures["__call__"]
    assert signature.inputs == (TensorSpec("float32", (-1, 4), "x"),)
    assert signature.outputs == (TensorSpec("float32", (-1, 2), "output_0"),)
    assert "torch" in saved.info.context["framework_versions"]
    assert "pytorch-lightning" not in saved.info.context["framework_versions"]


def test_save_model_when_it_is_no_lightning_module() -> None:
    with pytest.raises(InvalidArgument, match="saves a LightningModule, not a Linear"):
        pytorch_lightning.save_model("wrong", torch.nn.Linear(1, 1))


def test_save_model_when_it_cannot_be_compiled() -> None:
    with pytest.raises(InvalidArgument, match=r"This Uncompiled cannot be compiled.* save it with adapter\.pytorch"):
        pytorch_lightning.save_model("wrong", Uncompiled())


def test_load_model_when_lightning_is_not_imported(trained: Classifier) -> None:
    pytorch_lightning.save_model("alone", trained)
    code = (
        "import sys, torch, adapter\n"
        "model = adapter.pytorch_lightning.load_model('alone')\n"
        "print(model(torch.ones(1, 4)).shape, 'pytorch_lightning' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert done.stdout == "torch.Size([1, 2]) False\n"


def test_call_gives_what_the_model_does(trained: Classifier, call: Call) -> None:
    with torch.inference_mode():
        wanted = trained.eval()(torch.from_numpy(ROWS).float())
    torch.testing.assert_close(call("lit", "__call__", ROWS), wanted)
    np.testing.assert_allclose(call("sampled", "__call__", ROWS), wanted.numpy(), rtol=1e-5)

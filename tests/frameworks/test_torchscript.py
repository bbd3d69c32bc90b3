from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import pytorch, torchscript
from adapter.model import Parameter
from adapter.tensor import TensorSpec

Call = Callable[..., Any]
BATCHABLE: dict[str, dict[str, Any]] = {"__call__": {"batchable": True}}
ROWS = np.random.default_rng(0).normal(size=(5, 4))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.dropout(self.linear(x)).softmax(dim=1) * scale


def compiled(how: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return how(Net())


def wanted(rows: Any) -> Any:
    with torch.inference_mode():
        return Net().eval()(torch.from_numpy(rows).float())


@pytest.fixture(scope="module")
def call(adapter_home: Any, serve_models: Callable[..., Call]) -> Call:
    torchscript.save_model("scripted", compiled(torch.jit.script), signatures=BATCHABLE)
    traced = compiled(lambda net: torch.jit.trace(net.eval(), torch.zeros(2, 4)))
    torchscript.save_model("traced", traced, signatures=BATCHABLE, sample=ROWS)
    return serve_models(models.get("scripted"), models.get("traced"))


def test_save_model_when_it_is_scripted() -> None:
    model = compiled(torch.jit.script)
    signature = torchscript.save_model("plain", model).info.signatures["__call__"]
    assert signature.parameters == (Parameter("x"), Parameter("scale", required=False))
    assert not signature.typed
    assert model.training  # as it was
    info = models.get("plain").info
    assert (info.module, set(info.context["framework_versions"])) == ("adapter.torchscript", {"torch"})


def test_save_model_when_there_is_a_sample() -> None:
    signature = torchscript.save_model(
        "sampled", compiled(torch.jit.script), signatures=BATCHABLE, sample=ROWS
    ).info.signatures["__call__"]
    assert signature.inputs == (TensorSpec("float32", (-1, 4), "x"),)
    assert signature.outputs == (TensorSpec("float32", (-1, 3), "output_0"),)


def test_save_model_when_it_is_frozen() -> None:
    frozen = compiled(lambda net: torch.jit.freeze(torch.jit.script(net.eval())))
    model = torchscript.save_model("frozen", frozen, signatures=BATCHABLE, sample=ROWS)
    assert model.info.signatures["__call__"].typed
    runner = model.to_runner()
    runner.init_local(quiet=True)
    assert np.allclose(runner.run(ROWS.astype("float32")), wanted(ROWS))
    runner.destroy()


def test_save_model_when_it_is_not_compiled() -> None:
    with pytest.raises(InvalidArgument, match=r"made of a Net; adapter\.pytorch saves the module itself"):
        torchscript.save_model("wrong", Net())
    with pytest.raises(InvalidArgument, match="not a dict"):
        torchscript.save_model("wrong", {})
    with pytest.raises(InvalidArgument, match=r"save it with adapter\.torchscript"):
        pytorch.save_model("wrong", compiled(torch.jit.script))


def test_load_model_when_the_class_is_not_there() -> None:
    """TorchScript carries its code: a process that never saw the class runs it, and files that lie in it come out."""
    torchscript.save_model("alone", compiled(torch.jit.script))
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, adapter\n"
        "model = adapter.torchscript.load_model('alone', device_id='cpu', _extra_files={})\n"
        "print(model.training, model(torch.ones(1, 4), 2.0).sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    training, total = done.stdout.split()
    assert training == "False"
    assert float(total) == pytest.approx(2)


def test_call_when_nothing_is_known_of_the_tensors(call: Call) -> None:
    found = call("scripted", "__call__", ROWS)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, wanted(ROWS))
    torch.testing.assert_close(call("scripted", "__call__", ROWS, scale=2.0), 2 * wanted(ROWS))


def test_call_when_the_signature_is_typed(call: Call) -> None:
    found = call("traced", "__call__", ROWS)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted(ROWS).numpy(), rtol=1e-5)
    with pytest.raises(InvalidArgument, match=r"\(-1, 4\)"):
        call("traced", "__call__", np.zeros((1, 5)))

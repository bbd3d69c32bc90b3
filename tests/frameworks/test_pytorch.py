from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch

import adapter
from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import pytorch
from adapter.runnable import supports_gpu, supports_threads
from adapter.tensor import TensorSpec

Call = Callable[..., Any]
BATCHABLE: dict[str, dict[str, Any]] = {"__call__": {"batchable": True}}
ROWS = np.random.default_rng(0).normal(size=(5, 4))


class Net(torch.nn.Module):
    """Two layers; what dropout and batch normalization do in training would show."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        return self.layers(x).softmax(dim=1)


class Words(torch.nn.Module):
    """Two inputs, of which one has a default, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 6)

    def forward(self, ids: Any, scale: Any = None) -> Any:
        means = self.embedding(ids).mean(dim=1)
        return (means if scale is None else means * scale), ids.sum(dim=1)


class Told(torch.nn.Module):
    """Says what it was called with, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *values: Any, **more: Any) -> dict[str, Any]:
        kinds = [f"{v.dtype} {v.device.type}" if isinstance(v, torch.Tensor) else type(v).__name__ for v in values]
        return {
            "kinds": kinds,
            "more": {key: str(getattr(value, "dtype", value)) for key, value in more.items()},
            "inference": torch.is_inference_mode_enabled(),
            "training": self.training,
            "threads": torch.get_num_threads(),
            "process": os.getpid(),
        }

    def half(self, x: Any) -> Any:
        return x.to(torch.bfloat16) / 2


def net(model: Any = None) -> Any:
    torch.manual_seed(0)
    made = (model or Net)()
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean = torch.arange(8.0) / 8
    return made


def expected(model: Any, *args: Any) -> Any:
    was = model.training
    with torch.inference_mode():
        result = model.eval()(*args)
    model.train(was)
    return result


@pytest.fixture(scope="module")
def call(adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    pytorch.save_model("net", net(), signatures=BATCHABLE)
    pytorch.save_model("typed", net(), signatures=BATCHABLE, sample=ROWS)
    ids = np.arange(12).reshape(3, 4) % 10
    pytorch.save_model("words", net(Words), signatures=BATCHABLE, sample=ids)
    pytorch.save_model(
        "told", net(Told), signatures={"__call__": {}, "half": {}}, partial_kwargs={"__call__": {"k": 2}}
    )
    return serve_models(*(models.get(name) for name in ("net", "typed", "words", "told")), threads=2)


def test_save_model_when_no_signature_is_given() -> None:
    model = net()
    saved = pytorch.save_model("plain", model, labels={"by": "me"}, custom_objects={"names": ["a", "b", "c"]})
    assert model.training  # as it was
    found = models.get("plain")
    assert (found, found.info.module, found.info.labels) == (saved, "adapter.pytorch", {"by": "me"})
    assert found.custom_objects == {"names": ["a", "b", "c"]}
    signature = found.info.signatures["__call__"]
    assert (signature.batchable, signature.typed) == (False, False)
    assert [p.name for p in signature.parameters or ()] == ["x"]
    assert found.info.context["framework_versions"]["torch"] == torch.__version__.partition("+")[0]
    loaded = pytorch.load_model("plain")
    assert not loaded.training
    rows = torch.from_numpy(ROWS).float()
    assert torch.equal(loaded(rows), expected(model, rows))
    runnable = pytorch.get_runnable(found)
    assert supports_gpu(runnable)
    assert supports_threads(runnable)


def test_save_model_when_there_is_a_sample() -> None:
    model = net()
    model.layers[0].eval()
    saved = pytorch.save_model("sampled", model, signatures=BATCHABLE, sample=ROWS)
    assert (model.training, model.layers[0].training, model.layers[1].training) == (True, False, True)
    signature = models.get(saved.tag).info.signatures["__call__"]
    # the sample is of float64, the model of float32
    assert signature.inputs == (TensorSpec("float32", (-1, 4), "x"),)
    assert signature.outputs == (TensorSpec("float32", (-1, 3), "output_0"),)
    assert adapter.pytorch.get("sampled") == saved


def test_save_model_when_the_sample_has_several_inputs() -> None:
    sample = (torch.zeros(2, 4, dtype=torch.int64), np.ones((2, 1)))
    signature = pytorch.save_model("both", net(Words), signatures=BATCHABLE, sample=sample).info.signatures["__call__"]
    assert signature.inputs == (TensorSpec("int64", (-1, 4), "ids"), TensorSpec("float32", (-1, 1), "scale"))
    assert signature.outputs == (TensorSpec("float32", (-1, 6), "output_0"), TensorSpec("int64", (-1,), "output_1"))


@pytest.mark.parametrize("sample", [np.array(["a"]), np.zeros((2, 7)), np.zeros(()), object(), (), {"y": ROWS}])
def test_save_model_when_the_sample_does_not_fit(sample: Any) -> None:
    assert not pytorch.save_model("unfit", net(), signatures=BATCHABLE, sample=sample).info.signatures["__call__"].typed


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (3, "a torch.nn.Module, not a int"),
        (Net, "not the class Net itself"),
        (Net().state_dict(), "not a OrderedDict"),
    ],
)
def test_save_model_when_it_is_no_module(model: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        pytorch.save_model("wrong", model)


def test_save_model_when_a_signature_names_no_method() -> None:
    with pytest.raises(InvalidArgument, match="'predict', which this Net does not have"):
        pytorch.save_model("wrong", net(), signatures={"predict": {"batchable": True}})


def test_save_model_when_it_cannot_be_pickled() -> None:
    model = net()
    model.lock = threading.Lock()
    with pytest.raises(InvalidArgument, match="This Net cannot be pickled"):
        pytorch.save_model("wrong", model)


def test_save_model_when_parts_of_it_are_parametrized() -> None:
    model = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2)))
    with pytest.raises(InvalidArgument, match=r"PyTorch cannot save this Sequential .*remove_parametrizations"):
        pytorch.save_model("wrong", model)
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    pytorch.save_model("right", model)


def test_load_model_when_the_class_was_in_a_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, adapter\n"
        "class Double(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return 2 * x\n"
        "adapter.pytorch.save_model('scripted', Double())\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert pytorch.load_model("scripted", device_id="cpu")(torch.ones(2)).tolist() == [2, 2]


def test_call_when_arrays_come(call: Call) -> None:
    found = call("net", "__call__", ROWS)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected(net(), torch.from_numpy(ROWS).float()))
    assert torch.equal(call("net", "__call__", pd.DataFrame(ROWS)), found)
    assert torch.equal(call("net", "__call__", torch.from_numpy(ROWS).float()), found)


def test_call_when_the_signature_is_typed(call: Call) -> None:
    found = call("typed", "__call__", ROWS)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected(net(), torch.from_numpy(ROWS).float()).numpy(), rtol=1e-5)
    assert np.array_equal(call("typed", "__call__", x=ROWS.tolist()), found)
    with pytest.raises(InvalidArgument, match=r"\(-1, 4\)"):
        call("typed", "__call__", np.zeros((2, 3)))


def test_call_when_the_model_takes_integers(call: Call) -> None:
    ids = np.array([[1, 2, 3, 4], [9, 9, 9, 9]])
    means, sums = call("words", "__call__", ids)
    wanted = expected(net(Words), torch.from_numpy(ids))
    np.testing.assert_allclose(means, wanted[0].numpy(), rtol=1e-5)
    assert sums.tolist() == [10, 36]
    with pytest.raises(adapter.exceptions.AdapterError, match="index out of range"):
        call("words", "__call__", ids + 5)
    assert call("words", "__call__", ids)[1].tolist() == [10, 36]


def test_call_is_in_a_worker_with_its_threads(call: Call) -> None:
    given = [ROWS, torch.ones(2, dtype=torch.int64), np.array([1, 2]), np.ones(1, np.float16), "text", [1.5]]
    said = call("told", "__call__", *given, mask=np.array([True]))
    floats = "torch.float32 cpu"
    assert said["kinds"] == [floats, "torch.int64 cpu", floats, floats, "str", "list"]
    assert said["more"] == {"k": "2", "mask": "torch.float32"}
    assert (said["inference"], said["training"], said["threads"]) == (True, False, 2)
    assert said["process"] != os.getpid()
    halves = call("told", "half", np.array([3.0]))
    assert (halves.dtype, halves.tolist()) == (torch.bfloat16, [1.5])


def test_call_when_an_array_holds_no_numbers(call: Call) -> None:
    with pytest.raises(InvalidArgument, match="takes arrays of numbers, not of <U1"):
        call("net", "__call__", np.array(["a"]))


def test_call_when_the_model_is_of_bfloat16() -> None:
    saved = pytorch.save_model("brain", net().to(torch.bfloat16), signatures=BATCHABLE, sample=ROWS)
    assert saved.info.signatures["__call__"].outputs == (TensorSpec("float32", (-1, 3), "output_0"),)
    runner = saved.to_runner()
    runner.init_local(quiet=True)
    try:
        assert runner.run(ROWS).sum(axis=1) == pytest.approx(np.ones(5), abs=0.02)
    finally:
        runner.destroy()


def test_import_model_when_bentoml_wrote_it(tmp_path: Path) -> None:
    """Its file is the same; the record names another module."""
    torch.save(net(), tmp_path / "saved_model.pt", pickle_module=cloudpickle)
    (tmp_path / "model.yaml").write_text(
        "name: theirs\nversion: abc\nmodule: bentoml.pytorch\nlabels: {}\noptions: {partial_kwargs: null}\n"
        "metadata: {}\ncontext: {framework_name: torch, framework_versions: {torch: 2.1.0}, bentoml_version: 1.1.11,"
        " python_version: 3.11.7}\nsignatures: {__call__: {batchable: true, batch_dim: [0, 0]}}\napi_version: v1\n"
        "creation_time: '2023-11-01T10:00:00+00:00'\n"
    )
    found = models.import_model(str(tmp_path))
    assert (found.info.module, found.info.signatures["__call__"].batchable) == ("adapter.pytorch", True)
    runner = pytorch.to_runner("theirs")
    runner.init_local(quiet=True)
    try:
        torch.testing.assert_close(runner.run(ROWS), expected(net(), torch.from_numpy(ROWS).float()))
    finally:
        runner.destroy()

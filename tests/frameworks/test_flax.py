from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import flax, picklable_model
from adapter.tensor import TensorSpec

Call = Callable[..., Any]
ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
traces: list[tuple[int, ...]] = []


class Net(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        traces.append(x.shape)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.width)(x)

    def both(self, x: Any) -> Any:
        return {"twice": 2 * x, "sum": x.sum(axis=1)}


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x: Any, by: float = 1.0, *, sign: str = "+", axes: Any = ()) -> Any:
        traces.append(x.shape)
        return (x if sign == "+" else -x).sum(axis=tuple(axes)) * by


def net() -> tuple[Any, Any]:
    module = Net()
    return module, module.init(jax.random.PRNGKey(0), ROWS)


def wanted(rows: Any) -> Any:
    module, state = net()
    return np.asarray(module.apply(state, rows))


@pytest.fixture(scope="module")
def call(adapter_home: Any, serve_models: Callable[..., Call]) -> Call:
    batchable: dict[str, dict[str, Any]] = {"__call__": {"batchable": True}}
    flax.save_model("net", *net(), signatures={**batchable, "both": {}})
    flax.save_model("typed", *net(), signatures=batchable, sample=ROWS, partial_kwargs={"__call__": {"train": False}})
    return serve_models(models.get("net"), models.get("typed"))


def test_save_model_when_no_signature_is_given() -> None:
    info = flax.save_model("plain", *net()).info
    assert [p.name for p in info.signatures["__call__"].parameters or ()] == ["x", "train"]
    assert (info.module, info.context["framework_versions"]["jax"]) == ("adapter.flax", jax.__version__)
    module, state = flax.load_model("plain", device="cpu")
    assert np.array_equal(module.apply(state, ROWS), wanted(ROWS))
    _, plain = flax.load_model("plain", init=False)
    assert isinstance(plain["params"]["Dense_0"]["kernel"], np.ndarray)


def test_save_model_when_there_is_a_sample() -> None:
    signature = flax.save_model(
        "sampled", *net(), signatures={"__call__": {"batchable": True}}, sample=ROWS
    ).info.signatures
    assert signature["__call__"].inputs == (TensorSpec("float32", (-1, 4), "x"),)
    assert signature["__call__"].outputs == (TensorSpec("float32", (-1, 3), "output_0"),)


def test_save_model_when_it_is_no_module_with_state() -> None:
    with pytest.raises(InvalidArgument, match=r"saves a flax\.linen\.Module, not a int"):
        flax.save_model("wrong", 3, {})
    with pytest.raises(InvalidArgument, match=r"what its `init` returns.* not a NoneType"):
        flax.save_model("wrong", Net())
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(InvalidArgument, match=r"adapter\.picklable_model saves a module of flax\.nnx"):
        flax.save_model("wrong", linear, {})
    loaded = picklable_model.load_model(picklable_model.save_model("nnx", linear))
    assert np.array_equal(loaded(ROWS), linear(ROWS))


def test_load_model_when_another_process_made_it() -> None:
    code = (
        "import flax.linen as nn, jax, numpy as np, adapter\n"
        "class Double(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return nn.Dense(1)(x) * 0 + 2 * x\n"
        "module = Double()\n"
        "adapter.flax.save_model('script', module, module.init(jax.random.PRNGKey(0), np.ones((1, 1))))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    module, state = flax.load_model("script")
    assert module.apply(state, np.ones((2, 1))).tolist() == [[2], [2]]


def test_call_gives_what_the_model_does(call: Call) -> None:
    for name in ("net", "typed"):
        for rows in (1, 2, 3, 5):
            found = call(name, "__call__", ROWS[:rows])
            assert isinstance(found, np.ndarray)
            np.testing.assert_allclose(found, wanted(ROWS[:rows]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(call("net", "__call__", x=ROWS, train=False), wanted(ROWS), rtol=1e-5, atol=1e-6)
    found = call("net", "both", ROWS)
    np.testing.assert_allclose(found["sum"], ROWS.sum(axis=1), rtol=1e-5)
    with pytest.raises(InvalidArgument, match=r"\(-1, 4\)"):
        call("typed", "__call__", ROWS[:, :2])


def test_call_compiles_for_few_sizes_of_a_batch() -> None:
    model = flax.save_model("few", *net(), signatures={"__call__": {"batchable": True}})
    runner = model.to_runner()
    runner.init_local(quiet=True)
    traces.clear()
    try:
        for rows in (5, 6, 7, 8, 5):
            assert runner.run(np.resize(ROWS, (rows, 4))).shape == (rows, 3)
    finally:
        runner.destroy()
    assert traces == [(8, 4)]


def test_call_when_an_argument_is_no_array() -> None:
    runner = flax.save_model("scale", Scale(), {}).to_runner()
    runner.init_local(quiet=True)
    traces.clear()
    try:
        for by in np.arange(20.0).tolist():
            np.testing.assert_allclose(runner.run(ROWS, by), by * ROWS, rtol=1e-5)
        assert len(traces) == 1
        np.testing.assert_allclose(runner.run(ROWS, sign="-", by=2.0), -2 * ROWS, rtol=1e-5)
        assert len(traces) == 2
        np.testing.assert_allclose(runner.run(ROWS, axes=[0]), ROWS.sum(axis=0), rtol=1e-5)
        for i in range(70):  # more than are kept
            runner.run(ROWS, sign=str(i))
        np.testing.assert_allclose(runner.run(ROWS), ROWS)
    finally:
        runner.destroy()

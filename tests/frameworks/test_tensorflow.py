from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import tensorflow as framework
from adapter.tensor import TensorSpec

Call = Callable[..., Any]
ROWS = np.random.default_rng(0).normal(size=(5, 2))
TABLE = tf.TensorSpec((None, 2), tf.float32)


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable([[1.0], [2.0]])

    @tf.function(input_signature=[TABLE])
    def __call__(self, x: Any) -> Any:
        return x @ self.weight

    @tf.function(input_signature=[TABLE, tf.TensorSpec((), tf.float32)])
    def scaled(self, x: Any, by: Any) -> Any:
        return {"scaled": x * by, "rows": tf.shape(x)[0]}

    @tf.function(input_signature=[TABLE])
    def both(self, x: Any) -> Any:
        return [x + 1, tf.reduce_sum(x, 1)]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def lengths(self, words: Any) -> Any:
        return tf.strings.length(words)

    @tf.function
    def traced(self, x: Any, more: Any = 1.0) -> Any:
        return x + more


class Signed(tf.Module):
    """Served by its signature alone, as what other programs wrote often is."""

    @tf.function(input_signature=[TABLE])
    def _doubled(self, x: Any) -> Any:
        return {"doubled": 2 * x}


def module() -> Any:
    made = Module()
    made.traced(tf.ones((1, 2)))
    return made


@pytest.fixture(scope="module")
def call(adapter_home: Any, serve_models: Callable[..., Call]) -> Call:
    framework.save_model("module", module())
    framework.save_model("batched", module(), signatures={"__call__": {"batchable": True}, "both": {"batchable": True}})
    signed = Signed()
    framework.save_model("signed", signed, tf_signatures={"serving_default": signed._doubled})
    return serve_models(*(models.get(name) for name in ("module", "batched", "signed")))


def test_save_model_when_no_signature_is_given() -> None:
    info = framework.save_model("plain", module()).info
    assert set(info.signatures) == {"__call__", "scaled", "both", "lengths", "traced"}
    assert info.signatures["__call__"].inputs == (TensorSpec("float32", (-1, 2), "x"),)
    assert info.signatures["__call__"].outputs == (TensorSpec("float32", (-1, 1), "output_0"),)
    assert [s.shape for s in info.signatures["both"].outputs or ()] == [(-1, 2), (-1,)]
    assert {name for name, s in info.signatures.items() if s.typed} == {"__call__", "both"}
    assert tf.__version__ in info.context["framework_versions"].values()
    assert models.get("plain").info.signatures == info.signatures
    loaded = framework.load_model("plain", device_name="/CPU:0")
    assert loaded(tf.ones((1, 2))).numpy().tolist() == [[3]]


def test_save_model_when_it_is_no_module() -> None:
    with pytest.raises(InvalidArgument, match="a dict cannot be written as a SavedModel"):
        framework.save_model("wrong", {})
    with pytest.raises(InvalidArgument, match="the method 'predict', which this"):
        framework.save_model("wrong", module(), signatures={"predict": {}})


def test_call_when_the_signature_is_typed(call: Call) -> None:
    wanted = module()(tf.constant(ROWS, tf.float32)).numpy()
    for name in ("module", "batched"):
        found = call(name, "__call__", ROWS)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    more, sums = call("batched", "both", ROWS)
    np.testing.assert_allclose(more, ROWS + 1, rtol=1e-5)
    np.testing.assert_allclose(sums, ROWS.sum(axis=1), rtol=1e-5)
    with pytest.raises(InvalidArgument, match=r"\(-1, 2\)"):
        call("module", "__call__", np.zeros((1, 3)))


def test_call_when_it_travels_as_a_blob(call: Call) -> None:
    found = call("module", "scaled", ROWS.astype(np.float32), 2.0)
    np.testing.assert_allclose(found["scaled"], 2 * ROWS, rtol=1e-5)
    assert found["rows"] == 5
    assert call("module", "lengths", ["a", "bcd"]).tolist() == [1, 3]
    assert call("module", "traced", np.ones((1, 2), np.float32)).tolist() == [[2, 2]]


def test_call_when_only_a_signature_is_there(call: Call) -> None:
    found = call("signed", "serving_default", ROWS)
    np.testing.assert_allclose(found["doubled"], 2 * ROWS, rtol=1e-5)

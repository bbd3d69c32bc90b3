from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import keras as framework
from adapter.tensor import TensorSpec

# Keras reads its own variables in a way that NumPy 2 has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Call = Callable[..., Any]
PREDICT: dict[str, dict[str, Any]] = {"predict": {"batchable": True}}
ROWS = np.random.default_rng(0).normal(size=(5, 4))
PICTURES = np.random.default_rng(1).integers(0, 255, size=(3, 8, 8, 1)).astype(np.float32)


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 0.5


class Own(keras.Model):
    """A model of a person's own class, whose inputs are known only when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def plain() -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Input((4,)),
        Scaled(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(ROWS, np.array([0, 1, 2, 0, 1]), verbose=0)
    return model


def two() -> Any:
    """A picture and a number in, a class and a size out."""
    keras.utils.set_random_seed(1)
    picture, number = keras.layers.Input((8, 8, 1), name="picture"), keras.layers.Input((1,), name="number")
    flat = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(picture))
    both = keras.layers.Concatenate()([flat, number])
    return keras.Model([picture, number], [keras.layers.Dense(2)(both), keras.layers.Dense(1)(both)])


def own() -> Any:
    keras.utils.set_random_seed(2)
    model = Own()
    model(np.ones((1, 4), np.float32))
    return model


@pytest.fixture(scope="module")
def call(adapter_home: Any, serve_models: Callable[..., Call]) -> Call:
    framework.save_model(
        "plain", plain(), signatures={**PREDICT, "__call__": {}}, custom_objects={"tests>Scaled": Scaled}
    )
    framework.save_model("two", two(), signatures=PREDICT)
    framework.save_model("own", own(), signatures=PREDICT, custom_objects={"Own": Own})
    return serve_models(*(models.get(name) for name in ("plain", "two", "own")))


def test_save_model_when_its_inputs_are_known() -> None:
    signature = framework.save_model("known", plain()).info.signatures["predict"]
    assert signature.inputs == (TensorSpec("float32", (-1, 4), "x"),)
    assert signature.outputs == (TensorSpec("float32", (-1, 3), "output_0"),)
    info = models.get("known").info
    assert info.module == "adapter.keras"
    assert info.context["framework_versions"]["keras"] == keras.__version__
    assert len(info.context["framework_versions"]) == 2  # and of its backend
    loaded = framework.load_model("known")
    assert loaded.optimizer is not None  # training can go on
    np.testing.assert_allclose(loaded.predict(ROWS, verbose=0), plain().predict(ROWS, verbose=0), rtol=1e-5)


def test_save_model_when_it_has_several_inputs() -> None:
    signature = framework.save_model("several", two(), signatures=PREDICT).info.signatures["predict"]
    picture, number = TensorSpec("float32", (-1, 8, 8, 1), "picture"), TensorSpec("float32", (-1, 1), "number")
    assert signature.inputs == (picture, number)
    assert [s.shape for s in signature.outputs or ()] == [(-1, 2), (-1, 1)]


def test_save_model_when_a_sample_tells_the_inputs() -> None:
    assert not framework.save_model("own", own()).info.signatures["predict"].typed
    sample = ROWS.astype(np.float32)
    signature = framework.save_model("own", own(), signatures=PREDICT, sample=sample).info.signatures["predict"]
    assert signature.outputs == (TensorSpec("float32", (-1, 2), "output_0"),)


def test_save_model_when_it_is_no_model() -> None:
    with pytest.raises(InvalidArgument, match=r"saves a keras\.Model, not a Dense"):
        framework.save_model("wrong", keras.layers.Dense(1))
    with pytest.raises(InvalidArgument, match="This Own has no weights yet"):
        framework.save_model("wrong", Own())


def test_load_model_when_a_class_of_its_own_came_along() -> None:
    framework.save_model("along", own(), custom_objects={"Own": Own})
    framework.save_model("lone", own())
    code = (
        "import sys, types; sys.modules['tests'] = None\n"
        "import adapter, numpy as np\n"
        "from adapter.exceptions import StateException\n"
        "try: adapter.keras.load_model('lone')\n"
        "except StateException as error: print('custom_objects' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert done.stdout == "True\n"
    assert type(framework.load_model("along")).__name__ == "Own"


def test_predict_gives_what_the_model_does(call: Call) -> None:
    found = call("plain", "predict", ROWS)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, plain().predict(ROWS, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(call("plain", "__call__", ROWS), found, rtol=1e-5)
    np.testing.assert_allclose(call("plain", "predict", ROWS, batch_size=2), found, rtol=1e-5)
    with pytest.raises(InvalidArgument, match=r"\(-1, 4\)"):
        call("plain", "predict", np.zeros((2, 3)))


def test_predict_when_there_are_several_inputs_and_outputs(call: Call) -> None:
    number = np.array([[1], [2], [3]])
    found = call("two", "predict", PICTURES, number)
    wanted = two().predict([PICTURES, number.astype(np.float32)], verbose=0)
    assert isinstance(found, tuple)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)
    named = call("two", "predict", number=number, picture=PICTURES)
    np.testing.assert_array_equal(named[0], found[0])


def test_predict_when_nothing_is_known_of_the_tensors(call: Call) -> None:
    rows = ROWS.astype(np.float32)
    np.testing.assert_allclose(call("own", "predict", rows), own().predict(rows, verbose=0), rtol=1e-5)

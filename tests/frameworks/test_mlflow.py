from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import mlflow as framework
from adapter.tensor import TensorSpec

# of MLflow itself, on models that it writes and reads
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

Call = Callable[..., Any]
PREDICT: dict[str, dict[str, Any]] = {"predict": {"batchable": True}}
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=["a", "b", "c"])
FITTED = sklearn.linear_model.LinearRegression().fit(FRAME, FRAME.sum(axis=1))


def named() -> Any:
    """A model of a person's own, in the form that MLflow gives to such, which warns when the class is made."""

    class Named(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
            frame: pd.DataFrame = model_input.add_prefix("the_")
            return frame

    return Named()


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that MLflow wrote."""
    folder = tmp_path_factory.mktemp("mlflow") / "linear"
    mlflow.sklearn.save_model(FITTED, str(folder), serialization_format="cloudpickle")
    return folder


@pytest.fixture(scope="module")
def call(linear: Path, adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    mine = linear.with_name("named")
    mlflow.pyfunc.save_model(str(mine), python_model=named())
    framework.import_model("linear", linear.as_uri(), signatures=PREDICT)
    framework.import_model("typed", str(linear), signatures=PREDICT, sample=FRAME.to_numpy())
    framework.import_model("named", str(mine), signatures=PREDICT)
    return serve_models(models.get("linear"), models.get("typed"), models.get("named"))


def test_import_model_when_it_lies_in_a_folder(linear: Path) -> None:
    saved = framework.import_model("plain", str(linear), labels={"of": "mlflow"})
    assert (Path(saved.path) / "mlflow_model" / "MLmodel").exists()
    assert models.get("plain").info.module == "adapter.mlflow"
    assert {"mlflow", "scikit-learn"} <= set(saved.info.context["framework_versions"])
    assert "sklearn" in framework.get_mlflow_model("plain").flavors
    np.testing.assert_allclose(framework.load_model("plain").predict(FRAME), FITTED.predict(FRAME))


def test_import_model_when_there_is_a_sample(linear: Path) -> None:
    sample = FRAME.to_numpy()
    signature = framework.import_model("sampled", str(linear), signatures=PREDICT, sample=sample).info.signatures[
        "predict"
    ]
    assert signature.inputs == (TensorSpec("float64", (-1, 3), "data"),)
    assert signature.outputs == (TensorSpec("float64", (-1,), "output_0"),)


@pytest.mark.parametrize("wrong", ["/no/such/folder", "runs:/nothing/model"])
def test_import_model_when_there_is_none(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="There is no model of MLflow"):
        framework.import_model("wrong", wrong)


def test_import_model_when_it_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="has no file MLmodel"):
        framework.import_model("wrong", str(tmp_path))
    with pytest.raises(InvalidArgument, match="its URI or folder, not a LinearRegression"):
        framework.save_model("wrong", FITTED)


def test_load_model_in_a_new_process(linear: Path) -> None:
    framework.import_model("new", str(linear))
    code = "import adapter; print(adapter.mlflow.load_model('new').predict([[1.0, 2.0, 3.0]])[0])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(6)


def test_call_gives_what_the_model_does(call: Call) -> None:
    wanted = FITTED.predict(FRAME)
    np.testing.assert_allclose(call("linear", "predict", FRAME), wanted)
    found = call("typed", "predict", FRAME.to_numpy())
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted)
    assert call("named", "predict", FRAME).equals(FRAME.add_prefix("the_"))

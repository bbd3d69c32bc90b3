from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_iris

from adapter import models
from adapter.exceptions import InvalidArgument, RemoteException
from adapter.frameworks import xgboost as framework
from adapter.model import Signature
from adapter.runnable import supports_gpu, supports_threads
from adapter.services import Service
from adapter.triton.export import plan
from tests.frameworks.conftest import Call, Serve

X, Y = load_iris(return_X_y=True)
NAMES = ["a", "b", "c", "d"]
FRAME = pd.DataFrame(X, columns=NAMES)
COLORS = FRAME.assign(color=pd.Categorical(np.where(Y > 0, "red", "blue")))
BATCHED = {"batchable": True}
HOLES = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)

BOOSTER = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(FRAME, Y), 4)
CLASSIFIER = xgboost.XGBClassifier(n_estimators=4, missing=-1.0).fit(X, Y)
REGRESSOR = xgboost.XGBRegressor(n_estimators=4, enable_categorical=True).fit(COLORS, Y)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


def described(signature: Signature) -> tuple[Any, Any]:
    inputs = [(s.name, s.dtype, s.shape) for s in signature.inputs or ()]
    return inputs, [(s.dtype, s.shape) for s in signature.outputs or ()]


def test_save_model_when_it_is_a_booster() -> None:
    info = framework.save_model("m", BOOSTER).info
    assert described(info.signatures["predict"]) == ([("data", "float32", (-1, 4))], [("float32", (-1, 3))])
    assert info.options == {"model_class": "Booster"}
    assert info.context["framework_versions"]["xgboost-cpu"] == xgboost.__version__
    assert set(info.context["framework_versions"]) == {"numpy", "xgboost-cpu"}
    loaded = framework.load_model("m")
    assert type(loaded) is xgboost.Booster
    assert np.array_equal(loaded.predict(xgboost.DMatrix(FRAME)), BOOSTER.predict(xgboost.DMatrix(FRAME)))


def test_save_model_when_it_follows_scikit_learn() -> None:
    signatures = {"predict": BATCHED, "predict_proba": BATCHED, "apply": BATCHED}
    info = framework.save_model("m", CLASSIFIER, signatures=signatures).info
    rows = [("X", "float32", (-1, 4))]
    assert described(info.signatures["predict"]) == (rows, [("int64", (-1,))])
    assert described(info.signatures["predict_proba"]) == (rows, [("float32", (-1, 3))])
    assert described(info.signatures["apply"])[1] == [("float32", (-1, 12))]
    assert "scikit-learn" in info.context["framework_versions"]
    loaded = framework.load_model("m")
    assert type(loaded) is xgboost.XGBClassifier
    # XGBoost's own file does not hold it
    assert loaded.missing == -1.0
    marked = np.where(np.isnan(HOLES), -1.0, HOLES)
    assert np.array_equal(loaded.predict_proba(marked), CLASSIFIER.predict_proba(marked))


def test_save_model_when_a_feature_is_a_category() -> None:
    info = framework.save_model("m", REGRESSOR, sample=COLORS).info
    assert not info.signatures["predict"].typed
    assert "pandas" in info.context["framework_versions"]
    pd.testing.assert_frame_equal(models.get("m").sample, COLORS)
    assert np.array_equal(framework.load_model("m").predict(COLORS), REGRESSOR.predict(COLORS))


@pytest.mark.parametrize(
    ("keywords", "outputs"),
    [({"pred_leaf": True}, [("float32", (-1, 12))]), ({"output_margin": True}, [("float32", (-1, 3))])],
)
def test_save_model_when_each_call_has_keyword_arguments(keywords: dict[str, Any], outputs: Any) -> None:
    model = framework.save_model("m", BOOSTER, partial_kwargs={"predict": keywords})
    assert described(model.info.signatures["predict"])[1] == outputs
    runner = model.to_runner()
    runner.init_local(quiet=True)
    assert np.array_equal(runner.run(FRAME), BOOSTER.predict(xgboost.DMatrix(FRAME), **keywords))
    runner.destroy()
    # what is changed later may return something else: no tensors are promised then
    changed = model.with_options(partial_kwargs={"predict": {"pred_contribs": True}}).to_runner()
    assert not changed.predict.config.typed
    changed.init_local(quiet=True)
    assert changed.run(X).shape == (150, 3, 5)
    changed.destroy()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"partial_kwargs": {"explain": {}}}, "names the method 'explain', which is not served; served are predict"),
        ({"partial_kwargs": ["predict"]}, r"partial_kwargs is a mapping such as .*, not \['predict'\]"),
        ({"device": "cuda"}, "save_model has no option 'device'"),
        ({"sample": xgboost.DMatrix(X)}, "an array or a data frame, and not a DMatrix"),
        ({"signatures": {"explain": {}}}, "the method 'explain', which this Booster does not have"),
    ],
)
def test_save_model_when_an_option_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        framework.save_model("m", BOOSTER, **options)
    assert models.list() == []


class Own(xgboost.XGBClassifier):
    """A class of the user's."""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "saves an xgboost.Booster or an XGBModel, not a dict"),
        (xgboost.XGBClassifier, "not the class XGBClassifier itself"),
        (xgboost.XGBClassifier(), "This XGBClassifier is not fitted"),
        (xgboost.Booster(), "This Booster is not trained"),
        (Own(n_estimators=1).fit(X, Y), "Own is one of your own: adapter.sklearn saves it"),
    ],
)
def test_save_model_when_it_is_no_model_of_xgboost(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        framework.save_model("m", model)
    assert models.list() == []


def test_load_model_when_the_training_stopped_early() -> None:
    watched = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=2)
    watched.fit(X[::2], Y[::2], eval_set=[(X[1::2], Y[1::2])], verbose=False)
    framework.save_model("m", watched)
    loaded = framework.load_model("m")
    assert loaded.best_iteration == watched.best_iteration
    assert np.array_equal(loaded.predict_proba(X), watched.predict_proba(X))


def test_to_runner_runs_on_the_threads_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_NUM_THREAD", "3")
    model = framework.save_model("m", CLASSIFIER)
    runner = model.to_runner()
    assert supports_gpu(runner.spec.runnable_class)
    assert supports_threads(runner.spec.runnable_class)
    served: Any = runner.spec.runnable_class()
    assert served.model.n_jobs == 3


def test_entry_names_what_it_needs(tmp_path: Path) -> None:
    model = framework.save_model("m", CLASSIFIER, sample=FRAME)
    (planned,) = plan(Service("s", runners=[model.to_runner()]), folder=tmp_path).entries
    lines = planned.files["requirements.txt"]
    assert isinstance(lines, bytes)
    names = [line.partition("==")[0] for line in lines.decode().split()]
    assert names == ["numpy", "pandas", "scikit-learn", "xgboost-cpu"]
    assert f"xgboost-cpu=={xgboost.__version__}\n" in lines.decode()
    assert "model/sample.bin" in planned.files


WITHOUT = """
import sys
import adapter
model = adapter.xgboost.get("m")
assert model.to_runner().predict.config.typed
assert not {"xgboost", "sklearn", "pandas"} & set(sys.modules), sorted(sys.modules)
sys.modules["xgboost"] = None
try:
    model.load_model()
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_get_when_xgboost_is_not_imported() -> None:
    framework.save_model("m", BOOSTER)
    said = subprocess.check_output([sys.executable, "-c", WITHOUT], text=True, env=dict(os.environ))
    assert said == (
        "MissingDependencyException: xgboost is not installed, and adapter.xgboost needs it: run `pip install "
        "'triton-adapter[xgboost]'`.\n"
    )


# ---- served by a real engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    return serve_models(
        framework.save_model("booster", BOOSTER, signatures={"predict": BATCHED}),
        framework.save_model("classifier", CLASSIFIER, signatures={"predict": BATCHED, "predict_proba": BATCHED}),
        framework.save_model("regressor", REGRESSOR, signatures={"predict": BATCHED}),
    )


@pytest.mark.parametrize("rows", [X, X[:1].tolist(), HOLES, FRAME], ids=["array", "list", "NaN", "frame"])
def test_served_booster_equals_the_model_itself(call: Call, rows: Any) -> None:
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows, columns=NAMES)
    assert np.array_equal(call("booster", "predict", rows), BOOSTER.predict(xgboost.DMatrix(frame)))


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_served_classifier_equals_the_model_itself(call: Call, method: str) -> None:
    for rows in (X, X[:1], HOLES.astype("float32")):
        found, expected = call("classifier", method, rows), getattr(CLASSIFIER, method)(rows)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_served_model_takes_a_frame_with_a_category(call: Call) -> None:
    assert np.array_equal(call("regressor", "predict", COLORS), REGRESSOR.predict(COLORS))


def test_served_booster_when_the_columns_are_others(call: Call) -> None:
    with pytest.raises(InvalidArgument, match=r"shape \(-1, 4\)"):
        call("booster", "predict", X[:, :3])
    with pytest.raises(RemoteException, match="feature_names mismatch"):
        call("booster", "predict", FRAME.rename(columns={"a": "other"}))

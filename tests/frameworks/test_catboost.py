from __future__ import annotations

from pathlib import Path
from typing import Any

import catboost
import numpy as np
import pandas as pd
import pytest

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import catboost as framework
from adapter.model import Signature
from adapter.runnable import supports_gpu, supports_threads
from tests.frameworks.conftest import Call, Serve

RANDOM = np.random.default_rng(0)
X = RANDOM.random((120, 4))
Y = (X.sum(axis=1) * 1.5).astype(int) % 3
FRAME = pd.DataFrame(X, columns=["a", "b", "c", "d"])
COLORS = FRAME.assign(color=np.where(Y > 0, "red", "blue"))
HOLES = np.where(RANDOM.random(X.shape) < 0.2, np.nan, X)
BATCHED = {"batchable": True}
QUIET: dict[str, Any] = {"iterations": 4, "depth": 3, "verbose": False, "allow_writing_files": False}

CLASSIFIER = catboost.CatBoostClassifier(**QUIET).fit(X, Y)
LABELLED = catboost.CatBoostClassifier(**QUIET).fit(X, np.array(["x", "y", "z"])[Y])
REGRESSOR = catboost.CatBoostRegressor(**QUIET).fit(COLORS, Y, cat_features=["color"])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


def described(signature: Signature) -> tuple[Any, Any]:
    inputs = [(s.name, s.dtype, s.shape) for s in signature.inputs or ()]
    return inputs, [(s.dtype, s.shape) for s in signature.outputs or ()]


def test_save_model_when_it_is_a_classifier() -> None:
    model = framework.save_model("m", CLASSIFIER, signatures={"predict": BATCHED, "predict_proba": BATCHED})
    info = model.info
    assert info.options == {"training_class_name": "CatBoostClassifier"}
    assert info.context["framework_versions"]["catboost"] == catboost.__version__
    rows = [("data", "float32", (-1, 4))]
    assert described(info.signatures["predict"]) == (rows, [("int64", (-1, 1))])
    assert described(model.info.signatures["predict_proba"])[1] == [("float64", (-1, 3))]
    loaded = framework.load_model("m")
    assert type(loaded) is catboost.CatBoostClassifier
    assert np.array_equal(loaded.predict_proba(HOLES), CLASSIFIER.predict_proba(HOLES))
    runnable = model.to_runnable()
    assert supports_gpu(runnable)
    assert supports_threads(runnable)


@pytest.mark.parametrize("model", [LABELLED, REGRESSOR])
def test_save_model_when_it_takes_or_returns_text(model: Any) -> None:
    assert not framework.save_model("m", model).info.signatures["predict"].typed


def test_save_model_when_each_call_has_keyword_arguments() -> None:
    partial = {"predict": {"prediction_type": "RawFormulaVal"}}
    model = framework.save_model("m", CLASSIFIER, partial_kwargs=partial)
    assert described(model.info.signatures["predict"])[1] == [("float64", (-1, 3))]


class Own(catboost.CatBoostRegressor):
    """A class of the user's."""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "saves a catboost.CatBoost, not a dict"),
        (catboost.CatBoost, "not the class CatBoost itself"),
        (catboost.CatBoostClassifier(), "This CatBoostClassifier is not fitted"),
        (Own(), "Own is one of your own"),
    ],
)
def test_save_model_when_it_is_no_model_of_catboost(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        framework.save_model("m", model)
    assert models.list() == []


# ---- served by a real engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    return serve_models(
        framework.save_model("classifier", CLASSIFIER, signatures={"predict": BATCHED, "predict_proba": BATCHED}),
        framework.save_model("labelled", LABELLED, signatures={"predict": BATCHED}),
        framework.save_model("regressor", REGRESSOR, signatures={"predict": BATCHED}),
    )


@pytest.mark.parametrize("rows", [X, X[:1], HOLES, FRAME])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_served_classifier_equals_the_model_itself(call: Call, rows: Any, method: str) -> None:
    found, expected = call("classifier", method, rows), getattr(CLASSIFIER, method)(rows)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_served_classifier_with_labels_that_are_text(call: Call) -> None:
    assert call("labelled", "predict", X).tolist() == LABELLED.predict(X).tolist()


def test_served_model_takes_a_frame_with_a_category(call: Call) -> None:
    assert np.array_equal(call("regressor", "predict", COLORS), REGRESSOR.predict(COLORS))

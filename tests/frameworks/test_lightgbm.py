from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from adapter import models
from adapter.exceptions import InvalidArgument, StateException
from adapter.frameworks import lightgbm as framework
from adapter.model import Signature
from adapter.runnable import supports_gpu, supports_threads
from tests.frameworks.conftest import Call, Serve

X, Y = load_iris(return_X_y=True)
NAMES = ["a", "b", "c", "d"]
FRAME = pd.DataFrame(X, columns=NAMES)
COLORS = FRAME.assign(color=pd.Categorical(np.where(Y > 0, "red", "blue")))
LABELS = np.array(["x", "y", "z"])[Y]
BATCHED = {"batchable": True}
QUIET = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
HOLES = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)

BOOSTER = lightgbm.train({"objective": "multiclass", "num_class": 3, **QUIET}, lightgbm.Dataset(X, Y), 4)
COLORED = lightgbm.train({"objective": "regression", **QUIET}, lightgbm.Dataset(COLORS, Y), 4)
CLASSIFIER = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1).fit(FRAME, LABELS)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


def described(signature: Signature) -> tuple[Any, Any]:
    inputs = [(s.name, s.dtype, s.shape) for s in signature.inputs or ()]
    return inputs, [(s.dtype, s.shape) for s in signature.outputs or ()]


def test_save_model_when_it_is_a_booster() -> None:
    info = framework.save_model("m", BOOSTER, sample=X[:3].astype("float32")).info
    assert described(info.signatures["predict"]) == ([("data", "float64", (-1, 4))], [("float64", (-1, 3))])
    assert info.options == {"model_class": "Booster"}
    assert info.context["framework_versions"] == {"lightgbm": lightgbm.__version__, "numpy": np.__version__}
    loaded = framework.load_model("m")
    assert np.array_equal(loaded.predict(HOLES), BOOSTER.predict(HOLES))


def test_save_model_when_it_follows_scikit_learn() -> None:
    model = framework.save_model("m", CLASSIFIER, signatures={"predict": BATCHED, "predict_proba": BATCHED})
    # labels that are text travel in a blob
    assert not model.info.signatures["predict"].typed
    expected = [("X", "float64", (-1, 4))], [("float64", (-1, 3))]
    assert described(model.info.signatures["predict_proba"]) == expected
    assert model.info.options == {"model_class": "LGBMClassifier"}
    assert "scikit-learn" in model.info.context["framework_versions"]
    assert np.array_equal(framework.load_model("m").predict(FRAME), CLASSIFIER.predict(FRAME))
    runner = model.to_runner()
    assert supports_threads(runner.spec.runnable_class)
    assert not supports_gpu(runner.spec.runnable_class)


@pytest.mark.parametrize(
    ("keywords", "shape"), [({"raw_score": True}, (-1, 3)), ({"pred_leaf": True}, (-1, 12)), ({}, (-1, 3))]
)
def test_save_model_when_each_call_has_keyword_arguments(keywords: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = framework.save_model("m", BOOSTER, partial_kwargs={"predict": keywords})
    (output,) = model.info.signatures["predict"].outputs or ()
    assert output.shape == shape
    runner = model.to_runner()
    runner.init_local(quiet=True)
    assert np.array_equal(runner.run(X), BOOSTER.predict(X, **keywords))
    runner.destroy()


def test_to_runner_runs_on_the_threads_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_NUM_THREAD", "3")
    served: Any = framework.save_model("m", CLASSIFIER).to_runnable()()
    assert served.model.n_jobs == 3
    booster: Any = framework.save_model("b", BOOSTER).to_runnable()()
    assert type(booster.model) is lightgbm.Booster


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "saves a lightgbm.Booster or an LGBMModel, not a dict"),
        (lightgbm.LGBMClassifier, "not the class LGBMClassifier itself"),
        (lightgbm.LGBMClassifier(), "This LGBMClassifier is not fitted"),
    ],
)
def test_save_model_when_it_is_no_model_of_lightgbm(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        framework.save_model("m", model)
    assert models.list() == []


def test_save_model_when_a_column_knows_missing_values() -> None:
    frame = pd.DataFrame({"a": X[:, 0], "n": pd.array([None, *range(149)], dtype="Int64"), "new": Y > 0})
    native = lightgbm.LGBMRegressor(n_estimators=4, verbose=-1, n_jobs=1, use_missing=True).fit(frame, Y)
    method = framework.save_model("m", native).to_runner().spec.methods["predict"]
    (sent,), _ = method.pack((frame,), {})
    assert np.isnan(sent[0, 1])
    assert np.array_equal(native.predict(pd.DataFrame(sent, columns=frame.columns)), native.predict(frame))


@pytest.mark.parametrize("left", [0, 20, 0.5, b"end of trees", b"parameters:", b"end of parameters"])
def test_load_model_when_its_file_was_cut_short(left: Any) -> None:
    """LightGBM itself would end the process on some of these."""
    file = Path(framework.save_model("m", BOOSTER).path_of("saved_model.ubj"))
    whole = file.read_bytes()
    length = whole.index(left) if isinstance(left, bytes) else left if isinstance(left, int) else int(len(whole) * left)
    file.write_bytes(whole[: length + (40 if left == b"parameters:" else 0)])
    with pytest.raises(StateException, match="ends in the middle of the model: it was not written or copied whole"):
        framework.load_model("m")


# ---- served by a real engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    return serve_models(
        framework.save_model("booster", BOOSTER, signatures={"predict": BATCHED}),
        framework.save_model("colored", COLORED, signatures={"predict": BATCHED}),
        framework.save_model("classifier", CLASSIFIER, signatures={"predict": BATCHED, "predict_proba": BATCHED}),
    )


@pytest.mark.parametrize("rows", [X, X[:1], HOLES, X.astype("float32"), FRAME])
def test_served_booster_equals_the_model_itself(call: Call, rows: Any) -> None:
    assert np.array_equal(call("booster", "predict", rows), BOOSTER.predict(rows))


def test_served_booster_takes_a_frame_with_a_category(call: Call) -> None:
    assert np.array_equal(call("colored", "predict", COLORS), COLORED.predict(COLORS))


def test_served_classifier_equals_the_model_itself(call: Call) -> None:
    assert np.array_equal(call("classifier", "predict", FRAME), CLASSIFIER.predict(FRAME))
    assert np.array_equal(call("classifier", "predict_proba", FRAME), CLASSIFIER.predict_proba(FRAME))

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from adapter import models
from adapter.exceptions import InvalidArgument, RemoteException, StateException
from adapter.frameworks import sklearn
from adapter.model import Model, Parameter, Signature
from adapter.runnable import supports_threads
from adapter.tensor import TensorSpec
from tests.frameworks.conftest import Call, Serve

X, Y = load_iris(return_X_y=True)
NAMES = ["a", "b", "c", "d"]
FRAME = pd.DataFrame(X, columns=NAMES)
MIXED = FRAME.assign(color=np.where(Y > 0, "red", "blue"))
PREDICT: dict[str, dict[str, Any]] = {"predict": {"batchable": True, "batch_dim": 0}}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


def saved(model: Any, method: str = "predict", **options: Any) -> Signature:
    """The signature of a method as a saved model has it."""
    found = sklearn.save_model("m", model, signatures={method: {"batchable": True}}, **options)
    signature = models.get(found.tag).info.signatures[method]
    assert signature == found.info.signatures[method]
    return signature


def described(specs: tuple[TensorSpec, ...] | None) -> list[tuple[str, str, tuple[int, ...]]] | None:
    return None if specs is None else [(s.name, s.dtype, s.shape) for s in specs]


def test_save_model_when_it_is_a_classifier() -> None:
    model = sklearn.save_model("iris_clf", SVC().fit(X, Y), signatures=PREDICT)
    info = models.get("iris_clf:latest").info
    assert info.module == "adapter.sklearn"
    assert set(info.context["framework_versions"]) == {"scikit-learn", "numpy"}
    assert info.signatures["predict"] == Signature(
        True,
        (0, 0),
        (TensorSpec("float64", (-1, 4), "X"),),
        (TensorSpec("int64", (-1,), "output_0"),),
        (Parameter("X"),),
    )
    native = sklearn.load_model("iris_clf:latest")
    assert native.predict(X).tolist() == model.load_model().predict(X).tolist() == SVC().fit(X, Y).predict(X).tolist()
    assert np.array_equal(joblib.load(model.path_of("saved_model.pkl")).predict(X), native.predict(X))


def test_save_model_when_no_signature_is_given() -> None:
    signature = sklearn.save_model("iris_clf", SVC().fit(X, Y)).info.signatures["predict"]
    assert not signature.batchable
    assert signature.typed


@pytest.mark.parametrize(
    ("model", "method", "inputs", "outputs"),
    [
        (RandomForestClassifier(3).fit(X, Y), "predict_proba", ("X", "float64", (-1, 4)), [("float64", (-1, 3))]),
        (LinearRegression().fit(X, X[:, :2]), "predict", ("X", "float64", (-1, 4)), [("float64", (-1, 2))]),
        (make_pipeline(StandardScaler(), SVC()).fit(X, Y), "predict", ("X", "float64", (-1, 4)), [("int64", (-1,))]),
        (PCA(2).fit(X), "transform", ("X", "float64", (-1, 4)), [("float64", (-1, 2))]),
        (GridSearchCV(SVC(), {"C": [1, 2]}, cv=2).fit(X, Y), "predict", ("X", "float64", (-1, 4)), [("int64", (-1,))]),
        (DecisionTreeClassifier().fit(FRAME, Y), "predict", ("X", "float64", (-1, 4)), [("int64", (-1,))]),
        (SVC().fit(X, Y > 1), "predict", ("X", "float64", (-1, 4)), [("bool", (-1,))]),
        # it has a part whose predict may return a pair
        (
            GradientBoostingRegressor(n_estimators=2).fit(X, Y),
            "predict",
            ("X", "float64", (-1, 4)),
            [("float64", (-1,))],
        ),
        # returns a list of arrays
        (
            MultiOutputClassifier(DecisionTreeClassifier()).fit(X, np.c_[Y, Y > 1]),
            "predict_proba",
            ("X", "float64", (-1, 4)),
            [("float64", (-1, 3)), ("float64", (-1, 2))],
        ),
        # labels that are text do not matter to their probabilities
        (
            DecisionTreeClassifier().fit(X, Y.astype(str)),
            "predict_proba",
            ("X", "float64", (-1, 4)),
            [("float64", (-1, 3))],
        ),
    ],
)
def test_save_model_when_the_method_takes_numbers(
    model: Any, method: str, inputs: tuple[str, str, tuple[int, ...]], outputs: list[tuple[str, tuple[int, ...]]]
) -> None:
    signature = saved(model, method)
    assert described(signature.inputs) == [inputs]
    assert described(signature.outputs) == [(f"output_{i}", *o) for i, o in enumerate(outputs)]


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (SVC().fit(X, Y.astype(str)), "predict"),  # labels are text
        (TfidfVectorizer().fit(["a text", "another"]), "transform"),  # text, sparse
        (make_pipeline(TfidfVectorizer(), SVC()).fit(["a text", "another"], [0, 1]), "predict"),
        (OneHotEncoder().fit(X), "transform"),  # sparse
        (OrdinalEncoder().fit(MIXED[["color"]]), "transform"),  # categories are text
        (SimpleImputer(strategy="most_frequent").fit(MIXED[["color"]]), "transform"),
        (make_pipeline(ColumnTransformer([("a", "passthrough", ["a"])]), SVC()).fit(MIXED, Y), "predict"),
        (HistGradientBoostingClassifier(max_iter=2).fit(MIXED.astype({"color": "category"}), Y), "predict"),
        (StandardScaler().set_output(transform="pandas").fit(X), "transform"),  # returns a data frame
        (GaussianProcessRegressor().fit(X[::9], Y[::9]), "predict"),  # return_std=True returns a pair
        (make_pipeline(StandardScaler(), GaussianProcessRegressor()).fit(X[::9], Y[::9]), "predict"),
        (KNeighborsClassifier().fit(X, Y), "kneighbors"),  # return_distance=False returns one
        (SVC().fit(X, Y), "score"),  # two inputs, no batch in the result
        (PCA(2).fit(X), "inverse_transform"),  # takes another width than that of fit
        (FunctionTransformer(lambda x: x.mean(axis=0)).fit(X), "transform"),  # not one result for each row
        (FunctionTransformer(lambda x: x.T).fit(X), "transform"),
        (FunctionTransformer(lambda x: 1 / 0).fit(X), "transform"),  # raises
    ],
)
def test_save_model_when_the_method_cannot_be_typed(model: Any, method: str) -> None:
    signature = saved(model, method)
    assert (signature.inputs, signature.outputs) == (None, None)
    assert signature.batchable
    assert signature.parameters


@pytest.mark.parametrize(
    ("model", "sample", "inputs", "outputs"),
    [
        (StandardScaler().fit(X), X[:1].astype("float32"), "float32", "float32"),
        (StandardScaler().fit(FRAME), FRAME[:3].astype("float32"), "float32", "float32"),
        (StandardScaler().fit(X), X[:3].tolist(), "float64", "float64"),
        (FunctionTransformer().fit(X), X.astype("int32"), "int32", "int32"),
        (FunctionTransformer().fit(X), (X.astype("int32"),), "int32", "int32"),
        (FunctionTransformer().fit(X), {"X": X.astype("int32")}, "int32", "int32"),
    ],
)
def test_save_model_when_a_sample_is_given(model: Any, sample: Any, inputs: str, outputs: str) -> None:
    signature = saved(model, "transform", sample=sample)
    assert described(signature.inputs) == [("X", inputs, (-1, 4))]
    assert described(signature.outputs) == [("output_0", outputs, (-1, 4))]


@pytest.mark.parametrize("sample", [MIXED, X[0], X[:0], X[None], X.astype(str), "text"])
def test_save_model_when_the_sample_is_not_of_numbers(sample: Any) -> None:
    signature = saved(DummyClassifier().fit(X, Y), sample=sample)
    assert (signature.inputs, signature.outputs) == (None, None)


def test_save_model_when_the_sample_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not saved(SVC().fit(X, Y), sample=X[:, :3]).typed
    assert "A trial of SVC.predict failed" in caplog.text
    assert "3 columns, the model was fitted on 4" in caplog.text


def test_save_model_when_the_input_spec_is_given() -> None:
    given = {"transform": {"batchable": True, "input_spec": ("float32", (-1, 4))}}
    signature = sklearn.save_model("m", StandardScaler().fit(X), signatures=given).info.signatures["transform"]
    assert described(signature.inputs) == [("X", "float32", (-1, 4))]
    assert described(signature.outputs) == [("output_0", "float32", (-1, 4))]


def test_save_model_when_the_batch_axis_is_not_the_rows() -> None:
    given = {"predict": {"batchable": True, "batch_dim": 1}}
    assert not sklearn.save_model("m", SVC().fit(X, Y), signatures=given).info.signatures["predict"].typed


@pytest.mark.parametrize(
    ("model", "reason"),
    [({"a": 1}, "not a dict; adapter.picklable_model saves"), (SVC, "not the class SVC itself")],
)
def test_save_model_when_it_is_no_estimator(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        sklearn.save_model("m", model)
    assert models.list() == []


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (SVC(), "This SVC is not fitted: call `fit` before"),
        (GridSearchCV(SVC(), {"C": [1]}), "This GridSearchCV is not fitted"),
        (
            make_pipeline(StandardScaler(), SVC().fit(X, Y)),
            "This StandardScaler, a step of this Pipeline, is not fitted",
        ),
        (make_pipeline(StandardScaler().fit(X), SVC()), "This SVC, a step of this Pipeline, is not fitted"),
        (TfidfVectorizer(), "This TfidfVectorizer is not fitted"),
    ],
)
def test_save_model_when_it_is_not_fitted(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        sklearn.save_model("m", model, signatures={})
    assert models.list() == []


class Rounding(BaseEstimator):
    """Learns, and does not say so as scikit-learn would."""

    def predict(self, rows: Any) -> Any:
        return np.rint(rows)


@pytest.mark.parametrize(
    "model",
    [
        FunctionTransformer(),
        HashingVectorizer(),
        CountVectorizer(vocabulary=["a", "b"]),
        make_pipeline("passthrough", FunctionTransformer(), SVC()).fit(X, Y),
        Rounding(),
        make_pipeline(StandardScaler().fit(X), Rounding()),
    ],
)
def test_save_model_when_it_need_not_be_fitted(model: Any) -> None:
    sklearn.save_model("m", model, signatures={})
    assert type(sklearn.load_model("m")) is type(model)


def test_save_model_when_a_class_is_of_a_module_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    model = make_pipeline(StandardScaler().fit(X), Rounding())
    saved = sklearn.save_model("m", model, signatures={})
    (record,) = caplog.records
    assert record.getMessage() == (
        f"The model {saved.tag} has classes or functions of tests, and loads only where that can be imported: save it "
        "with external_modules=[tests], which takes the code along."
    )
    caplog.clear()
    sklearn.save_model("m", model, signatures={}, external_modules=[sys.modules[__name__]])
    sklearn.save_model("m", SVC().fit(X, Y))
    assert caplog.text == ""


def test_save_model_when_it_has_not_the_usual_method() -> None:
    with pytest.raises(
        InvalidArgument, match=r"This StandardScaler has no 'predict', .* \(it has .*transform.*\), or give"
    ):
        sklearn.save_model("scaler", StandardScaler().fit(X))


def test_save_model_when_the_method_is_not_available() -> None:
    # predict_proba is a method of the class that this pipeline does not have
    with pytest.raises(InvalidArgument, match=r"'predict_proba', which this Pipeline does not have; it has .*predict"):
        saved(make_pipeline(StandardScaler(), LinearRegression()).fit(X, Y), "predict_proba")


def test_to_runner_when_called_locally() -> None:
    native = SVC().fit(X, Y)
    runner = sklearn.save_model("iris_clf", native, signatures=PREDICT).to_runner()
    assert supports_threads(runner.spec.runnable_class)
    runner.init_local(quiet=True)
    try:
        assert np.array_equal(runner.predict.run(X), native.predict(X))
        assert runner.predict.run([[5.9, 3, 5.1, 1.8]]).tolist() == native.predict([[5.9, 3, 5.1, 1.8]]).tolist()
        assert np.array_equal(runner.run(X[:3].astype("float32")), native.predict(X[:3]))
    finally:
        runner.destroy()


def test_to_runner_when_the_model_was_fitted_on_a_frame() -> None:
    native = make_pipeline(FunctionTransformer(lambda frame: frame[["a", "b"]]), DecisionTreeClassifier()).fit(FRAME, Y)
    model = sklearn.save_model("m", native, signatures=PREDICT)
    runner = model.to_runner()
    runner.init_local(quiet=True)
    try:
        assert np.array_equal(runner.predict.run(FRAME), native.predict(FRAME))
    finally:
        runner.destroy()


def test_to_runner_when_the_columns_are_mixed() -> None:
    encoder = ColumnTransformer([("color", OneHotEncoder(), ["color"])], remainder="passthrough")
    native = make_pipeline(encoder, DecisionTreeClassifier()).fit(MIXED, Y)
    runner = sklearn.save_model("m", native, signatures=PREDICT).to_runner()
    runner.init_local(quiet=True)
    try:
        assert np.array_equal(runner.predict.run(MIXED), native.predict(MIXED))
    finally:
        runner.destroy()


WITHOUT_SKLEARN = """
import sys
from adapter.frameworks import sklearn
model = sklearn.get("iris_clf:latest")
runner = model.to_runner()
assert runner.predict.name == "predict"
assert not {"sklearn", "scipy", "joblib"} & set(sys.modules), sorted(sys.modules)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
for use in (lambda: sklearn.load_model(model), lambda: sklearn.save_model("m", 3)):
    try:
        use()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_get_when_sklearn_is_not_imported() -> None:
    sklearn.save_model("iris_clf", SVC().fit(X, Y), signatures=PREDICT)
    lines = subprocess.check_output([sys.executable, "-c", WITHOUT_SKLEARN], text=True).splitlines()
    expected = "MissingDependencyException: scikit-learn is not installed, and adapter.sklearn needs it"
    assert len(lines) == 2
    assert all(line.startswith(expected) for line in lines)


def test_load_model_when_another_version_saved_it(caplog: pytest.LogCaptureFixture) -> None:
    model = sklearn.save_model("iris_clf:v1", SVC().fit(X, Y))
    context = {"framework_versions": {"scikit-learn": "0.24.2", "numpy": np.__version__}, "python_version": "3.7.1"}
    here = model.info.context["framework_versions"]["scikit-learn"], model.info.context["python_version"]
    sklearn.load_model(model)
    assert caplog.text == ""
    sklearn.load_model(Model(dataclasses.replace(model.info, context=context), model.folder))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"The model iris_clf:v1 was saved with scikit-learn 0.24.2 (here it is {here[0]}) and Python 3.7.1 (here it is "
        f"{here[1]}): it may fail to load or give other results, so install what it was saved with, or save it again "
        "with what is here."
    )


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_load_model_when_its_file_is_damaged(content: bytes | None) -> None:
    file = Path(sklearn.save_model("numbers", LinearRegression().fit(X, Y)).path_of("saved_model.pkl"))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(
        StateException, match=r"The model numbers:\w+ cannot be loaded from .* its files may be damaged"
    ):
        sklearn.load_model("numbers")


def test_save_model_when_a_step_is_of_another_library() -> None:
    import xgboost

    native = make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=1)).fit(X, Y)
    versions = sklearn.save_model("m", native).info.context["framework_versions"]
    assert set(versions) == {"numpy", "scikit-learn", "xgboost-cpu"}
    assert versions["xgboost-cpu"] == xgboost.__version__


def test_save_model_when_it_was_fitted_on_a_frame_needs_pandas() -> None:
    assert "pandas" in sklearn.save_model("m", SVC().fit(FRAME, Y)).info.context["framework_versions"]


# ---- served by a real engine ----------------------------------------------------------------------------------------

BATCHED = {"batchable": True}
TEXTS = np.array(["a good film", "a bad film", "good", "so bad", "good film", "bad, bad"], dtype=object)
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "classifier": (
        make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME, np.array(["x", "y", "z"])[Y]),
        {"predict": BATCHED, "predict_proba": BATCHED, "decision_function": BATCHED},
    ),
    "mixed": (
        make_pipeline(
            ColumnTransformer([("color", OneHotEncoder(), ["color"])], remainder="passthrough"), LinearRegression()
        ).fit(MIXED, Y),
        {"predict": BATCHED},
    ),
    "words": (TfidfVectorizer().fit(TEXTS), {"transform": BATCHED}),
    "several": (
        RandomForestClassifier(3, random_state=0).fit(X, np.c_[Y, Y > 1]),
        {"predict": BATCHED, "predict_proba": BATCHED},
    ),
}


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    return serve_models(*(sklearn.save_model(n, m, signatures=s) for n, (m, s) in MODELS.items()))


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.parametrize("rows", [X, X[:1], FRAME, FRAME[::-1]], ids=["array", "row", "frame", "reversed frame"])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_served_classifier_with_labels_that_are_text(call: Call, rows: Any, method: str) -> None:
    expected = getattr(MODELS["classifier"][0], method)(rows)
    found = call("classifier", method, rows)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected) if method == "predict" else np.allclose(found, expected, rtol=1e-12)


def test_served_pipeline_on_a_frame_of_mixed_columns(call: Call) -> None:
    assert np.allclose(call("mixed", "predict", MIXED), MODELS["mixed"][0].predict(MIXED), rtol=1e-12)


def test_served_transformer_whose_result_is_sparse(call: Call) -> None:
    found = call("words", "transform", TEXTS)
    assert np.array_equal(found, MODELS["words"][0].transform(TEXTS).toarray())
    assert call("words", "transform", TEXTS[:1].tolist()).shape == (1, 4)


def test_served_classifier_with_several_outputs(call: Call) -> None:
    native = MODELS["several"][0]
    assert np.array_equal(call("several", "predict", X), native.predict(X))
    found = call("several", "predict_proba", X)
    assert type(found) is tuple
    for one, expected in zip(found, native.predict_proba(X), strict=True):
        assert np.allclose(one, expected, rtol=1e-12)


def test_served_classifier_when_a_column_is_missing(call: Call) -> None:
    with pytest.raises(InvalidArgument, match=r"shape \(-1, 4\)"):
        call("classifier", "predict_proba", X[:, :3])
    with pytest.raises(RemoteException, match="feature names"):
        call("classifier", "predict_proba", FRAME.rename(columns={"a": "other"}))

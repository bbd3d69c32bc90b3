"""Saved models converted for Triton's own backends: what is written of them, and when they stay with Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
import xgboost
from google.protobuf import text_format
from onnx import TensorProto, helper
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from tritonclient.grpc import model_config_pb2 as pb

import adapter
from adapter.exceptions import InvalidArgument, PayloadTypeError, RemoteException
from adapter.method import MethodSpec
from adapter.model import BatchingConfig, Model, Signature
from adapter.settings import BACKENDS
from adapter.tensor import TensorSpec
from adapter.triton.config import INTERFACE, Entry, model_config, to_text
from adapter.triton.exporters import EXPORTERS, Checked, convert
from adapter.triton.exporters.base import CannotConvert, Converted
from adapter.triton.exporters.graph import saved
from adapter.triton.exporters.openvino import native_of as openvino_of
from adapter.triton.exporters.parity import ROWS, compare
from adapter.triton.exporters.pytorch import native_of as pytorch_of
from adapter.triton.native import CLASSES, PAIR, VALUES, Native, NativeTensor, from_native, to_native
from adapter.triton.placement import Group, Placement

X, Y = make_classification(300, 6, n_informative=4, n_classes=3, random_state=0)
BATCHED = {"batchable": True}


def save(name: str, model: Any, *methods: str, module: Any = adapter.sklearn, **options: Any) -> Model:
    saved: Model = module.save_model(name, model, signatures=dict.fromkeys(methods, BATCHED), **options)
    return saved


def method_of(model: Model, name: str) -> MethodSpec:
    return model.to_runner(max_batch_size=16).spec.methods[name]


def converted(model: Model, method: str, *backends: str) -> Checked:
    found = convert(model, method_of(model, method), backends)
    assert isinstance(found, Checked), found
    return found


def refused(model: Model, method: str, *backends: str) -> list[str]:
    found = convert(model, method_of(model, method), backends)
    assert not isinstance(found, Checked)
    return found


def config_of(native: Native, method: MethodSpec) -> pb.ModelConfig:
    """What Triton reads of the file."""
    entry = Entry("m.predict.x", "m", (method,), native=native)
    return text_format.Parse(to_text(model_config(entry)), pb.ModelConfig())


def tensors(found: Any) -> list[tuple[str, str, list[int]]]:
    return [(t.name, pb.DataType.Name(t.data_type), list(t.dims)) for t in found]


def test_every_backend_of_the_settings_has_an_exporter() -> None:
    assert tuple(EXPORTERS) == BACKENDS
    assert all(name == exporter.backend for name, exporter in EXPORTERS.items())


# ---- FIL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "labels", "scores", "meaning"),
    [
        (RandomForestClassifier(5, random_state=0), Y * 5 - 3, 3, VALUES),
        (RandomForestClassifier(5, random_state=0), Y > 0, 2, VALUES),
        (GradientBoostingClassifier(n_estimators=5), Y, 3, VALUES),
        (GradientBoostingClassifier(n_estimators=5), Y > 0, 1, PAIR),
        (xgboost.XGBClassifier(n_estimators=5), Y, 3, VALUES),
        (xgboost.XGBClassifier(n_estimators=5), (Y > 0).astype(int), 1, PAIR),
        (lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), Y + 1, 3, VALUES),
        (lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), (Y > 0).astype(int), 1, PAIR),
    ],
)
def test_forests_that_classify_become_fil_entries(model: Any, labels: Any, scores: int, meaning: str) -> None:
    module = getattr(adapter, type(model).__module__.partition(".")[0])
    found = save("forest", model.fit(X, labels), "predict", "predict_proba", module=module, sample=X)
    for name, dims, what, proba in (("predict", 1, CLASSES, "false"), ("predict_proba", scores, meaning, "true")):
        checked, method = converted(found, name, "fil"), method_of(found, name)
        native = checked.converted.native
        config = config_of(native, method)
        assert (config.backend, config.platform, config.default_model_filename) == ("fil", "", "")
        assert config.max_batch_size >= 32768
        assert config.HasField("dynamic_batching")
        assert tensors(config.input) == [("input__0", "TYPE_FP32", [6])]
        assert tensors(config.output) == [("output__0", "TYPE_FP32", [dims])]
        assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_AUTO]
        parameters = {key: value.string_value for key, value in config.parameters.items() if key != INTERFACE}
        assert parameters == {
            "model_type": "treelite_checkpoint",
            "output_class": "true",
            "is_classifier": "true",
            "predict_proba": proba,
            "threshold": "0.5",
        }
        assert native.outputs[0].meaning == what
        assert list(checked.converted.files) == ["checkpoint.tl"]
        assert checked.parity.rows >= ROWS
        assert checked.parity.largest_difference <= checked.parity.tolerance
        assert checked.versions["treelite"]


@pytest.mark.parametrize(
    "model",
    [
        RandomForestRegressor(5, random_state=0),
        GradientBoostingRegressor(n_estimators=5),
        xgboost.XGBRegressor(n_estimators=5),
        lightgbm.LGBMRegressor(n_estimators=5, verbose=-1),
    ],
)
def test_forests_that_regress_become_fil_entries(model: Any) -> None:
    module = getattr(adapter, type(model).__module__.partition(".")[0])
    found = save("regressor", model.fit(X, X[:, 0] * 3), "predict", module=module, sample=X)
    checked, method = converted(found, "predict", "fil"), method_of(found, "predict")
    config = config_of(checked.converted.native, method)
    assert tensors(config.output) == [("output__0", "TYPE_FP32", [1])]
    assert config.parameters["is_classifier"].string_value == "false"
    assert "threshold" not in config.parameters


@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob", "reg:squarederror"])
def test_boosters_keep_what_their_predict_returns(objective: str) -> None:
    several = {"num_class": 3} if objective.startswith("multi") else {}
    labels = Y if several else (Y > 0).astype(int)
    booster = xgboost.train({"objective": objective, **several}, xgboost.DMatrix(X, labels), 5)
    found = save("booster", booster, "predict", module=adapter.xgboost, sample=X.astype(np.float32))
    checked = converted(found, "predict", "fil")
    assert tensors(config_of(checked.converted.native, method_of(found, "predict")).output) == [
        ("output__0", "TYPE_FP32", [3 if several else 1])
    ]


def test_forest_that_knows_missing_values_is_tried_on_them() -> None:
    holed = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    found = save(
        "missing", xgboost.XGBClassifier(n_estimators=5).fit(holed, Y), "predict", module=adapter.xgboost, sample=holed
    )
    assert converted(found, "predict", "fil").parity.nan_rows > 0
    plain = save("never", GradientBoostingClassifier(n_estimators=5).fit(X, Y), "predict", sample=X)
    assert converted(plain, "predict", "fil").parity.nan_rows == 0  # it refuses them


def test_conversion_is_the_same_each_time() -> None:
    found = save("again", RandomForestClassifier(5, random_state=0).fit(X, Y), "predict", sample=X)
    first, second = converted(found, "predict", "fil"), converted(found, "predict", "fil")
    assert (first.converted.native, first.parity) == (second.converted.native, second.parity)


@pytest.mark.parametrize(
    ("model", "method", "labels", "reason"),
    [
        # Treelite reads it, but its scores are others, those of rows that it was fitted on among them
        (HistGradientBoostingClassifier(max_iter=5), "predict_proba", Y, "finer than float32"),
        (IsolationForest(n_estimators=5, random_state=0), "predict", Y, "labels of predict() are others"),
        (GradientBoostingClassifier(n_estimators=5), "decision_function", Y, ""),
        (RandomForestRegressor(5), "predict", X[:, :2], "2 outputs"),
        (LogisticRegression(), "predict", Y, "Treelite cannot read it"),
        (RandomForestClassifier(5), "predict", np.array(list("abc"))[Y], "not known as arrays of numbers"),
        (RandomForestClassifier(5), "predict_proba", np.array(list("abc"))[Y], "labels are no numbers"),
        (xgboost.XGBClassifier(n_estimators=5, missing=-1.0), "predict", Y, "-1 for a missing value"),
        (lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, zero_as_missing=True), "predict", X[:, 0], "scores differ"),
    ],
)
def test_models_that_fil_would_answer_otherwise_stay_with_python(
    model: Any, method: str, labels: Any, reason: str
) -> None:
    module = getattr(adapter, type(model).__module__.partition(".")[0])
    # one row says little of what there may be
    found = save("other", model.fit(X, labels), method, module=module, sample=X[:1])
    (said,) = refused(found, method, "fil")
    assert said.startswith("fil: ")
    assert reason in said


def test_forest_that_learned_of_missing_values_has_splits_on_them() -> None:
    holed = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    forest = RandomForestClassifier(5, random_state=0).fit(holed, Y)
    assert any(np.isinf(tree.tree_.threshold).any() for tree in forest.estimators_)
    found = save("holed", forest, "predict_proba")
    (said,) = refused(found, "predict_proba", "onnxruntime")
    assert "splits on missing values" in said  # skl2onnx would go on for ever
    assert converted(found, "predict_proba", "fil").parity.nan_rows > 0


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_forest_whose_training_stopped_early_is_cut_there(booster: str) -> None:
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=0.8, booster=booster)
    model.fit(X[:200], Y[:200], eval_set=[(X[200:], Y[200:])], verbose=False)
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    found = save("early", model, "predict_proba", module=adapter.xgboost, sample=X)
    assert converted(found, "predict_proba", "fil").parity.largest_difference < 1e-5


def test_forest_with_categories_stays_with_python() -> None:
    rows = np.c_[np.arange(300) % 9, X[:, 1:]]
    options: dict[str, Any] = {"categorical_feature": [0]}
    model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, min_data_per_group=1, cat_smooth=1)
    found = save("colors", model.fit(rows, rows[:, 0] % 3, **options), "predict", module=adapter.lightgbm)
    assert "split by categories" in refused(found, "predict", "fil")[0]


def test_forest_whose_thresholds_are_finer_than_float32_stays_with_python() -> None:
    random = np.random.default_rng(0)
    times = 1.7e9 + np.sort(random.integers(0, 864_000, 2000))[:, None].astype(float)  # ten days, in seconds
    model = lightgbm.LGBMRegressor(n_estimators=20, verbose=-1).fit(times, np.sin(times[:, 0] / 20_000))
    for sample in (None, times[:1], times):
        found = save("times", model, "predict", module=adapter.lightgbm, sample=sample)
        assert "scores differ" in refused(found, "predict", "fil")[0]
    years = 1995.0 + np.arange(2000)[:, None] % 30
    model = lightgbm.LGBMRegressor(n_estimators=20, verbose=-1).fit(years, np.sin(years[:, 0]))
    assert converted(save("years", model, "predict", module=adapter.lightgbm, sample=years), "predict", "fil")


def test_columns_of_a_frame_must_be_those_of_the_model() -> None:
    import pandas as pd

    frame = pd.DataFrame(X, columns=list("abcdef"))
    found = save("framed", RandomForestClassifier(5, random_state=0).fit(frame, Y), "predict", sample=frame)
    native, method = converted(found, "predict", "fil").converted.native, method_of(found, "predict")
    assert native.columns == tuple("abcdef")
    assert to_native(native, method, [X[:2]], {"columns": {"X": list("abcdef")}})[0].dtype == np.float32
    with pytest.raises(InvalidArgument, match=r"columns b, a.*fitted with a, b"):
        to_native(native, method, [X[:2]], {"columns": {"X": list("bacdef")}})


# ---- ONNX Runtime and OpenVINO --------------------------------------------------------------------------------------


def test_pipelines_become_onnx_with_the_numbers_that_they_take() -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    found = save("pipeline", model, "predict", "predict_proba", sample=X)
    checked, method = converted(found, "predict", "fil", "onnxruntime"), method_of(found, "predict")
    config = config_of(checked.converted.native, method)
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert (config.max_batch_size, config.default_model_filename) == (16, "model.onnx")
    assert tensors(config.input) == [("input", "TYPE_FP64", [6])]
    assert tensors(config.output) == [("label", "TYPE_INT64", [1])]
    assert config.output[0].HasField("reshape")  # the graph gives one number for a row, with no axis beside the batch
    assert list(config.output[0].reshape.shape) == []
    assert checked.parity.largest_difference < 1e-9
    graph = onnx.load_from_string(checked.converted.files["model.onnx"]).graph
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["label"]


def graph_file(folder: Path, batch: Any = "n") -> onnx.ModelProto:
    """y = x * w + b, and the sign of its sum."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0, axes=[1]),
    ]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], np.arange(6, dtype=np.float32))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3]),
        helper.make_tensor_value_info("shift", TensorProto.FLOAT, [batch, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, [batch]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def test_pipeline_that_refuses_missing_values_refuses_them_still() -> None:
    found = save("strict", make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y), "predict", sample=X)
    native, method = converted(found, "predict", "onnxruntime").converted.native, method_of(found, "predict")
    assert native.finite
    assert Native.from_dict(native.to_dict()) == native
    with pytest.raises(InvalidArgument, match=r"X of predict\(\) has NaN or infinite numbers"):
        to_native(native, method, [np.where(X > 2, np.nan, X)], {})
    # it takes NaN in one column
    only = ColumnTransformer([("imputed", SimpleImputer(), [0]), ("others", StandardScaler(), [1, 2, 3, 4, 5])])
    holed = np.where((X > 1) & (np.arange(6) == 0), np.nan, X)
    partly = make_pipeline(only, SVC()).fit(holed, Y)
    found = save("partly", partly, "predict", sample=X)
    signature = {"predict": {**BATCHED, "input_spec": ("float64", (-1, 6)), "output_spec": ("int64", (-1,))}}
    found = adapter.sklearn.save_model("partly", partly, signatures=signature, sample=X)
    checked = converted(found, "predict", "onnxruntime")
    assert not checked.converted.native.finite
    assert checked.parity.nan_rows > 0


def test_pipeline_whose_categories_onnx_would_cut_stays_with_python() -> None:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(np.rint(X))  # 1.5 is none of these
    found = save("encoder", encoder, "transform", sample=np.rint(X))
    assert "scores differ" in refused(found, "transform", "onnxruntime")[0]


def test_graph_with_several_tensors_becomes_an_onnxruntime_entry(tmp_path: Path) -> None:
    found = save("graph", graph_file(tmp_path), "run", module=adapter.onnx)
    checked, method = converted(found, "run", "onnxruntime"), method_of(found, "run")
    config = config_of(checked.converted.native, method)
    assert tensors(config.input) == [("x", "TYPE_FP32", [3]), ("shift", "TYPE_FP32", [2])]
    assert tensors(config.output) == [("y", "TYPE_FP32", [2]), ("total", "TYPE_FP32", [1])]
    assert config.max_batch_size == 16
    assert checked.parity.nan_rows == 0  # it answers NaN


def test_graph_whose_calls_are_not_joined_has_whole_shapes(tmp_path: Path) -> None:
    found = adapter.onnx.save_model("alone", graph_file(tmp_path))
    checked, method = converted(found, "run", "onnxruntime"), method_of(found, "run")
    config = config_of(checked.converted.native, method)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input) == [("x", "TYPE_FP32", [-1, 3]), ("shift", "TYPE_FP32", [-1, 2])]
    assert tensors(config.output) == [("y", "TYPE_FP32", [-1, 2]), ("total", "TYPE_FP32", [-1])]
    assert "max_batch_size: 0" in to_text(model_config(Entry("m", "m", (method,), native=checked.converted.native)))


def test_openvino_entry_has_whole_shapes_even_where_calls_are_joined(tmp_path: Path) -> None:
    found = save("open", graph_file(tmp_path), "run", module=adapter.onnx)
    method = method_of(found, "run")
    config = config_of(openvino_of(saved(found, method, batched=False)), method)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.onnx", 0)
    assert tensors(config.input)[0] == ("x", "TYPE_FP32", [-1, 3])
    assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]


def test_missing_converter_is_named_with_what_installs_it(tmp_path: Path) -> None:
    found = save("nothing", graph_file(tmp_path), "run", module=adapter.onnx)
    (said,) = refused(found, "run", "openvino")
    assert "openvino is not installed" in said
    assert "pip install" in said


def test_backends_that_are_not_for_a_framework_say_so() -> None:
    found = save("wrong", LogisticRegression().fit(X, Y), "predict", sample=X)
    reasons = refused(found, "predict", "pytorch", "openvino")
    assert [r.partition(":")[0] for r in reasons] == ["pytorch", "openvino"]
    assert all("not adapter.sklearn" in r for r in reasons)


# ---- LibTorch -------------------------------------------------------------------------------------------------------


def method(*inputs: TensorSpec, outputs: Any, batchable: bool = True, name: str = "__call__") -> MethodSpec:
    return MethodSpec(name, Signature(batchable, inputs=inputs, outputs=tuple(outputs)), BatchingConfig(8))


def test_torchscript_tensors_are_named_by_their_places() -> None:
    called = method(
        TensorSpec("float32", (-1, 3, -1), "image"),
        TensorSpec("int64", (-1,), "kind"),
        outputs=[TensorSpec("float32", (-1, 10), "output_0"), TensorSpec("bool", (-1,), "output_1")],
    )
    config = config_of(pytorch_of(called), called)
    assert (config.backend, config.platform) == ("pytorch", "pytorch_libtorch")
    assert (config.max_batch_size, config.default_model_filename) == (8, "model.pt")
    assert tensors(config.input) == [("INPUT__0", "TYPE_FP32", [3, -1]), ("INPUT__1", "TYPE_INT64", [1])]
    assert tensors(config.output) == [("OUTPUT__0", "TYPE_FP32", [10]), ("OUTPUT__1", "TYPE_BOOL", [1])]
    assert config.input[1].HasField("reshape")
    assert config.parameters["INFERENCE_MODE"].string_value == "true"


@pytest.mark.parametrize(
    ("called", "reason"),
    [
        (method(TensorSpec("uint16", (-1,), "x"), outputs=[TensorSpec("float32", (-1,))]), "uint16"),
        (method(TensorSpec("float32", (-1,), "x"), outputs=[TensorSpec("float32", (-1,))], name="predict"), "forward"),
    ],
)
def test_what_libtorch_lacks_is_named(called: MethodSpec, reason: str) -> None:
    with pytest.raises(CannotConvert, match=reason):
        pytorch_of(called)


# ---- the comparison -------------------------------------------------------------------------------------------------

DOUBLED = method(TensorSpec("float32", (-1, 2), "x"), outputs=[TensorSpec("float32", (-1, 2), "y")])
NATIVE = Native("fil", (NativeTensor("in", "FP32", (2,)),), (NativeTensor("out", "FP32", (2,)),), max_batch_size=8)


def answering(run: Any) -> Converted:
    return Converted(NATIVE, {}, lambda arrays: [run(arrays[0])])


def double(arrays: Any) -> Any:
    return arrays[0] * 2


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda x: x * 2.001, "scores differ .* by up to 0.0005"),
        (lambda x: x[:, :1], "which is not what"),
        (lambda x: (x * 2)[:-1] if len(x) < 40 else x * 2, "shape"),
        (lambda x: np.linalg.inv(x), "cannot be run: LinAlgError"),
        # where the sample has its extremes alone
        (lambda x: np.where(x > 4.99, 0, x * 2), "scores differ"),
    ],
)
def test_model_that_answers_otherwise_is_refused(run: Any, reason: str) -> None:
    sample = [np.array([[0, -5], [5, 1]], np.float32)]
    with pytest.raises(CannotConvert, match=reason):
        compare(answering(run), DOUBLED, double, sample)


def test_model_that_takes_missing_values_otherwise_is_refused() -> None:
    def original(arrays: Any) -> Any:
        return np.nan_to_num(arrays[0]) * 2

    with pytest.raises(CannotConvert, match="by up to nan"):
        compare(answering(lambda x: x * 2), DOUBLED, original, None)
    # what answers NaN to NaN does not take it
    compare(answering(lambda x: np.nan_to_num(x) * 2), DOUBLED, double, None)


def test_comparison_covers_the_sample_its_extremes_and_missing_values() -> None:
    seen: list[Any] = []

    def run(x: Any) -> Any:
        seen.append(x.copy())
        return x * np.float32(2)

    sample = [np.array([[0, -5], [5, 1], [2, 3]], np.float32)]
    parity = compare(answering(lambda x: np.nan_to_num(run(x))), DOUBLED, lambda a: np.nan_to_num(double(a)), sample)
    rows = np.concatenate(seen)
    assert parity.rows == len(rows) >= ROWS
    assert parity.nan_rows > 0
    assert parity.largest_difference == 0
    known = {tuple(row) for row in rows.tolist()}
    assert {(0, -5), (5, 1), (2, 3), (5, 3), (5, -5)} <= known
    assert np.isnan(rows).any()
    assert (rows == 0).all(axis=1).any()
    # as far beyond the sample as its own range
    assert (np.nanmin(rows, axis=0) < [-4, -12]).all()
    assert (np.nanmax(rows, axis=0) > [9, 10]).all()


def test_model_that_knows_small_numbers_alone_is_held_to_them() -> None:
    def tiny(arrays: Any) -> Any:
        return arrays[0] * np.float32(1e-6)

    compare(answering(lambda x: x * np.float32(1.000001e-6)), DOUBLED, tiny, None)
    with pytest.raises(CannotConvert, match="scores differ"):
        compare(answering(lambda x: x * np.float32(1.001e-6)), DOUBLED, tiny, None)
    beside, off = np.array([1e6, 1e-6], np.float32), np.array([1e6, 2e-6], np.float32)
    with pytest.raises(CannotConvert, match="scores differ"):
        compare(answering(lambda x: x * off), DOUBLED, lambda arrays: arrays[0] * beside, None)


def test_model_that_answers_where_the_other_raises_is_refused() -> None:
    def original(arrays: Any) -> Any:
        if (np.abs(arrays[0]) > 6).any():
            raise ValueError("no category 7")
        return double(arrays)

    sample = [np.array([[0, -5], [5, 1]], np.float32)]
    with pytest.raises(
        CannotConvert, match=r"answers where __call__\(\) raises an error \(ValueError: no category 7\)"
    ):
        compare(answering(lambda x: x * 2), DOUBLED, original, sample)
    assert compare(answering(lambda x: original([x])), DOUBLED, original, sample).rows >= ROWS


def test_number_in_the_place_of_nan_is_kept_from_clients() -> None:
    assert compare(answering(lambda x: np.nan_to_num(x) * 2), DOUBLED, double, None).refuses_nan
    assert not compare(answering(lambda x: x * 2), DOUBLED, double, None).refuses_nan


def test_labels_that_are_floats_must_be_equal() -> None:
    days = method(TensorSpec("float32", (-1, 2), "x"), outputs=[TensorSpec("float64", (-1,), "y")])
    native = replace(NATIVE, outputs=(NativeTensor("out", "FP32", (1,), meaning=CLASSES),), classes=(2e7, 2e7 + 1))
    scores = (lambda arrays: [arrays[0]], lambda arrays: [arrays[0]])
    found = Converted(native, {}, lambda arrays: [(arrays[0][:, :1] > 0).astype(np.float32)], scores=scores)
    compare(found, days, lambda arrays: np.where(arrays[0][:, 0] > 0, 2e7 + 1, 2e7), None)
    with pytest.raises(CannotConvert, match="labels"):
        compare(found, days, lambda arrays: np.where(arrays[0][:, 0] > 0, 2e7, 2e7 + 1), None)


def test_model_that_cannot_be_tried_without_a_sample_says_so() -> None:
    def original(arrays: Any) -> Any:
        raise IndexError("index 7 is out of range")

    with pytest.raises(CannotConvert, match=r"IndexError: index 7 .*save it with `sample=`"):
        compare(answering(lambda x: x), DOUBLED, original, None)


def test_fixed_shapes_are_tried_one_by_one() -> None:
    alone = method(TensorSpec("float32", (2, 3), "x"), outputs=[TensorSpec("float32", (2,), "y")], batchable=False)
    native = Native("onnxruntime", (NativeTensor("in", "FP32", (2, 3)),), (NativeTensor("out", "FP32", (2,)),))
    found = Converted(native, {}, lambda arrays: [arrays[0].sum(axis=1)])
    assert compare(found, alone, lambda arrays: arrays[0].sum(axis=1), None).rows >= ROWS


def test_labels_that_differ_are_counted() -> None:
    labels = method(TensorSpec("float32", (-1, 2), "x"), outputs=[TensorSpec("int64", (-1,), "y")])
    native = replace(NATIVE, outputs=(NativeTensor("out", "FP32", (1,), meaning=CLASSES),), classes=(10, 20))
    right = Converted(native, {}, lambda arrays: [(arrays[0][:, :1] > 0).astype(np.float32)])
    compare(right, labels, lambda arrays: np.where(arrays[0][:, 0] > 0, 20, 10), None)
    with pytest.raises(CannotConvert, match=r"of .* labels of __call__\(\) are others"):
        compare(right, labels, lambda arrays: np.where(arrays[0][:, 0] > 0.5, 20, 10), None)


# ---- values on the wire ---------------------------------------------------------------------------------------------


def test_values_come_back_as_the_method_has_them() -> None:
    labels = method(TensorSpec("float64", (-1, 2), "x"), outputs=[TensorSpec("int64", (-1,), "y")])
    native = replace(NATIVE, outputs=(NativeTensor("out", "FP32", (1,), meaning=CLASSES),), classes=(-3, 7))
    (found,) = from_native(native, labels, [np.array([[0.0], [1.0], [1.0]], np.float32)])
    assert (found.tolist(), found.dtype.name) == ([[-3], [7], [7]], "int64")
    with pytest.raises(RemoteException, match="not what __call__"):
        from_native(native, labels, [np.array([[5.0]], np.float32)])
    pairs = method(TensorSpec("float64", (-1, 2), "x"), outputs=[TensorSpec("float64", (-1, 2), "y")])
    native = replace(NATIVE, outputs=(NativeTensor("out", "FP32", (1,), meaning=PAIR),))
    (found,) = from_native(native, pairs, [np.array([[0.25], [1.0]], np.float32)])
    assert (found.tolist(), found.dtype.name) == ([[0.75, 0.25], [0.0, 1.0]], "float64")


def test_numbers_that_float32_does_not_hold_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="'x' has a number that does not fit FP32"):
        to_native(NATIVE, DOUBLED, [np.array([[1e300, 0]])], {})


def test_arguments_beside_the_tensors_are_refused() -> None:
    with pytest.raises(PayloadTypeError, match=r"fil backend.*leave out check_input"):
        to_native(NATIVE, DOUBLED, [np.zeros((1, 2), np.float32)], {"kwargs": {"check_input": False}})


def test_native_record_is_read_as_it_was_written() -> None:
    native = replace(NATIVE, parameters={"a": "b"}, classes=(1, 2.5), columns=("a",))
    assert Native.from_dict(native.to_dict()) == native


def test_interface_changes_with_the_backend() -> None:
    plain, native = Entry("e", "r", (DOUBLED,)), Entry("e", "r", (DOUBLED,), native=NATIVE)
    assert (
        len({plain.interface, native.interface, replace(native, native=replace(NATIVE, classes=(1,))).interface}) == 3
    )


def test_gpus_that_a_runner_asks_for_are_those_of_the_entry() -> None:
    where = Placement((Group(1, gpus=(1, 2)),))
    (group,) = model_config(Entry("e", "r", (DOUBLED,), where, native=NATIVE)).instance_group
    assert (group.kind, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, [1, 2])

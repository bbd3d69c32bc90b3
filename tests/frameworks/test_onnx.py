from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import onnx as framework
from adapter.model import Model, Parameter
from adapter.runnable import supports_gpu, supports_threads
from tests.frameworks.conftest import Call, Serve

X, Y = load_iris(return_X_y=True)
ROWS = X.astype("float32")
BATCHED = {"run": {"batchable": True}}
CLASSIFIER = LogisticRegression(max_iter=500).fit(X, Y)
NAMED = LogisticRegression(max_iter=500).fit(X, np.array(["x", "y", "ž"])[Y])


def graph(nodes: list[Any], inputs: dict[str, tuple[int, Any]], outputs: dict[str, tuple[int, Any]]) -> Any:
    """A model of a few nodes; inputs and outputs are data types and shapes by name."""
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    returns = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    made = helper.make_graph(nodes, "g", takes, returns)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def doubled(shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return graph([helper.make_node("Add", ["x", "x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)})


# two inputs, one of which Python could not name, and two outputs
TWO = graph(
    [helper.make_node("Add", ["left:0", "right"], ["sum"]), helper.make_node("Sub", ["left:0", "right"], ["rest"])],
    {"left:0": (TensorProto.FLOAT, ["n", 2]), "right": (TensorProto.FLOAT, ["n", 2])},
    {"sum": (TensorProto.FLOAT, ["n", 2]), "rest": (TensorProto.FLOAT, ["n", 2])},
)
# text and numbers, in and out
TEXTS = graph(
    [helper.make_node("Identity", ["words"], ["same"]), helper.make_node("Neg", ["numbers"], ["less"])],
    {"words": (TensorProto.STRING, ["n", 1]), "numbers": (TensorProto.INT64, ["n"])},
    {"same": (TensorProto.STRING, ["n", 1]), "less": (TensorProto.INT64, ["n"])},
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


def described(model: Model) -> tuple[Any, Any]:
    signature = model.info.signatures["run"]
    inputs = [(s.name, s.dtype, s.shape) for s in signature.inputs or ()]
    return inputs, [(s.name, s.dtype, s.shape) for s in signature.outputs or ()]


def test_save_model_when_the_graph_tells_its_tensors() -> None:
    model = framework.save_model("m", TWO, signatures=BATCHED)
    assert described(model) == (
        [("left_0", "float32", (-1, 2)), ("right", "float32", (-1, 2))],
        [("output_0", "float32", (-1, 2)), ("output_1", "float32", (-1, 2))],
    )
    assert model.info.signatures["run"].parameters == (Parameter("left_0"), Parameter("right"))
    assert set(model.info.context["framework_versions"]) == {"onnxruntime", "numpy"}
    session = framework.load_model("m")
    assert isinstance(session, onnxruntime.InferenceSession)
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.INT32, "int32"),
        (TensorProto.UINT8, "uint8"),
    ],
)
def test_save_model_when_the_numbers_are_of_another_type(kind: int, dtype: str) -> None:
    made = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, [None, 3])}, {"y": (kind, [None, 3])})
    model = framework.save_model("m", made, signatures=BATCHED)
    assert described(model) == ([("x", dtype, (-1, 3))], [("output_0", dtype, (-1, 3))])


def test_save_model_when_it_is_a_file(tmp_path: Path) -> None:
    onnx.save(doubled(["n", 2]), str(tmp_path / "model.onnx"))
    for path in (tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        assert framework.save_model("m", path).info.signatures["run"].typed


def test_save_model_when_an_input_is_called_as_python_calls_something() -> None:
    nodes = [helper.make_node("Sub", ["class", "_class"], ["y"])]
    tensor = (TensorProto.FLOAT, ["n", 2])
    model = framework.save_model("m", graph(nodes, {"class": tensor, "_class": tensor}, {"y": tensor}))
    assert [name for name, _, _ in described(model)[0]] == ["_class", "_class_"]
    runner = model.to_runner()
    runner.init_local(quiet=True)
    assert runner.run.run(_class=ROWS[:, :2], _class_=ROWS[:, 2:]).tolist() == (ROWS[:, :2] - ROWS[:, 2:]).tolist()
    runner.destroy()


def test_save_model_when_an_input_is_of_a_type_that_cannot_be_sent() -> None:
    tensor = (TensorProto.BFLOAT16, ["n", 2])
    made = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
    with pytest.raises(InvalidArgument, match=r"'x' of the graph is of bfloat16.*cast it in the graph"):
        framework.save_model("m", made)


def test_save_model_when_a_file_of_its_weights_is_missing(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], np.eye(2, dtype="float32").tobytes(), raw=True)
    made = doubled(["n", 2])
    made.graph.node[0].CopyFrom(helper.make_node("MatMul", ["x", "w"], ["y"]))
    made.graph.initializer.append(weights)
    file = tmp_path / "model.onnx"
    onnx.save(made, str(file), save_as_external_data=True, location="weights", size_threshold=0)
    assert framework.save_model("m", file).info.signatures["run"].typed
    (tmp_path / "weights").unlink()
    with pytest.raises(InvalidArgument, match=r"model\.onnx' cannot be read as an ONNX model: .*weights"):
        framework.save_model("m", file)


def test_save_model_when_it_is_larger_than_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.arange(4096, dtype="float32").reshape(2, 2048)
    large = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 2])},
        {"y": (TensorProto.FLOAT, ["n", 2048])},
    )
    large.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    before = large.SerializeToString()
    monkeypatch.setattr(framework, "_LARGEST", 1000)
    model = framework.save_model("m", large)
    assert Path(model.path_of("saved_model.onnx.data")).stat().st_size >= weights.nbytes
    ones = np.ones((1, 2), "float32")
    assert np.array_equal(framework.load_model("m").run(None, {"x": ones})[0], ones @ weights)
    # and the model in memory is whole
    session = onnxruntime.InferenceSession(large.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": ones})[0], ones @ weights)
    assert len(large.SerializeToString()) == pytest.approx(len(before), abs=200)


@pytest.mark.parametrize(
    ("made", "sample", "typed"),
    [
        (doubled(None), None, False),  # of any shape
        (doubled(None), ROWS[:5], True),
        (doubled([]), None, False),  # a scalar
        (TEXTS, None, False),
        (to_onnx(CLASSIFIER, ROWS[:1]), None, False),  # its probabilities are a list of maps
    ],
)
def test_save_model_when_the_graph_does_not_tell_all(made: Any, sample: Any, typed: bool) -> None:
    assert framework.save_model("m", made, signatures=BATCHED, sample=sample).info.signatures["run"].typed == typed


def test_save_model_when_a_batch_has_a_fixed_size() -> None:
    with pytest.raises(InvalidArgument, match=r"input 'x' of the graph has the shape \(1, 2\), so calls cannot be jo"):
        framework.save_model("m", doubled([1, 2]), signatures=BATCHED)
    assert models.list() == []
    model = framework.save_model("m", doubled([1, 2]))
    assert described(model) == ([("x", "float32", (1, 2))], [("output_0", "float32", (1, 2))])


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ({}, {}, "saves an onnx.ModelProto or the path of one, not a dict"),
        ("nowhere.onnx", {}, "There is no file 'nowhere.onnx'"),
        (__file__, {}, "cannot be read as an ONNX model"),
        (onnx.ModelProto(), {}, "ONNX Runtime cannot load the model m"),
        (doubled(["n"]), {"signatures": {"predict": {}}}, "'predict', which this InferenceSession does not have"),
        (doubled(["n"]), {"providers": ["Quantum"]}, "no provider 'Quantum' here; it has .*CPUExecutionProvider"),
        (doubled(["n"]), {"providers": "CPUExecutionProvider"}, "providers is a list such as"),
        (doubled(["n"]), {"session_options": {"speed": 2}}, "session_options has 'speed': 2, which"),
        (doubled(["n"]), {"session_options": {"intra_op_num_threads": "x"}}, "'intra_op_num_threads': 'x', which"),
        (doubled(["n"]), {"session_options": {"register_custom_ops_library": "x"}}, "does not take"),
        (doubled(["n"]), {"session_options": [1]}, "session_options is a mapping"),
    ],
)
def test_save_model_when_it_cannot_be(model: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        framework.save_model("m", model, **options)
    assert models.list() == []


def test_session_options_when_they_are_saved_changed_and_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_NUM_THREAD", "3")
    model = framework.save_model(
        "m", doubled(["n"]), session_options={"inter_op_num_threads": 2, "execution_mode": "ORT_PARALLEL"}
    )

    def threads(session: Any) -> tuple[int, int]:
        settings = session.get_session_options()
        return settings.intra_op_num_threads, settings.inter_op_num_threads

    assert threads(framework.load_model(model)) == (3, 2)
    settings = framework.load_model(model).get_session_options()
    assert settings.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    spinning = model.with_options(session_options={"session.intra_op.allow_spinning": 1}).load_model()
    assert spinning.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "1"
    monkeypatch.setenv("ADAPTER_IN_STUB", "1")  # as ONNX Runtime does it, where there is no worker
    own = framework.load_model(model)
    assert threads(own) == (3, 2)
    with pytest.raises(RuntimeError, match="allow_spinning"):  # nothing is said of it
        own.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    monkeypatch.delenv("ADAPTER_IN_STUB")
    changed = model.with_options(session_options={"intra_op_num_threads": 1}, providers=["CPUExecutionProvider"])
    served: Any = changed.to_runnable()()
    assert threads(served.model.session) == (1, 0)
    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = 4
    assert threads(framework.load_model(model, session_options=given)) == (4, 0)
    with pytest.raises(InvalidArgument, match="holds a value of type SessionOptions"):
        model.with_options(session_options=given)


def test_to_runner_when_called_locally() -> None:
    runner = framework.save_model("m", TEXTS, signatures=BATCHED).to_runner()
    assert supports_gpu(runner.spec.runnable_class)
    assert supports_threads(runner.spec.runnable_class)
    runner.init_local(quiet=True)
    try:
        words, less = runner.run(pd.DataFrame({"w": ["ä", "b"]}), numbers=[1, 2])
        assert words.tolist() == [["ä"], ["b"]]
        assert less.tolist() == [-1, -2]
        with pytest.raises(InvalidArgument, match="'numbers' takes an array of int64, which 'x' does not fit"):
            runner.run([["a"]], ["x"])
        with pytest.raises(TypeError, match="missing a required argument: 'numbers'"):
            runner.run([["a"]])
    finally:
        runner.destroy()


WITHOUT = """
import sys
import adapter
model = adapter.onnx.get("m")
assert model.to_runner().run.config.typed
assert not {"onnx", "onnxruntime"} & set(sys.modules), sorted(sys.modules)
sys.modules["onnx"] = None
assert model.load_model().run(None, {"x": [[1.0, 2.0]]})[0].tolist() == [[2.0, 4.0]]
sys.modules["onnxruntime"] = None
for use in (lambda: adapter.onnx.load_model(model), lambda: adapter.onnx.save_model("n", None)):
    try:
        use()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_get_when_onnx_is_not_imported() -> None:
    framework.save_model("m", doubled(["n", 2]))
    said = subprocess.check_output([sys.executable, "-c", WITHOUT], text=True).splitlines()
    way_out = "run `pip install 'triton-adapter[onnx]'`."
    assert said == [
        f"MissingDependencyException: onnxruntime is not installed, and adapter.onnx needs it: {way_out}",
        f"MissingDependencyException: onnx is not installed, and adapter.onnx needs it: {way_out}",
    ]


# ---- served by a real engine ----------------------------------------------------------------------------------------

PLAIN = to_onnx(CLASSIFIER, ROWS[:1], options={"zipmap": False})
MAPS = to_onnx(NAMED, ROWS[:1])


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    given = {"plain": PLAIN, "maps": MAPS, "two": TWO, "texts": TEXTS}
    return serve_models(*(framework.save_model(n, m, signatures=BATCHED) for n, m in given.items()))


def itself(model: Any, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("rows", [X, ROWS[:1], X.tolist(), pd.DataFrame(X)], ids=["float64", "row", "list", "frame"])
def test_served_classifier_equals_the_model_itself(call: Call, rows: Any) -> None:
    labels, scores = call("plain", "run", rows)
    expected = itself(PLAIN, X=np.asarray(rows, dtype="float32"))
    assert np.array_equal(labels, expected[0])
    assert np.allclose(scores, expected[1], rtol=1e-6)
    assert (labels == CLASSIFIER.predict(np.asarray(rows))).all()


def test_served_classifier_whose_scores_are_maps(call: Call) -> None:
    labels, scores = call("maps", "run", ROWS)
    expected = itself(MAPS, X=ROWS)
    assert labels.tolist() == expected[0].tolist() == NAMED.predict(X).tolist()
    assert scores == [pytest.approx(each, rel=1e-6) for each in expected[1]]


def test_served_model_with_several_inputs_and_outputs(call: Call) -> None:
    left, right = ROWS[:, :2], ROWS[:, 2:]
    for found in (call("two", "run", left, right), call("two", "run", right=right, left_0=left)):
        assert type(found) is tuple
        assert np.array_equal(found[0], left + right)
        assert np.array_equal(found[1], left - right)


def test_served_model_takes_and_returns_text(call: Call) -> None:
    words = [["Grüße"], [""], ["a" * 5000], ["日本"]]
    found, less = call("texts", "run", np.array(words), np.arange(4))
    assert found.tolist() == words
    assert less.tolist() == [0, -1, -2, -3]


def test_served_model_when_the_call_does_not_fit(call: Call) -> None:
    with pytest.raises(InvalidArgument, match=r"shape \(-1, 4\)"):
        call("plain", "run", ROWS[:, :3])
    with pytest.raises(InvalidArgument, match="'numbers' takes an array of int64"):
        call("texts", "run", [["a"]], ["text"])

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.frameworks import trial
from adapter.frameworks.trial import Trial
from adapter.model import Parameter
from adapter.tensor import TensorSpec

ROWS = np.arange(12, dtype="float32").reshape(4, 3)
X, Y = Parameter("x"), Parameter("y")
ARGS, KWARGS = Parameter("rest", "VAR_POSITIONAL"), Parameter("more", "VAR_KEYWORD")


def tried(function: Any, sample: Any, parameters: Any = (X,), **options: Any) -> Any:
    found = Trial("model.run", sample, parameters, **options).tensors(lambda args, kwargs: function(*args, **kwargs))
    if found is None:
        return None
    return tuple([(s.name, s.dtype, s.shape) for s in specs] for specs in found)


@pytest.mark.parametrize(
    ("sample", "inputs"),
    [
        (ROWS, ("float32", (-1, 3))),
        (ROWS[:1], ("float32", (-1, 3))),
        (ROWS.tolist(), ("float64", (-1, 3))),
        ([1, 2], ("int64", (-1,))),
        (pd.DataFrame(ROWS), ("float32", (-1, 3))),
        (pd.Series([True, False]), ("bool", (-1,))),
        (np.zeros((2, 4, 4, 3), "uint8"), ("uint8", (-1, 4, 4, 3))),
    ],
)
def test_tensors_when_the_sample_is_one_input(sample: Any, inputs: Any) -> None:
    expected = [("x", *inputs)], [("output_0", "float64", (-1,))]
    assert tried(lambda x: np.zeros(len(x)), sample) == expected


@pytest.mark.parametrize(
    ("sample", "parameters"),
    [
        ((ROWS, ROWS[:, 0]), (X, Y)),
        ({"x": ROWS, "y": ROWS[:, 0]}, (X, Y)),
        ({"y": ROWS[:, 0], "x": ROWS}, (X, Parameter("y", "KEYWORD_ONLY"))),
        ((ROWS, ROWS[:, 0]), (X, Y, Parameter("z", required=False), KWARGS)),
    ],
)
def test_tensors_when_there_are_several_inputs_and_outputs(sample: Any, parameters: Any) -> None:
    found = tried(lambda x, y, **_: (x + y[:, None], y > 1), sample, parameters)
    assert sorted(found[0]) == [("x", "float32", (-1, 3)), ("y", "float32", (-1,))]
    assert found[1] == [("output_0", "float32", (-1, 3)), ("output_1", "bool", (-1,))]


@pytest.mark.parametrize("parameters", [(ARGS,), None])
def test_tensors_when_the_parameters_have_no_names(parameters: Any) -> None:
    found = tried(lambda *rest: rest[0] + rest[1], (ROWS, ROWS), parameters)
    assert [name for name, _, _ in found[0]] == ["input_0", "input_1"]


def test_tensors_when_a_call_could_not_be_made_of_them_again() -> None:
    assert tried(lambda x, *rest: x + rest[0], (ROWS, ROWS), (X, ARGS)) is None


def test_tensors_when_the_batch_is_on_another_axis() -> None:
    found = tried(lambda x: x.sum(axis=0), ROWS, axes=(1, 0))
    assert found == ([("x", "float32", (4, -1))], [("output_0", "float32", (-1,))])


def test_tensors_when_each_call_has_keyword_arguments() -> None:
    def predict(x: Any, *, leaves: bool = False) -> Any:
        return np.zeros((len(x), 7), "int32") if leaves else np.zeros(len(x))

    assert tried(predict, ROWS, partial={"leaves": True})[1] == [("output_0", "int32", (-1, 7))]


@pytest.mark.parametrize(
    "result",
    [
        lambda x: [np.zeros(len(x))],  # a list, which a caller would get as a tuple
        lambda x: (np.zeros(len(x)),),
        lambda x: {"a": np.zeros(len(x))},
        lambda x: np.zeros(3),  # not a row for each
        lambda x: np.zeros((len(x), len(x))),
        lambda x: np.float64(1),
        lambda x: np.array(["a"] * len(x)),
        lambda x: np.ma.masked_array(np.zeros(len(x))),
        lambda x: pd.Series(np.zeros(len(x))),
        lambda x: (np.zeros(len(x)), None),
        lambda x: (),
        lambda x: None,
    ],
)
def test_tensors_when_the_result_is_something_else(result: Any) -> None:
    assert tried(result, ROWS) is None


@pytest.mark.parametrize(
    ("sample", "parameters"),
    [
        (None, (X,)),
        ("text", (X,)),
        (["a"], (X,)),
        ([[1], [2, 3]], (X,)),
        (ROWS[:0], (X,)),
        (np.float32(1), (X,)),
        (pd.DataFrame({"a": [1], "b": ["x"]}), (X,)),
        (ROWS, (X, Y)),  # one is missing
        ({}, (X,)),
        (np.zeros(2, "complex64"), (X,)),
    ],
)
def test_tensors_when_the_sample_is_not_of_numbers(sample: Any, parameters: Any) -> None:
    assert tried(lambda x, y=None: np.zeros(len(x)), sample, parameters) is None


def test_tensors_when_the_method_refuses_the_sample(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(x: Any) -> Any:
        raise ValueError("no such thing")

    with caplog.at_level(logging.WARNING):
        assert Trial("model.run", None, (X,)).on(ROWS).tensors(lambda args, _: refuses(*args)) is None
    assert caplog.text == ""
    assert tried(refuses, ROWS) is None
    assert "A trial of model.run failed, so its calls travel as blobs: ValueError: no such thing" in caplog.text


def test_positional_when_some_came_by_name() -> None:
    z = Parameter("z", "KEYWORD_ONLY")
    assert trial.positional((X, Y, z), (1,), {"z": 3, "y": 2}) == ((1, 2), {"z": 3})
    assert trial.positional((X, Y, z), (), {"y": 2}) == ((), {"y": 2})
    assert trial.positional(None, (1,), {"y": 2}) == ((1,), {"y": 2})


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["float32", "int8", "uint64", "bool"]))
def test_tensors_take_what_the_sample_was_of(rows: int, width: int, dtype: str) -> None:
    sample = np.ones((rows, width), dtype)
    found = Trial("model.run", sample, (X,)).tensors(lambda args, _: args[0])
    assert found == ((TensorSpec(dtype, (-1, width), "x"),), (TensorSpec(dtype, (-1, width), "output_0"),))
    found[0][0].cast(sample)

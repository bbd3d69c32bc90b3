from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from adapter.exceptions import InvalidArgument, StateException
from adapter.model import BatchingConfig, Model, ModelInfo, Parameter, Signature
from adapter.tag import Tag
from adapter.tensor import TensorSpec

INFO = ModelInfo(
    tag=Tag("iris", "v1"),
    module="adapter.sklearn",
    labels={"team": "risk"},
    options={"partial_kwargs": {"predict": {"verbose": False}}},
    metadata={"accuracy": 0.97},
    context={"framework_name": "sklearn"},
    signatures={
        "predict": Signature(
            True,
            (0, 1),
            (TensorSpec("float64", (-1, 4), "X"),),
            (TensorSpec("int64", (3, -1), "output_0"),),
            (Parameter("X"), Parameter("check", "KEYWORD_ONLY", False)),
        ),
        "score": Signature(),
    },
    creation_time=datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc),
)


def scale(x: Any, /, factor: float = 2.0, *more: Any, exact: bool, **rest: Any) -> Any:
    return x


def test_parameters_when_the_function_has_every_kind() -> None:
    assert Parameter.all_of(scale) == (
        Parameter("x", "POSITIONAL_ONLY", True),
        Parameter("factor", "POSITIONAL_OR_KEYWORD", False),
        Parameter("more", "VAR_POSITIONAL", True),
        Parameter("exact", "KEYWORD_ONLY", True),
        Parameter("rest", "VAR_KEYWORD", True),
    )


@pytest.mark.parametrize("function", [max, 3, None])
def test_parameters_when_python_cannot_tell_them(function: Any) -> None:
    assert Parameter.all_of(function) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, Signature()),
        ({"batchable": True}, Signature(True, (0, 0))),
        ({"batchable": True, "batch_dim": 1}, Signature(True, (1, 1))),
        ({"batchable": True, "batch_dim": [0, 1]}, Signature(True, (0, 1))),
        (
            {"batchable": True, "input_spec": np.zeros((7, 4), "float32"), "output_spec": ("int64", (-1,))},
            Signature(True, (0, 0), (TensorSpec("float32", (-1, 4)),), (TensorSpec("int64", (-1,), "output_0"),)),
        ),
        (
            {"input_spec": {"a": ("bool", ()), "b": np.zeros(3)}, "output_spec": [("int8", (1,)), ("int8", (2,))]},
            Signature(
                inputs=(TensorSpec("bool", (), "a"), TensorSpec("float64", (3,), "b")),
                outputs=(TensorSpec("int8", (1,), "output_0"), TensorSpec("int8", (2,), "output_1")),
            ),
        ),
        ({"input_spec": (np.dtype("int8"), (2,))}, Signature(inputs=(TensorSpec("int8", (2,)),))),
        (Signature(True), Signature(True)),
    ],
)
def test_signature_of_when_the_mapping_is_valid(spec: Any, expected: Signature) -> None:
    assert Signature.of(spec) == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"batchabel": True}, "no key 'batchabel'"),
        ({"batch_dim": -1}, "batch_dim is a number from 0 on"),
        ({"batch_dim": (0, 1, 2)}, "batch_dim is a number from 0 on"),
        ({"batch_dim": "0"}, "batch_dim is a number from 0 on"),
        ("predict", "A signature is a mapping"),
    ],
)
def test_signature_of_when_the_mapping_is_not_valid(spec: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Signature.of(spec)


@pytest.mark.parametrize(
    ("outputs", "typed"),
    [((TensorSpec("int64", (-1,)),), True), ((TensorSpec("<U5", (-1,)),), False), (None, False)],
)
def test_signature_typed_when_triton_has_the_data_types(outputs: Any, typed: bool) -> None:
    assert Signature(inputs=(TensorSpec("float64", (-1, 4)),), outputs=outputs).typed is typed


def test_info_when_read_from_its_own_record() -> None:
    assert ModelInfo.from_dict(INFO.to_dict()) == INFO


def test_info_record_when_written() -> None:
    record = INFO.to_dict()
    assert list(record) == [
        "name", "version", "module", "labels", "options", "metadata", "context", "signatures", "api_version",
        "creation_time",
    ]  # fmt: skip
    assert record["signatures"]["predict"]["batch_dim"] == [0, 1]
    assert record["signatures"]["score"] == {"batchable": False}
    assert record["creation_time"] == "2026-01-02T03:04:05.678901+00:00"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_batching_config_when_the_size_is_not_valid(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_batch_size"):
        BatchingConfig(max_batch_size=value)


@pytest.mark.parametrize("value", [0, -1.0, True, "8", float("nan")])
def test_batching_config_when_the_latency_is_not_valid(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_latency_ms"):
        BatchingConfig(max_latency_ms=value)


def test_model_when_its_files_are_here(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").write_bytes(b"12345")
    model = Model(INFO, tmp_path)
    assert (model.path, model.path_of("weights")) == (str(tmp_path), str(tmp_path / "weights"))
    assert model.file_size == 5
    assert model.custom_objects == {}
    (tmp_path / Model.CUSTOM_OBJECTS).write_bytes(cloudpickle.dumps({"limit": 3}))
    assert model.custom_objects == {"limit": 3}
    assert repr(model) == 'Model(tag="iris:v1")'


def test_model_when_only_its_record_is_here() -> None:
    model = Model(INFO, None)
    for use in (lambda: model.path, lambda: model.path_of("x"), lambda: model.custom_objects, model.load_model):
        with pytest.raises(StateException, match="iris:v1 are not on this machine"):
            use()


def test_model_equality_when_the_tags_are_equal(tmp_path: Path) -> None:
    assert Model(INFO, None) == Model(INFO, tmp_path)
    assert len({Model(INFO, None), Model(INFO, tmp_path)}) == 1


def test_with_options_when_some_are_set_already() -> None:
    info = dataclasses.replace(INFO, options={"partial_kwargs": {"predict": {"verbose": False}}, "model_class": "SVC"})
    changed = Model(info, None).with_options(model_class="NuSVC")
    assert changed.info.options == {"partial_kwargs": {"predict": {"verbose": False}}, "model_class": "NuSVC"}
    assert info.options["model_class"] == "SVC"
    assert changed.info.signatures == INFO.signatures


def test_with_options_when_the_keyword_arguments_of_a_method_change() -> None:
    changed = Model(INFO, None).with_options(partial_kwargs={"predict": {"level": np.int64(2)}})
    assert changed.info.options == {"partial_kwargs": {"predict": {"level": 2}}}
    # what it returns may be something else now
    assert changed.info.signatures["predict"].outputs is None
    assert changed.info.signatures["predict"].inputs == INFO.signatures["predict"].inputs
    assert changed.info.signatures["score"] == INFO.signatures["score"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cpu"}, "A model of adapter.sklearn has no option 'device'; it has partial_kwargs."),
        ({"partial_kwargs": {"predict": {"a": object()}}}, r"holds a value of type object"),
    ],
)
def test_with_options_when_one_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Model(INFO, None).with_options(**options)


def test_with_options_when_no_framework_saved_it() -> None:
    info = dataclasses.replace(INFO, module="my.rules", options={})
    assert Model(info, None).with_options(limit=3).info.options == {"limit": 3}


def test_sample_when_there_is_none(tmp_path: Path) -> None:
    assert Model(INFO, tmp_path).sample is None

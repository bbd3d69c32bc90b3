from __future__ import annotations

import logging
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from adapter import __version__, models
from adapter.exceptions import AlreadyExists, InvalidArgument, NotFound, StateException
from adapter.model import Model, ModelInfo, Signature, plain
from adapter.tag import Tag


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))
    return tmp_path


class OneModel:
    """Another source than the store, as a worker or a front installs it."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def get(self, tag: Tag) -> Model:
        if tag.name != self.model.tag.name:
            raise NotFound(f"only {self.model.tag} is here")
        return self.model

    def list(self, name: str | None = None) -> list[Model]:
        return [self.model] if name in (None, self.model.tag.name) else []


@pytest.fixture
def elsewhere() -> Iterator[Model]:
    model = Model(ModelInfo(Tag("far", "v1"), "adapter.sklearn"), None)
    models.use_source(OneModel(model))
    yield model
    models.use_source(None)


@pytest.fixture
def rules() -> Iterator[types.ModuleType]:
    """A module of the user's own, which exists in this process only."""
    module = types.ModuleType("users_own_rules")
    exec("class Rule:\n    limit = 3\n", module.__dict__)
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_create_when_the_block_ends_well(home: Path) -> None:
    with models.create(
        "rules",
        module="adapter.picklable_model",
        signatures={"predict": {"batchable": True}},
        labels={"stage": 3, "team": "risk"},
        options={"threshold": np.float32(0.5)},
        metadata={"scores": np.array([0.5, 1.0]), "n": np.int64(3)},
        custom_objects={"limit": 3},
        context={"framework_name": "none"},
    ) as model:
        Path(model.path_of("rules.txt")).write_text("x > 3")
        assert models.list() == []
    found = models.get("rules")
    assert found == model
    assert found.folder == model.folder == home / "models" / "rules" / (model.tag.version or "")
    assert Path(found.path_of("rules.txt")).read_text() == "x > 3"
    assert found.custom_objects == {"limit": 3}
    info = found.info
    assert info.labels == {"stage": "3", "team": "risk"}
    assert info.options == {"threshold": 0.5}
    assert info.metadata == {"scores": [0.5, 1.0], "n": 3}
    assert info.signatures == {"predict": Signature(batchable=True)}
    assert info.context["adapter_version"] == __version__
    assert info.context["framework_name"] == "none"
    assert info.context["python_version"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_create_when_the_block_raises() -> None:
    def fail() -> None:
        with models.create("rules"):
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        fail()
    assert models.list() == []


def test_create_when_the_version_is_explicit() -> None:
    with models.create("rules:v1") as model:
        pass
    assert str(model.tag) == "rules:v1"
    with pytest.raises(AlreadyExists), models.create("rules:v1"):
        pytest.fail("the block does not run")


def test_create_when_modules_are_pickled_by_value(rules: types.ModuleType) -> None:
    with models.create("rules", custom_objects={"rule": rules.Rule()}, external_modules=[rules]) as model:
        pass
    assert cloudpickle.list_registry_pickle_by_value() == set()
    file = model.path_of(Model.CUSTOM_OBJECTS)
    # another process, where the module does not exist
    script = f"import pickle; print(pickle.load(open({file!r}, 'rb'))['rule'].limit)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "3\n"


def test_create_when_a_module_is_registered_by_the_user(rules: types.ModuleType) -> None:
    cloudpickle.register_pickle_by_value(rules)
    try:
        with models.create("rules", external_modules=[rules]):
            pass
        assert cloudpickle.list_registry_pickle_by_value() == {"users_own_rules"}
    finally:
        cloudpickle.unregister_pickle_by_value(rules)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"labels": ["risk"]}, "labels is a mapping"),
        ({"custom_objects": [1]}, "custom_objects is a mapping"),
        ({"custom_objects": {"lock": threading.Lock()}}, "custom_objects cannot be pickled"),
    ],
)
def test_create_when_what_is_given_cannot_be_kept(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason), models.create("m", **given):
        pass
    assert models.list() == []


@pytest.mark.parametrize(
    ("module", "reason"),
    [("", "was saved without a framework"), ("adapter.nosuch", "with adapter.nosuch, which is no")],
)
def test_to_runner_when_no_framework_saved_it(module: str, reason: str) -> None:
    with models.create("rules", module=module) as model:
        pass
    with pytest.raises(StateException, match=f"{reason}.*write an adapter.Runnable"):
        model.to_runner()


def test_create_when_an_external_module_is_a_name() -> None:
    names: Any = ["rules"]
    with pytest.raises(InvalidArgument, match="not 'rules'"), models.create("rules", external_modules=names):
        pytest.fail("the block does not run")
    assert models.list() == []


class Color(str, Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (np.bool_(True), True),
        (Color.RED, "red"),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        ((1, "a"), [1, "a"]),
        ({"a": {1: np.int8(2)}}, {"a": {1: 2}}),
        (pd.Series([1, 2], index=["a", "b"]), {"a": 1, "b": 2}),
        (pd.DataFrame({"a": [1]}), {"a": {0: 1}}),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        (np.datetime64("2026-01-02", "ns"), "2026-01-02T00:00:00.000000000"),
    ],
)
def test_plain_when_the_value_has_a_plain_form(value: Any, expected: Any) -> None:
    found = plain(value, "metadata")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": [1, object()]}, r"metadata\['a'\]\[1\] holds a value of type object"),
        ({"a": {1, 2}}, r"metadata\['a'\] holds a value of type set"),
        ({(1, 2): 3}, r"metadata has the key \(1, 2\)"),
    ],
)
def test_plain_when_the_value_has_none(value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        plain(value, "metadata")


def test_list_when_a_tag_is_given() -> None:
    for tag in ("a:v1", "a:v2", "b:v1"):
        with models.create(tag):
            pass
    assert [str(m.tag) for m in models.list()] == ["b:v1", "a:v2", "a:v1"]
    assert [str(m.tag) for m in models.list("a")] == ["a:v2", "a:v1"]
    assert [str(m.tag) for m in models.list("a:latest")] == ["a:v2"]
    with pytest.raises(NotFound, match="no model 'c'"):
        models.list("c")


def test_delete_when_it_exists() -> None:
    for tag in ("a:v1", "a:v2"):
        with models.create(tag):
            pass
    assert models.delete("a:v2") == [Tag("a", "v2")]
    assert models.get("a").tag == Tag("a", "v1")
    with pytest.raises(NotFound):
        models.delete("a:v2")


def test_get_when_another_source_is_used(elsewhere: Model) -> None:
    assert models.get("far:latest") is elsewhere
    assert models.list() == models.list("far") == models.list("far:v1") == [elsewhere]
    for ask in (models.get, models.list):
        with pytest.raises(NotFound, match="only far:v1 is here"):
            ask("near")


def test_create_when_another_source_is_used(elsewhere: Model) -> None:
    with models.create("near"):
        pass
    assert [m.tag.name for m in models.store().list()] == ["near"]
    models.delete("near")
    assert models.store().list() == []


def test_store_when_the_environment_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path / "other"))
    assert models.store().root == tmp_path / "other" / "models"
    monkeypatch.delenv("ADAPTER_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.store().root == tmp_path / ".adapter" / "models"


WITHOUT_YAML = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"yaml", "pandas", "sklearn", "click", "starlette", "pydantic", "tritonclient"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())

from adapter import models
from adapter.frameworks import picklable_model, sklearn
from adapter.model import plain, Model, ModelInfo, Signature
from adapter.tag import Tag

class Source:
    def get(self, tag):
        return Model(ModelInfo(Tag("iris", "v1"), "adapter.sklearn", signatures={"predict": Signature(True)}), None)
    def list(self, name=None):
        return [self.get(Tag("iris"))]

models.use_source(Source())
runner = sklearn.get("iris:latest").to_runner()
print(runner.name, [m.name for m in runner.runner_methods], models.list())
"""


def test_import_when_only_numpy_and_cloudpickle_are_there() -> None:
    output = subprocess.check_output([sys.executable, "-c", WITHOUT_YAML], text=True)
    assert output == "iris ['predict'] [Model(tag=\"iris:v1\")]\n"


def test_lower_case_when_a_name_has_capitals(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), models.create("Rules") as model:
        pass
    assert model.tag.name == "rules"
    assert models.get("rules") == model

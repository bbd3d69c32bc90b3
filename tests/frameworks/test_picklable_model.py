from __future__ import annotations

import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from adapter import models
from adapter.exceptions import AlreadyExists, InvalidArgument, MissingDependencyException, NotFound, StateException
from adapter.frameworks import picklable_model, sklearn
from adapter.frameworks.base import Framework
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo, Parameter, Signature
from adapter.runnable import signatures, supports_gpu, supports_threads
from adapter.tag import Tag
from adapter.tensor import TensorSpec
from tests.frameworks.conftest import Call, Serve


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))


class Doubler:
    factor = 2

    def __call__(self, x: Any) -> Any:
        return self.factor * np.asarray(x)

    def add(self, x: Any, *, more: float = 0.0) -> Any:
        return np.asarray(x) + more

    def words(self, text: str) -> list[str]:
        return text.split()


def test_save_model_when_no_signature_is_given() -> None:
    model = picklable_model.save_model("doubler", Doubler(), labels={"a": 1}, metadata={"m": np.float64(0.5)})
    assert models.get("doubler") == model
    info = models.get("doubler").info
    assert info.module == "adapter.picklable_model"
    assert info.signatures == {"__call__": Signature(parameters=(Parameter("x"),))}
    assert (info.labels, info.metadata) == ({"a": "1"}, {"m": 0.5})
    assert info.context["framework_name"] == "picklable_model"
    assert info.context["framework_versions"] == {"cloudpickle": cloudpickle.__version__}
    assert np.array_equal(picklable_model.load_model("doubler:latest")(2), 4)
    assert picklable_model.load_model(model).factor == 2
    assert model.load_model() is model.load_model()


def test_save_model_when_it_is_a_function() -> None:
    limit = 3
    model = picklable_model.save_model("above", lambda x, strict=True: x > limit)
    assert picklable_model.load_model("above")(4) is True
    expected = (Parameter("x"), Parameter("strict", required=False))
    assert model.info.signatures["__call__"].parameters == expected


def test_save_model_when_a_signature_names_no_method() -> None:
    with pytest.raises(
        InvalidArgument, match="the method 'predict', which this Doubler does not have; it has add, words"
    ):
        picklable_model.save_model("doubler", Doubler(), signatures={"predict": {}})
    assert models.list() == []


def test_save_model_when_it_cannot_be_called_says_what_to_do() -> None:
    with pytest.raises(InvalidArgument) as raised:
        picklable_model.save_model("settings", {"a": 1})
    assert str(raised.value) == (
        "This dict has no '__call__', which is served where no method is named: name another with "
        "signatures={'<method>': {}} (it has clear, copy, fromkeys, get, items, keys, pop, popitem, setdefault, "
        "update, values), save a function or another callable, or give signatures={} to save a model that is loaded "
        "but not served."
    )
    assert models.list() == []


def test_save_model_when_no_method_is_to_be_served() -> None:
    model = picklable_model.save_model("settings", {"a": 1}, signatures={})
    assert models.get("settings").info.signatures == {}
    assert picklable_model.load_model("settings") == {"a": 1}
    with pytest.raises(
        InvalidArgument, match=r"settings:\w+ was saved without signatures, so it has no method to serve"
    ):
        model.to_runner()
    # the default is not taken for it, even where it would do
    assert picklable_model.save_model("doubler", Doubler(), signatures={}).info.signatures == {}


@pytest.mark.parametrize("wrong", [["predict"], [], "predict"])
def test_save_model_when_the_signatures_are_no_mapping(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"signatures is a mapping such as \{'predict': .*, not "):
        picklable_model.save_model("doubler", Doubler(), signatures=wrong)


@pytest.mark.parametrize("method", ["__init__", "__class__", "factor"])
def test_save_model_when_a_signature_names_what_is_not_served(method: str) -> None:
    with pytest.raises(InvalidArgument, match="does not have"):
        picklable_model.save_model("doubler", Doubler(), signatures={method: {}})


def test_save_model_when_it_cannot_be_pickled() -> None:
    doubler = Doubler()
    doubler.lock = threading.Lock()  # type: ignore[attr-defined]  # as users do
    with pytest.raises(InvalidArgument, match=r"This Doubler cannot be pickled .*lock"):
        picklable_model.save_model("doubler", doubler)
    assert models.list() == []


def test_save_model_when_an_option_is_unknown() -> None:
    with pytest.raises(InvalidArgument, match="save_model has no option 'signature'; it has partial_kwargs"):
        picklable_model.save_model("doubler", Doubler(), signature={})
    picklable_model.save_model("doubler", Doubler())
    with pytest.raises(InvalidArgument, match="load_model has no option 'device'; it has none"):
        picklable_model.load_model("doubler", device="cpu")


def test_save_model_when_the_version_is_taken() -> None:
    picklable_model.save_model("doubler:v1", Doubler())
    with pytest.raises(AlreadyExists):
        picklable_model.save_model("doubler:v1", Doubler())


def test_save_model_when_specs_are_given() -> None:
    model = picklable_model.save_model(
        "doubler",
        Doubler(),
        signatures={
            "add": {
                "batchable": True,
                "input_spec": ("float32", (-1, 2)),
                "output_spec": ("float32", (-1, 2)),
            }
        },
    )
    assert model.info.signatures["add"] == Signature(
        True,
        (0, 0),
        (TensorSpec("float32", (-1, 2), "x"),),
        (TensorSpec("float32", (-1, 2), "output_0"),),
        (Parameter("x"), Parameter("more", "KEYWORD_ONLY", False)),
    )


@pytest.fixture
def users_module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("users_own_doubler")
    exec("class Tripler:\n    def __call__(self, x):\n        return 3 * x\n", module.__dict__)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def test_load_model_when_the_users_module_came_along(users_module: types.ModuleType) -> None:
    picklable_model.save_model("tripler", users_module.Tripler(), external_modules=[users_module])
    del sys.modules[users_module.__name__]
    assert picklable_model.load_model("tripler")(2) == 6


def test_load_model_when_the_users_module_is_missing(users_module: types.ModuleType) -> None:
    picklable_model.save_model("tripler:v1", users_module.Tripler())
    del sys.modules[users_module.__name__]
    with pytest.raises(
        StateException, match=r"The model tripler:v1 needs the module 'users_own_doubler'.*external_modules"
    ):
        picklable_model.load_model("tripler")


def test_get_when_another_framework_saved_it() -> None:
    picklable_model.save_model("doubler:v1", Doubler())
    with pytest.raises(
        NotFound, match=r"with adapter.picklable_model, not adapter.sklearn: use `adapter.picklable_model.get"
    ):
        sklearn.get("doubler")
    with models.create("rules:v1") as rules:
        pass
    for use in (
        picklable_model.get,
        picklable_model.load_model,
        picklable_model.get_runnable,
        picklable_model.to_runner,
    ):
        with pytest.raises(NotFound, match=r"with adapter.models.create, not adapter.picklable_model"):
            use(rules)
    with pytest.raises(NotFound, match="no model 'none'"):
        picklable_model.get("none")


def test_get_runnable_when_there_are_several_methods() -> None:
    given: dict[str, dict[str, Any]] = {
        "__call__": {"batchable": True},
        "add": {"batchable": True, "batch_dim": (0, 1)},
        "words": {},
    }
    model = picklable_model.save_model("doubler:v1", Doubler(), signatures=given)
    runnable = picklable_model.get_runnable(models.get("doubler"))
    assert runnable.__name__ == "doubler:v1"
    assert signatures(runnable) == model.info.signatures
    assert not supports_threads(runnable)
    assert not supports_gpu(runnable)
    loaded: Any = runnable()
    assert loaded([1, 2]).tolist() == [2, 4]
    assert loaded.add([1], more=2).tolist() == [3.0]
    assert loaded.words("a b") == ["a", "b"]


def test_get_runnable_when_nothing_is_to_be_loaded() -> None:
    info = ModelInfo(Tag("far", "v1"), "adapter.picklable_model", signatures={"predict": Signature(True)})
    runnable = picklable_model.get_runnable(Model(info, None))
    assert list(signatures(runnable)) == ["predict"]
    with pytest.raises(StateException, match="not on this machine"):
        runnable()


def test_to_runner_when_called_locally() -> None:
    model = picklable_model.save_model("doubler", Doubler(), signatures={"add": {"batchable": True}, "words": {}})
    runner = models.get("doubler:latest").to_runner(max_batch_size=7, method_configs={"words": {"max_latency_ms": 5}})
    assert (runner.name, runner.model, runner.models) == ("doubler", model, (model,))
    assert runner.add.max_batch_size == 7
    assert runner.words.max_latency_ms == 5
    runner.init_local(quiet=True)
    try:
        assert runner.add.run(np.array([1.0, 2.0]), more=1.0).tolist() == [2.0, 3.0]
        assert runner.words.run("a b") == ["a", "b"]
        with pytest.raises(TypeError, match="add"):
            runner.add.run()
    finally:
        runner.destroy()
    assert model.to_runner("other").name == "other"


def test_to_runner_when_partial_kwargs_are_set() -> None:
    model = picklable_model.save_model(
        "doubler", Doubler(), signatures={"add": {}}, partial_kwargs={"add": {"more": np.float64(5)}}
    )
    for changed, expected in ((model, 6), (model.with_options(partial_kwargs={"add": {"more": 7}}), 8)):
        runner = changed.to_runner()
        runner.init_local(quiet=True)
        assert runner.run(1) == expected
        assert runner.run(1, more=1) == 2
        runner.destroy()


# ---- adding a framework, as its docstring tells --------------------------------------------------------------------


class Texts(Framework):
    """Saves a list of words as a text file; its models have one method."""

    name = "texts"
    libraries = {"no_such_library": "no-such-distribution"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"count": {"batchable": True}}  # noqa: RUF012
    load_options = ("upper",)
    supported_resources = ("nvidia.com/gpu", "cpu")

    def check(self, model: Any) -> None:
        if model == ["library"]:
            import no_such_library  # type: ignore[import-not-found]  # noqa: F401

    def save(self, model: Any, folder: Path, **options: Any) -> dict[str, Any]:
        (folder / "words.txt").write_text("\n".join(model))
        return {"words": len(model)}

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        words = (folder / "words.txt").read_text().split()
        return [w.upper() for w in words] if options.get("upper") else words

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        return np.array([native.count(word) for word in args[0]])

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        return (TensorSpec("int64", (1,), "value"),), (TensorSpec("int64", (1,), "output_0"),)


texts = Texts()


def test_framework_when_it_is_the_users_own() -> None:
    model = texts.save_model("words", ["a", "b", "a"])
    assert model.info.options == {"words": 3}
    assert models.get("words").info.options == {"words": 3}
    assert model.info.context["framework_versions"] == {}
    assert texts.load_model("words") == ["a", "b", "a"]
    assert texts.load_model("words", upper=True) == ["A", "B", "A"]
    # its tensors have no axis for batches, so they are not believed
    assert not model.info.signatures["count"].typed
    runner = texts.to_runner("words")
    assert supports_gpu(runner.spec.runnable_class)
    runner.init_local(quiet=True)
    assert runner.count.run(["a", "c"]).tolist() == [2, 0]
    runner.destroy()


def test_framework_when_tensors_fit_the_signature() -> None:
    model = texts.save_model("words", ["a"], signatures={"count": {"batchable": False}})
    assert model.info.signatures["count"].typed


def test_framework_when_its_library_is_missing() -> None:
    with pytest.raises(MissingDependencyException, match=r"no-such-distribution is not installed.*texts"):
        texts.save_model("words", ["library"])
    assert models.list() == []


def test_load_model_when_another_process_saved_a_class_of_its_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from adapter.frameworks import picklable_model\n"
        "class Tripler:\n"
        "    def __call__(self, x):\n"
        "        return 3 * x\n"
        "picklable_model.save_model('tripler', Tripler())\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert picklable_model.load_model("tripler")(2) == 6


# ---- served by a real engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(serve_models: Serve) -> Call:
    # the code of this module goes along, for a worker cannot import it
    here = [sys.modules[__name__]]
    rows = np.ones((2, 3))
    return serve_models(
        picklable_model.save_model(
            "doubler", Doubler(), signatures={"__call__": {"batchable": True}}, sample=rows, external_modules=here
        ),
        picklable_model.save_model("words", Doubler(), signatures={"add": {}, "words": {}}, external_modules=here),
        picklable_model.save_model("above", lambda x, strict=True: bool(x > 3) if strict else bool(x >= 3)),
    )


def test_served_object_takes_tensors_where_a_sample_told_them(call: Call) -> None:
    assert np.array_equal(call("doubler", "__call__", [[1, 2, 3]]), [[2, 4, 6]])
    with pytest.raises(InvalidArgument, match=r"shape \(-1, 3\)"):
        call("doubler", "__call__", [[1, 2]])


def test_served_object_takes_anything_else_as_it_is(call: Call) -> None:
    assert call("words", "words", "a ž") == ["a", "ž"]
    assert np.array_equal(call("words", "add", [1, 2], more=2), [3, 4])


def test_served_function_closes_over_what_it_needs(call: Call) -> None:
    assert [call("above", "__call__", 3), call("above", "__call__", 3, strict=False)] == [False, True]

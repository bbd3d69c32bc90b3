from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adapter
from adapter.exceptions import InvalidArgument, PayloadTypeError, StateException
from adapter.runner import Runner
from adapter.warmup import samples

calls: list[Any] = []


class Worker(adapter.Runnable):
    def __init__(self) -> None:
        calls.clear()

    @adapter.Runnable.method(
        batchable=True,
        input_spec={"x": ("float32", (-1, 2)), "y": ("int8", (-1,))},
        output_spec=("float32", (-1,)),
    )
    def typed(self, x: Any, *, y: Any) -> Any:
        calls.append(("typed", x.tolist(), y.tolist()))
        return x.sum(axis=1) + y

    @adapter.Runnable.method
    def plain(self, a: Any, b: Any = 2) -> Any:
        calls.append(("plain", a, b))
        if a == "fail":
            raise ValueError("it was to")
        return a


class Single(adapter.Runnable):
    @adapter.Runnable.method
    def run(self, *values: Any) -> Any:
        calls.append(values)
        return object() if values == ("unsendable",) else None


class Stream(adapter.Runnable):
    @adapter.Runnable.method
    def words(self, text: str) -> Any:
        for word in text.split():
            calls.append(word)
            yield word

    @adapter.Runnable.method
    def length(self, text: str) -> int:
        calls.append(text)
        return len(text)


@pytest.fixture(autouse=True)
def forget() -> None:
    calls.clear()


def started(cls: type[adapter.Runnable], warmup: Any) -> list[Any]:
    """The calls that a runner has seen when it has started."""
    runner = Runner(cls, warmup=warmup)
    runner.init_local(quiet=True)
    runner.destroy()
    return list(calls)


@pytest.mark.parametrize(
    ("cls", "warmup", "expected"),
    [
        (Single, None, []),
        (Single, False, []),
        (Single, 5, [(5,)]),
        (Single, (1, 2), [(1, 2)]),
        (Single, (), [()]),
        (Single, [1, 2], [([1, 2],)]),
        (Single, {"a": 1}, [({"a": 1},)]),
        (Single, {}, [({},)]),
        (Single, {"run": {"a": 1}}, [({"a": 1},)]),
        (Worker, {}, None),
        (Worker, {"plain": "x"}, [("plain", "x", 2)]),
        (Worker, {"plain": ("x", 3)}, [("plain", "x", 3)]),
        (Stream, {"length": "ab"}, ["ab"]),
        (Stream, {"words": "a b"}, ["a"]),
    ],
)
def test_methods_are_called_with_their_samples(cls: type[adapter.Runnable], warmup: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument, match=r"warmup is for several methods \(typed, plain\): .*by name"):
            started(cls, warmup)
    else:
        assert started(cls, warmup) == expected


def test_true_is_zeros_of_the_tensors() -> None:
    spec = Runner(Worker, warmup=True).spec
    only = {"typed": spec.methods["typed"]}
    ((args, kwargs),) = samples(True, only, None, "r").values()
    assert [array.tolist() for array in (*args, *kwargs.values())] == [[[0.0, 0.0]], [0]]
    assert list(kwargs) == ["y"]
    with pytest.raises(InvalidArgument, match=r"warmup=True, since the tensors of plain\(\) are not known"):
        started(Worker, True)


def test_true_is_the_sample_that_a_model_was_saved_with() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    model = adapter.picklable_model.save_model(
        "warm_model", _double, signatures={"__call__": {"batchable": True}}, sample=rows
    )
    calls.clear()
    runner = model.to_runner(warmup=True, max_wait_ms=3, cpu=1)
    runner.init_local(quiet=True)
    assert [np.asarray(call).tolist() for call in calls] == [rows.tolist()]
    runner.destroy()
    assert runner.runner_methods[0].max_wait_ms == 3
    with pytest.raises(InvalidArgument, match="takes no runnable_init_params"):
        model.to_runner(runnable_init_params={"a": 1})


def _double(x: Any) -> Any:
    calls.append(x)
    return 2 * x


@pytest.mark.parametrize(
    ("cls", "warmup", "error", "text"),
    [
        (Worker, 5, InvalidArgument, "give their samples by name, as in warmup={'typed': sample}, or True"),
        (Worker, {"typed": 1, "other": 2}, InvalidArgument, "give their samples by name"),
        (Worker, {"typed": np.zeros((1, 3))}, TypeError, "y"),
        (Worker, {"plain": (1, 2, 3)}, TypeError, r"plain\(\) too many positional arguments"),
        (Worker, {"plain": object()}, PayloadTypeError, "object"),
    ],
)
def test_sample_that_no_method_takes_is_refused_when_the_runner_is_made(
    cls: type[adapter.Runnable], warmup: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Runner(cls, warmup=warmup)


@pytest.mark.parametrize(
    ("cls", "warmup", "text"),
    [
        (Worker, {"plain": "fail"}, r"The warm-up call of plain\(\) failed: ValueError: it was to"),
        (Single, "unsendable", r"The warm-up call of run\(\) failed: run\(\) returned what cannot be sent"),
    ],
)
def test_warm_up_that_fails_is_a_start_that_fails(cls: type[adapter.Runnable], warmup: Any, text: str) -> None:
    with pytest.raises(StateException, match=text):
        started(cls, warmup)
    assert calls

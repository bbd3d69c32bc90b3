from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from adapter.exceptions import InvalidArgument
from adapter.method import methods_of
from adapter.model import BatchingConfig, Signature
from adapter.runnable import Runnable, signatures, supports_gpu, supports_threads


class Base(Runnable):
    @Runnable.method
    def bare(self, x: Any) -> Any:
        return x

    @Runnable.method(batchable=True, batch_dim=(0, 1))
    def called(self, x: Any) -> Any:
        return x

    @Runnable.method()
    def empty(self, x: Any) -> Any:
        return x

    def helper(self, x: Any) -> Any:
        return x


class Child(Base):
    @Runnable.method(batchable=True)
    def bare(self, x: Any) -> Any:
        return [x]

    called = None  # type: ignore[assignment]  # what is tested

    @Runnable.method
    async def more(self, x: Any) -> Any:
        return x


@dataclass
class Point:
    x: float


def test_decorated_methods_are_served_and_others_are_not() -> None:
    assert dict(signatures(Base)) == {
        "bare": Signature(),
        "called": Signature(batchable=True, batch_dim=(0, 1)),
        "empty": Signature(),
    }


def test_decorated_method_is_still_a_plain_function() -> None:
    assert Base().bare(3) == 3
    assert Base.called.__name__ == "called"


def test_child_adds_changes_and_hides_methods_without_touching_its_parent() -> None:
    assert dict(signatures(Child)) == {"bare": Signature(batchable=True), "empty": Signature(), "more": Signature()}
    assert list(signatures(Base)) == ["bare", "called", "empty"]


def test_child_that_overrides_without_decorating_does_not_serve_the_method() -> None:
    class Undecorated(Base):
        def bare(self, x: Any) -> Any:
            return x

    assert "bare" not in signatures(Undecorated)


def test_methods_of_two_parents_are_all_served() -> None:
    class Other(Runnable):
        @Runnable.method
        def other(self, x: Any) -> Any:
            return x

    class Both(Other, Base):
        pass

    assert list(signatures(Both)) == ["bare", "called", "empty", "other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_dim": "0"}, "batch_dim"),
        ({"batch_dim": -1}, "batch_dim"),
        ({"input_spec": "float32"}, "tensor"),
    ],
)
def test_method_is_refused_when_an_argument_cannot_be_used(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Runnable.method(**arguments)


@pytest.mark.parametrize("thing", [staticmethod(len), property(len), 5, "x"])
def test_method_marks_functions_only(thing: Any) -> None:
    with pytest.raises(InvalidArgument, match="marks a function of the class body"):
        Runnable.method(thing)


def test_add_method_serves_a_function_of_this_class_only() -> None:
    class One(Base):
        pass

    class Two(Base):
        pass

    def double(self: Any, x: Any) -> Any:
        """Twice as much."""
        return 2 * x

    One.add_method(double, "twice", batchable=True, batch_dim=1)
    assert signatures(One)["twice"] == Signature(batchable=True, batch_dim=(1, 1))
    assert "twice" not in signatures(Two)
    assert "twice" not in signatures(Base)
    assert not hasattr(Base, "twice")
    added: Any = One()
    assert added.twice(4) == 8
    assert added.twice.__name__ == "twice"
    assert added.twice.__doc__ == "Twice as much."
    assert not hasattr(double, "__adapter_signature__")


def test_add_method_reads_annotations_where_the_function_was_written() -> None:
    class Annotated(Base):
        pass

    def norm(self: Any, point: Point) -> float:
        return point.x

    Annotated.add_method(norm, "norm")
    method = methods_of(Annotated, lambda name: BatchingConfig())["norm"]
    assert (method.hints["point"], method.hints["return"]) == (Point, float)
    assert method.rebuild(({"x": 1.0},), {}).args == (Point(1.0),)
    with pytest.raises(TypeError, match=r"norm\(\) missing a required argument: 'point'"):
        method.check((), {})


def test_add_method_takes_callables_that_are_no_functions() -> None:
    class Added(Base):
        pass

    def scale(self: Any, x: Any, *, by: float) -> Any:
        return by * x

    Added.add_method(functools.partial(scale, by=3), "triple")
    Added.add_method(lambda self, x: x + 1, "next")
    added: Any = Added()
    assert (added.triple(2), added.next(2)) == (6, 3)
    method = methods_of(Added, lambda name: BatchingConfig())["triple"]
    method.check((2,), {})


def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def test_decorators_above_and_below_are_kept() -> None:
    class Decorated(Runnable):
        @wrapping
        @Runnable.method(batchable=True)
        def above(self, x: Point) -> Any:
            return x

        @Runnable.method
        @wrapping
        def below(self, x: Point) -> Any:
            return x

    found = methods_of(Decorated, lambda name: BatchingConfig())
    assert {name: m.hints["x"] for name, m in found.items()} == {"above": Point, "below": Point}
    assert found["above"].signature.batchable
    assert not found["below"].signature.batchable


@pytest.mark.parametrize(
    ("attributes", "gpu", "threads"),
    [
        ({}, False, False),
        ({"SUPPORT_NVIDIA_GPU": True, "SUPPORT_CPU_MULTI_THREADING": True}, True, True),
        ({"SUPPORT_NVIDIA_GPU": False, "SUPPORT_CPU_MULTI_THREADING": False}, False, False),
        ({"SUPPORTED_RESOURCES": ("nvidia.com/gpu", "cpu")}, True, False),
        ({"SUPPORTED_RESOURCES": ("nvidia.com/gpu",), "SUPPORTS_CPU_MULTI_THREADING": True}, True, True),
    ],
)
def test_resources_are_read_in_both_spellings(attributes: dict[str, Any], gpu: bool, threads: bool) -> None:
    cls = type("Spelled", (Base,), attributes)
    assert supports_gpu(cls) is gpu
    assert supports_threads(cls) is threads

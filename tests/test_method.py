from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from adapter.exceptions import InvalidArgument, PayloadTypeError, RemoteException
from adapter.method import MethodSpec, methods_of
from adapter.model import BatchingConfig
from adapter.runnable import Runnable
from adapter.tensor import TensorSpec

Rows = Annotated[np.ndarray[Any, Any], TensorSpec("float32", (-1, 2))]
Labels = Annotated[np.ndarray[Any, Any], TensorSpec("int64", (-1,))]


@dataclass
class Point:
    x: float


class Row(BaseModel):
    x: float


class Typed(Runnable):
    @Runnable.method(batchable=True)
    def labels(self, rows: Rows, threshold: float = 0.5) -> Labels:
        above: Labels = rows.sum(axis=1) > threshold
        return above.astype("int64")

    @Runnable.method(batchable=True)
    def two(self, rows: Rows) -> tuple[Rows, Labels]:
        return rows, self.labels(rows)

    @Runnable.method(batchable=True, batch_dim=(1, 0), input_spec=("float32", (3, -1)), output_spec=("float32", (-1,)))
    def columns(self, x):  # type: ignore[no-untyped-def]  # as people write it
        return x.sum(axis=0)

    @Runnable.method(input_spec={"a": ("int8", (2,)), "b": ("float32", ())}, output_spec=[("float32", (2,))])
    def named(self, b: Any, a: Any) -> Any:
        return a * b

    @Runnable.method(
        batchable=True, input_spec=[("float32", (-1, 2)), ("float32", (-1, 1))], output_spec=("float32", (-1, 2))
    )
    def starred(self, *parts: Any) -> Any:
        return parts[0] * parts[1]


class Plain(Runnable):
    @Runnable.method
    def any(self, value, /, other=1, *, key=None):  # type: ignore[no-untyped-def]  # as people write it
        return value

    @Runnable.method
    def half(self, rows: Rows, label: str) -> Any:
        return rows

    @Runnable.method
    def text(self, words: Annotated[np.ndarray[Any, Any], TensorSpec("str", (-1,))]) -> Labels:
        return words

    @Runnable.method
    def records(self, point: Point, *more: Point, rows: list[Row], **named: Point) -> list[Point]:
        return [point]

    @Runnable.method
    def unreadable(self, value: Unknown) -> Any:  # type: ignore[name-defined]  # noqa: F821  # what is tested
        return value


def methods(cls: type[Runnable]) -> dict[str, MethodSpec]:
    return methods_of(cls, lambda name: BatchingConfig())


TYPED, PLAIN = methods(Typed), methods(Plain)
X = np.array([[0, 1], [2, 3]], np.float32)


# ---- what definitions tell ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("labels", ["rows"], ["output_0"]),
        ("two", ["rows"], ["output_0", "output_1"]),
        ("columns", ["x"], ["output_0"]),
        ("named", ["a", "b"], ["output_0"]),
        ("starred", ["input_0", "input_1"], ["output_0"]),
    ],
)
def test_method_is_typed_when_its_definition_tells_every_tensor(
    name: str, inputs: list[str], outputs: list[str]
) -> None:
    method = TYPED[name]
    assert method.typed
    assert [s.name for s in method.inputs] == inputs
    assert [s.name for s in method.outputs] == outputs


@pytest.mark.parametrize("name", ["any", "half", "text", "records", "unreadable"])
def test_method_is_not_typed_when_something_is_unknown_or_no_tensor(name: str) -> None:
    assert not PLAIN[name].typed


def test_limits_are_asked_for_each_method() -> None:
    found = methods_of(Typed, lambda name: BatchingConfig(max_batch_size=len(name)))
    assert {name: m.batching.max_batch_size for name, m in found.items()} == {n: len(n) for n in TYPED}


class Streaming(Runnable):
    @Runnable.method
    def words(self, text: str) -> Iterator[str]:
        yield from text.split()

    @Runnable.method
    async def points(self, text: str) -> AsyncGenerator[dict[str, int], None]:
        yield {text: 1}

    @Runnable.method
    def unknown(self, text):  # type: ignore[no-untyped-def]  # as many write it
        yield text

    @Runnable.method
    def listed(self, text: str) -> list[str]:
        return [*self.words(text)]


def letters(self: Any, text: str) -> Iterator[str]:
    yield from text


Streaming.add_method(letters, "letters")


def test_generators_are_streams_and_annotated_with_what_one_value_is() -> None:
    found = methods(Streaming)
    assert {name for name, method in found.items() if method.stream} == {"words", "points", "unknown", "letters"}
    assert [found[n].hints.get("return") for n in ("words", "points", "unknown", "listed")] == [
        str,
        dict[str, int],
        None,
        list[str],
    ]


def test_generator_whose_calls_would_share_a_batch_is_refused() -> None:
    class Batched(Runnable):
        @Runnable.method(batchable=True)
        def words(self, texts: list[str]) -> Iterator[list[str]]:
            yield texts

    with pytest.raises(InvalidArgument, match=r"words\(\) is a generator, whose calls cannot share a batch"):
        methods(Batched)


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, 2), {}), ((1,), {"other": 2, "key": 3})],
)
def test_arguments_that_fit_are_taken(args: Any, kwargs: Any) -> None:
    PLAIN["any"].check(args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"any\(\) missing a required argument: 'value'"),
        ((1, 2, 3), {}, r"any\(\) too many positional arguments"),
        ((1,), {"wrong": 1}, r"any\(\) got an unexpected keyword argument 'wrong'"),
        ((1, 2), {"other": 3}, r"any\(\) multiple values for argument 'other'"),
    ],
)
def test_arguments_that_do_not_fit_raise_what_python_raises(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PLAIN["any"].check(args, kwargs)


# ---- typed calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shapes"),
    [
        ("labels", (X,), {}, [(2, 2)]),
        ("labels", (X.tolist(),), {}, [(2, 2)]),
        ("labels", (), {"rows": X.astype("float64")}, [(2, 2)]),
        ("labels", (X,), {"threshold": 2.5}, [(2, 2)]),
        ("labels", (X, 2.5), {}, [(2, 2)]),
        ("columns", (np.ones((3, 5), "float32"),), {}, [(5, 3)]),
        ("named", (np.float32(2), np.array([1, 2], "int8")), {}, [(2,), (1,)]),
        ("named", (2.0,), {"a": np.array([1, 2], "int8")}, [(2,), (1,)]),
        ("starred", (X, X[:, :1]), {}, [(2, 2), (2, 1)]),
    ],
)
def test_typed_call_gives_the_same_after_the_wire(name: str, args: Any, kwargs: Any, shapes: Any) -> None:
    method = TYPED[name]
    arrays, extra = method.pack(args, kwargs)
    assert [a.shape for a in arrays] == shapes
    assert [a.dtype.name for a in arrays] == [s.dtype for s in method.inputs]
    call = method.unpack([a.copy() for a in arrays], extra)
    here = getattr(Typed(), name)(*(np.asarray(a) if isinstance(a, list) else a for a in args), **kwargs)
    there = method.unpack_result(method.pack_result(getattr(Typed(), name)(*call.args, **call.kwargs)))
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("columns", [["a", "b"], [0, 1], ["a", 1]])
def test_typed_call_with_a_frame_keeps_its_columns(columns: list[Any]) -> None:
    method = TYPED["labels"]
    frame = pd.DataFrame(X, columns=pd.Index(columns))
    call = method.unpack(*method.pack((frame,), {}))
    pd.testing.assert_frame_equal(call.kwargs["rows"], frame)


def test_typed_call_with_a_series_passes_an_array() -> None:
    method = TYPED["named"]
    call = method.unpack(*method.pack((1.0, pd.Series([1, 2], dtype="int8")), {}))
    assert call.kwargs["a"].tolist() == [1, 2]


def test_typed_call_carries_other_arguments_as_json() -> None:
    _, extra = TYPED["labels"].pack((X,), {"threshold": 1})
    assert json.loads(extra) == {"kwargs": {"threshold": 1}}
    assert TYPED["labels"].pack((X,), {})[1] == ""


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "error", "message"),
    [
        ("labels", (), {}, TypeError, r"labels\(\) missing a required argument: 'rows'"),
        ("labels", (X,), {"wrong": 1}, TypeError, "unexpected keyword argument 'wrong'"),
        ("labels", (X, 1, 2), {}, TypeError, "too many positional"),
        ("starred", (X,), {}, TypeError, r"starred\(\) missing a required argument: 'input_1'"),
        ("starred", (X, X, X), {}, TypeError, r"starred\(\) takes 2 positional arguments, but 3 were given"),
        ("starred", (X, X[:1, :1]), {}, InvalidArgument, "tensors of one batch size"),
        ("labels", (X[:0],), {}, InvalidArgument, "at least one item"),
        ("labels", (X[0],), {}, InvalidArgument, "'rows'"),
        ("labels", (X.astype(str),), {}, InvalidArgument, "'rows'"),
        ("labels", ([[1, 2], [3]],), {}, InvalidArgument, "ragged"),
        ("labels", (pd.DataFrame({"a": ["x"], "b": [1]}),), {}, InvalidArgument, "'rows'"),
        ("labels", (X,), {"threshold": np.arange(2)}, PayloadTypeError, "plain JSON values beside its tensors"),
        ("named", (1.0, np.array([1.5, 2.5])), {}, InvalidArgument, "'a'"),
    ],
)
def test_typed_call_that_does_not_fit_is_refused(
    name: str, args: Any, kwargs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TYPED[name].pack(args, kwargs)


@pytest.mark.parametrize(
    ("name", "result", "message"),
    [
        ("two", X, r"two\(\) returned a value of type ndarray, but its signature has 2 outputs"),
        ("two", (X,), "2 outputs"),
        ("labels", None, r"labels\(\) returned something else than its signature says"),
        ("labels", X, "something else than its signature says"),
        ("labels", np.array([0.5]), "something else than its signature says"),
    ],
)
def test_typed_result_that_does_not_fit_is_an_error_of_the_method(name: str, result: Any, message: str) -> None:
    with pytest.raises(RemoteException, match=message):
        TYPED[name].pack_result(result)


def test_typed_result_of_several_outputs_is_a_tuple() -> None:
    method = TYPED["two"]
    first, second = method.unpack_result(method.pack_result([X, np.array([0, 1])]))
    assert first.shape == (2, 2)
    assert second.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "shape"), [("labels", (-1, 1)), ("columns", (-1, 1)), ("named", (2,)), ("starred", (-1, 2))]
)
def test_wire_shape_has_the_batch_first_and_another_axis(name: str, shape: tuple[int, ...]) -> None:
    method = TYPED[name]
    assert method.wire_shape(method.outputs[0], method.signature.batch_dim[1]) == shape


# ---- calls as blobs -------------------------------------------------------------------------------------------------


def test_records_are_rebuilt_from_the_annotations_of_the_method() -> None:
    method = PLAIN["records"]
    point = {"x": 1.0}
    call = method.rebuild((point, point, point), {"rows": [point], "extra": point})
    assert call.args == (Point(1), Point(1), Point(1))
    assert call.kwargs == {"rows": [Row(x=1)], "extra": Point(1)}
    assert method.rebuild_result([point]) == [Point(1)]


def test_values_stay_as_they_are_when_annotations_cannot_be_read() -> None:
    assert PLAIN["unreadable"].rebuild(({"x": 1},), {}).args == ({"x": 1},)

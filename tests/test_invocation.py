from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.exceptions import InvalidArgument, NotFound, RemoteException
from adapter.invocation import Invoker, Outcome, error_of, join_values, split_value
from adapter.method import Call, methods_of
from adapter.model import BatchingConfig
from adapter.runnable import Runnable

MOST = 4


class Recorder(Runnable):
    """Remembers what each of its methods was called with."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def saw(self, *values: Any) -> None:
        self.seen.append(values[0] if len(values) == 1 else values)

    @Runnable.method(batchable=True)
    def twice(self, x: Any) -> Any:
        self.saw(x)
        return [2 * item for item in x] if isinstance(x, list) else 2 * x

    @Runnable.method(batchable=True)
    def scaled(self, x: Any, by: Any = 1, *, plus: Any = 0) -> Any:
        self.saw(x, by, plus)
        return x * by + plus

    @Runnable.method(batchable=True)
    def several(self, x: Any) -> Any:
        self.saw(x)
        return x, {"row": x.tolist(), "sum": x.sum(axis=1)}

    @Runnable.method(batchable=True, batch_dim=(1, 0))
    def columns(self, x: Any) -> Any:
        self.saw(x)
        return x.sum(axis=0)

    @Runnable.method(batchable=True)
    def one_less(self, x: Any) -> Any:
        return x[:-1]

    @Runnable.method(batchable=True)
    def constant(self, x: Any) -> Any:
        return {"number": 5, "text": "text", "none": None, "nothing": (), "empty": {}}[x[0]]

    @Runnable.method(batchable=True)
    def positive(self, x: Any) -> Any:
        self.saw(x)
        if np.any(np.asarray(x) < 0):
            raise ValueError(f"{x} is negative")
        return x

    @Runnable.method(batchable=True)
    def leaves(self, x: Any) -> Any:
        raise SystemExit(3)

    @Runnable.method(batchable=True)
    def by_id(self, x: Any) -> Any:
        self.saw(x)
        return x.set_index("id")

    @Runnable.method
    def whole(self, x: Any) -> Any:
        self.saw(x)
        return x

    @Runnable.method(batchable=True)
    async def later(self, x: Any) -> Any:
        self.saw(x)
        return x + 1


METHODS = methods_of(Recorder, lambda name: BatchingConfig(max_batch_size=MOST))


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    return Call(METHODS[name], args, kwargs)


def run(calls: Sequence[Call], **options: Any) -> tuple[list[Outcome], list[Any]]:
    """The outcomes of calls, and what the method saw."""
    runnable = Recorder()
    invoker = Invoker(runnable, **options)
    outcomes = invoker.run(calls)
    invoker.close()
    return outcomes, runnable.seen


def results(*calls: Call) -> list[Any]:
    return [outcome.unwrap() for outcome in run(calls)[0]]


def listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(listed, value))
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


# ---- which calls run together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "batches"),
    [
        ([call("twice", np.array([1])), call("twice", np.array([2, 3]))], [[1, 2, 3]]),
        ([call("twice", [1]), call("twice", [2])], [[1, 2]]),
        ([call("twice", [1, 2, 3]), call("twice", [4, 5]), call("twice", [6])], [[1, 2, 3], [4, 5, 6]]),
        ([call("twice", np.arange(4)), call("twice", np.arange(1))], [[0, 1, 2, 3], [0]]),
        ([call("twice", np.arange(6))], [[0, 1, 2, 3], [4, 5]]),
        ([call("twice", list(range(9)))], [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
        ([call("twice", np.arange(5)), call("twice", np.arange(1))], [[0, 1, 2, 3], [4], [0]]),
        ([call("twice", np.array([1])), call("twice", [2])], [[1], [2]]),
        ([call("twice", np.array([1])), call("twice", np.array([2.5]))], [[1], [2.5]]),
        ([call("twice", np.array([[1]])), call("twice", np.array([[1, 2]]))], [[[1]], [[1, 2]]]),
        ([call("twice", np.array([1])), call("positive", np.array([2]))], [[1], [2]]),
        ([call("twice", np.array([1])), call("positive", np.array([2])), call("twice", np.array([3]))], [[1, 3], [2]]),
        ([call("twice", np.array([], "int64")), call("twice", np.array([1]))], [[1]]),
        ([call("twice", np.array([], "int64"))], [[]]),
        ([call("whole", np.array([1])), call("whole", np.array([2]))], [[1], [2]]),
        ([call("whole", np.arange(9))], [list(range(9))]),
        ([call("later", np.array([1])), call("later", np.array([2]))], [[1, 2]]),
        ([call("columns", np.array([[1, 2]])), call("columns", np.array([[5]]))], [[[1, 2, 5]]]),
        ([call("columns", np.ones((2, 1))), call("columns", np.ones((3, 1)))], [[[1], [1]], [[1], [1], [1]]]),
        ([], []),
    ],
)
def test_method_sees_batches_no_larger_than_it_allows(calls: list[Call], batches: list[Any]) -> None:
    assert [listed(value) for value in run(calls)[1]] == batches


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (((1,), {}), ((1,), {}), True),
        (((1,), {}), ((2,), {}), False),
        (((1,), {}), ((1.0,), {}), False),
        (((1,), {}), ((True,), {}), False),
        (((), {"by": 2}), ((), {"by": 2}), True),
        (((), {"by": 2}), ((), {"by": 3}), False),
        (((2,), {}), ((), {"by": 2}), False),
        (((), {}), ((1,), {}), False),
        (((1,), {"plus": 1}), ((1,), {"plus": 1}), True),
        (((float("nan"),), {}), ((float("nan"),), {}), True),
        (((0.0,), {}), ((-0.0,), {}), False),
        (((np.int64(2),), {}), ((np.int64(2),), {}), False),
        (((np.array(2),), {}), ((np.array(2),), {}), False),
    ],
)
def test_calls_are_joined_only_when_their_other_arguments_are_equal(first: Any, second: Any, joined: bool) -> None:
    x = np.array([1.0])
    calls = [call("scaled", x, *args, **kwargs) for args, kwargs in (first, second)]
    outcomes, seen = run(calls)
    assert len(seen) == (1 if joined else 2)
    for one, outcome in zip(calls, outcomes, strict=True):
        np.testing.assert_array_equal(outcome.unwrap(), results(one)[0])


def test_several_arrays_are_joined_and_cut_side_by_side() -> None:
    outcomes, seen = run([call("scaled", np.arange(n), np.arange(n) + 1, plus=np.ones(n)) for n in (1, 2, 6)])
    assert [listed(s) for s in seen] == [
        ([0, 0, 1], [1, 1, 2], [1, 1, 1]),
        ([0, 1, 2, 3], [1, 2, 3, 4], [1, 1, 1, 1]),
        ([4, 5], [5, 6], [1, 1]),
    ]
    assert [listed(o.unwrap()) for o in outcomes] == [[1], [1, 3], [1, 3, 7, 13, 21, 31]]


# ---- values ---------------------------------------------------------------------------------------------------------


def test_outputs_of_several_kinds_are_split_and_joined_item_by_item() -> None:
    x = np.arange(12.0).reshape(6, 2)
    calls = [call("several", x[:1]), call("several", x[1:3]), call("several", x)]
    for one, received in zip(calls, results(*calls), strict=True):
        rows = one.args[0]
        assert isinstance(received, tuple)
        assert listed(received) == (rows.tolist(), {"row": rows.tolist(), "sum": rows.sum(axis=1).tolist()})


def test_batch_axes_of_inputs_and_outputs_may_differ() -> None:
    calls = [call("columns", np.arange(2 * n).reshape(2, n)) for n in (1, 3, 6)]
    assert listed(results(*calls)) == [c.args[0].sum(axis=0).tolist() for c in calls]


def test_frames_and_series_are_joined_and_cut_by_rows() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4, 5], "b": [0.5] * 5})
    outcomes, seen = run([call("twice", frame[:1]), call("twice", frame[1:3].reset_index(drop=True))])
    assert [list(s.index) for s in seen] == [[0, 1, 2]]
    pd.testing.assert_frame_equal(outcomes[0].unwrap(), 2 * frame[:1])
    pd.testing.assert_frame_equal(outcomes[1].unwrap(), (2 * frame[1:3]).reset_index(drop=True))
    pd.testing.assert_frame_equal(results(call("twice", frame))[0], 2 * frame)
    first, second = results(call("twice", frame["a"][:1]), call("twice", frame["a"][:2]))
    pd.testing.assert_series_equal(first, 2 * frame["a"][:1])
    pd.testing.assert_series_equal(second, 2 * frame["a"][:2])


def test_frames_with_other_columns_or_types_are_not_joined() -> None:
    frames = [pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), pd.DataFrame({"a": [1.5]})]
    assert len(run([call("twice", f) for f in frames])[1]) == 3
    frames = [pd.DataFrame({"id": [1], "kind": pd.Categorical([kind])}) for kind in "abb"]
    assert [list(x["kind"].cat.categories) for x in run([call("by_id", f) for f in frames])[1]] == [["a"], ["b"]]


def test_an_index_that_says_something_is_kept_whoever_else_calls() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    outcomes, seen = run([call("twice", frame), call("twice", frame), call("twice", frame["a"])])
    assert [list(s.index) for s in seen] == [["x", "y"]] * 3
    pd.testing.assert_frame_equal(outcomes[1].unwrap(), 2 * frame)
    long = pd.concat([frame] * MOST)
    pd.testing.assert_frame_equal(results(call("twice", long))[0], 2 * long)
    frames = [pd.DataFrame({"id": [n, 2 * n]}) for n in (5, 7)]
    assert [list(x.index) for x in results(*[call("by_id", f) for f in frames])] == [[5, 10], [7, 14]]


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("one_less", np.arange(3), r"one_less\(\) returned 2 items on axis 0 for a batch of 3"),
        ("constant", ["number"], r"constant\(\) is batchable, so .* it returned a value of type int"),
        ("constant", ["text"], "it returned a value of type str"),
        ("constant", ["none"], "it returned a value of type NoneType"),
        ("constant", ["nothing"], "it returned a value of type tuple"),
        ("constant", ["empty"], "it returned a value of type dict"),
    ],
)
def test_batchable_method_that_returns_something_else_is_told_so(name: str, x: Any, message: str) -> None:
    for calls in ([call(name, x)], [call(name, x), call(name, x)]):
        for outcome in run(calls)[0]:
            with pytest.raises(RemoteException, match=message):
                outcome.unwrap()


def test_arguments_of_unequal_sizes_are_refused_with_a_sentence() -> None:
    (outcome, other), seen = run([call("scaled", np.arange(3), np.arange(2)), call("scaled", np.arange(1))])
    with pytest.raises(InvalidArgument, match=r"scaled\(\) takes arguments of one batch size on axis 0, .* \[2, 3\]"):
        outcome.unwrap()
    assert other.unwrap().tolist() == [0]
    assert len(seen) == 1


@pytest.mark.parametrize("value", [5, "text", None, {"a": 1}, (1, 2), np.array(3), np.float64(2)])
def test_value_for_a_method_that_is_not_batchable_is_left_alone(value: Any) -> None:
    runnable = Recorder()
    outcome = Invoker(runnable).run([Call(METHODS["whole"], (value,), {})])[0]
    assert outcome.unwrap() is value


def test_scalar_argument_alone_makes_no_batch() -> None:
    assert results(call("scaled", 3, 2), call("scaled", 3, 2)) == [6, 6]


def test_split_and_join_are_each_others_inverse() -> None:
    value = (np.arange(8).reshape(2, 4), {"a": np.arange(12).reshape(3, 4)})
    pieces = split_value(value, [1, 3], 1, "m")
    assert [p[0].shape for p in pieces] == [(2, 1), (2, 3)]
    assert listed(join_values(pieces, 1)) == listed(value)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_call_that_raises_leaves_the_others_whole() -> None:
    calls = [call("positive", np.array([x])) for x in (1, -2, 3)]
    outcomes, seen = run(calls)
    assert [o.unwrap().tolist() for o in (outcomes[0], outcomes[2])] == [[1], [3]]
    with pytest.raises(ValueError, match=r"\[-2\] is negative"):
        outcomes[1].unwrap()
    assert listed(seen) == [[1, -2, 3], [1], [-2], [3]]


def test_batch_that_raises_is_not_tried_again_when_that_is_turned_off() -> None:
    outcomes, seen = run([call("positive", np.array([x])) for x in (1, -2)], retry_failed_batch=False)
    assert all(isinstance(o.error, ValueError) for o in outcomes)
    assert len(seen) == 1


def test_exit_in_a_method_is_an_error_of_its_call() -> None:
    first, second = run([call("leaves", [1]), call("twice", [1])])[0]
    assert isinstance(first.error, SystemExit)
    assert second.unwrap() == [2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, None),
        (ValueError("a\n  b"), "ValueError: a b"),
        (KeyError("k"), "KeyError: 'k'"),
        (NotFound("none"), "none"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_error_of_a_call_as_its_caller_sees_it(error: BaseException | None, expected: str | None) -> None:
    found = error_of(Outcome(error=error))
    assert (found and found.message) == expected
    assert found is error or isinstance(found, RemoteException)


# ---- the rule behind it all -----------------------------------------------------------------------------------------

rows = st.lists(st.integers(-99, 99), min_size=0, max_size=9)
arguments = st.one_of(
    rows.map(lambda r: ("twice", np.array(r, "int64"))),
    rows.map(lambda r: ("twice", np.array(r, "float32"))),
    rows.map(lambda r: ("twice", list(r))),
    rows.map(lambda r: ("twice", pd.DataFrame({"a": np.array(r, "int64")}))),
    rows.map(lambda r: ("several", np.array([r, r], "int64").T)),
    rows.map(lambda r: ("columns", np.array([r, r, r], "int64"))),
    rows.map(lambda r: ("positive", np.array(r, "int64"))),
    rows.map(lambda r: ("whole", list(r))),
)


@given(st.lists(arguments, max_size=8))
@settings(deadline=None)
def test_many_calls_give_what_each_gives_alone(given_calls: list[tuple[str, Any]]) -> None:
    calls = [call(name, value) for name, value in given_calls]
    together = run(calls)[0]
    for one, outcome in zip(calls, together, strict=True):
        alone = run([one])[0][0]
        assert type(outcome.error) is type(alone.error)
        assert type(outcome.value) is type(alone.value)
        if isinstance(alone.value, pd.DataFrame):
            pd.testing.assert_frame_equal(outcome.value, alone.value)
        else:
            assert listed(outcome.value) == listed(alone.value)


@given(st.lists(rows, min_size=1, max_size=8))
@settings(deadline=None)
def test_no_batch_is_larger_than_the_method_allows_and_none_is_lost(given_rows: list[list[int]]) -> None:
    seen = run([call("twice", np.array(r, "int64")) for r in given_rows])[1]
    assert all(len(batch) <= MOST for batch in seen)
    assert sum(len(batch) for batch in seen) == sum(map(len, given_rows))

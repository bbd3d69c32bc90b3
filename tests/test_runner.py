from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.exceptions import InvalidArgument, PayloadTypeError, RemoteException, StateException
from adapter.model import BatchingConfig, Model, ModelInfo
from adapter.runnable import Runnable
from adapter.runner import LocalTransport, Resources, Runner
from adapter.tag import Tag


@dataclass
class Point:
    x: float
    y: float = 0.0


class Worker(Runnable):
    SUPPORT_NVIDIA_GPU = False
    SUPPORT_CPU_MULTI_THREADING = False

    def __init__(self, factor: int = 2, *, bias: int = 0) -> None:
        self.factor, self.bias = factor, bias
        self.batches: list[int] = []

    @Runnable.method(batchable=True)
    def predict(self, x: Any) -> Any:
        self.batches.append(len(x))
        return x * self.factor + self.bias

    @Runnable.method(batchable=True, input_spec=("float32", (-1, 2)), output_spec=("float32", (-1,)))
    def typed(self, x: Any) -> Any:
        x[:, 0] = 0
        return x.sum(axis=1)

    @Runnable.method
    def sizes(self) -> Any:
        return self.batches

    @Runnable.method
    def change(self, x: Any) -> Any:
        if isinstance(x, list):
            x.append("changed")
        else:
            x[...] = -1
        return x

    @Runnable.method
    def mirror(self, point: Point, *, times: int = 1) -> list[Point]:
        return [Point(point.y, point.x)] * times

    @Runnable.method
    async def later(self, x: Any) -> Any:
        await asyncio.sleep(0)
        return x, threading.current_thread().name

    @Runnable.method
    def fail(self, message: str) -> Any:
        raise KeyError(message)

    @Runnable.method
    def unsendable(self, value: Any) -> Any:
        return {1, 2}


class Single(Runnable):
    @Runnable.method
    def only(self, x: Any) -> Any:
        return x


class Called(Runnable):
    @Runnable.method
    def __call__(self, x: Any) -> Any:
        return ["called", x]

    @Runnable.method
    def other(self, x: Any) -> Any:
        return ["other", x]


MODEL = Model(ModelInfo(Tag("m", "v1"), "adapter.sklearn"), None)


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner(Worker, runnable_init_params={"factor": 3, "bias": 1}, max_batch_size=4)
    made.init_local(quiet=True)
    yield made
    made.destroy()


# ---- how a runner is made -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        ({}, Resources()),
        ({"cpu": 4}, Resources(cpu=4)),
        ({"cpu": 0.5, "nvidia_gpu": 1}, Resources(0.5, 1)),
        ({"gpu": 1}, Resources(nvidia_gpu=1)),
        ({"nvidia_gpu": 0, "gpu": 2}, Resources(nvidia_gpu=0)),
        ({"custom_resources": {"tpu": 2}}, Resources(custom={"tpu": 2})),
    ],
)
def test_resources_are_taken_in_every_spelling(options: Any, resources: Resources) -> None:
    assert Runner(Worker, **options).spec.resources == resources


@pytest.mark.parametrize("value", [-1, "2", True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["cpu", "nvidia_gpu", "gpu"])
def test_resources_that_are_no_number_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="is a number from 0 on, not"):
        Runner(Worker, **{name: value})


def test_runner_without_a_cpu_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cpu is above 0"):
        Runner(Worker, cpu=0)


LIMITS = {"max_batch_size": 10, "max_latency_ms": 500}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BatchingConfig(100, 60_000)),
        ({"max_batch_size": 5}, BatchingConfig(5, 60_000)),
        ({"max_latency_ms": 0.5}, BatchingConfig(100, 0.5)),
        ({"method_configs": {"predict": LIMITS}}, BatchingConfig(10, 500)),
        ({"runnable_method_configs": {"predict": LIMITS}}, BatchingConfig(10, 500)),
        ({"runnable_method_configs": [{"method_name": "predict", **LIMITS}]}, BatchingConfig(10, 500)),
        ({"runnable_method_configs": [{"name": "predict", **LIMITS}]}, BatchingConfig(10, 500)),
        ({"method_configs": {"predict": {"max_batch_size": 10}}, "max_latency_ms": 9}, BatchingConfig(10, 9)),
        ({"method_configs": {"predict": LIMITS}, "max_batch_size": 7}, BatchingConfig(10, 500)),
        ({"method_configs": {"typed": LIMITS}, "max_batch_size": 7}, BatchingConfig(7, 60_000)),
    ],
)
def test_limits_are_taken_in_every_spelling(options: Any, expected: BatchingConfig) -> None:
    runner = Runner(Worker, **options)
    assert runner.predict.config.batching == expected
    assert (runner.predict.max_batch_size, runner.predict.max_latency_ms) == (
        expected.max_batch_size,
        expected.max_latency_ms,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method_configs": {"wrong": LIMITS}}, "Worker serves no method 'wrong', which has settings; it serves"),
        ({"method_configs": {"predict": {"batch": 1}}}, "'predict' has the setting 'batch'"),
        ({"method_configs": {"predict": 5}}, "settings of the method 'predict' are a mapping, not 5"),
        ({"runnable_method_configs": [LIMITS]}, "'method_name'"),
        ({"runnable_method_configs": ["predict"]}, "'method_name'"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_batch_size": 2.5}, "max_batch_size"),
        ({"max_latency_ms": 0}, "max_latency_ms"),
        ({"models": ["iris:latest"]}, "'iris:latest'"),
        ({"name": "no name"}, "runner name"),
    ],
)
def test_option_that_cannot_be_used_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Runner(Worker, **options)


def test_runner_is_named_after_its_class_unless_it_has_a_name() -> None:
    assert Runner(Worker).name == "worker"
    assert Runner(Worker, name="custom_runner.1").name == "custom_runner.1"
    assert Runner(type("_Private", (Single,), {})).name == "private"


@pytest.mark.parametrize("keyword", ["strategy", "scheduling_strategy"])
def test_strategy_is_taken_in_both_spellings(keyword: str) -> None:
    strategy: Any = object()
    assert Runner(Worker, **{keyword: strategy}).spec.strategy is strategy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "x"}, "`strategy` of the runner 'worker' is noted but has no effect yet: "),
        (
            {"scheduling_strategy": Single},
            "`scheduling_strategy` of the runner 'worker' is noted but has no effect yet: ",
        ),
        (
            {"strategy": "x", "custom_resources": {"tpu": 1}},
            "`strategy` and `custom_resources` of the runner 'worker' are noted but have no effect yet: ",
        ),
    ],
)
def test_option_without_effect_is_told_once(options: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    Runner(Worker, **options)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(message)


def test_option_without_a_value_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    Runner(Worker, strategy=None, scheduling_strategy=None, custom_resources={}, cpu=1)
    assert not caplog.records


def test_models_are_kept() -> None:
    runner = Runner(Worker, models=[MODEL])
    assert runner.models == (MODEL,)
    assert runner.model is None


def test_making_a_runner_does_not_make_the_runnable() -> None:
    class Costly(Single):
        def __init__(self) -> None:
            raise AssertionError("made too early")

    assert Runner(Costly).name == "costly"


def test_runner_methods_are_listed_in_order() -> None:
    runner = Runner(Called)
    assert [m.name for m in runner.runner_methods] == ["__call__", "other"]
    assert repr(runner.other) == "RunnerMethod(called.other)"
    assert repr(runner) == "Runner('called', methods=[__call__, other])"
    assert "other" in dir(runner)


@pytest.mark.parametrize("thing", [Worker(), object, "Worker", None])
def test_what_is_no_runnable_class_is_refused(thing: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"made of a subclass of adapter\.Runnable"):
        Runner(thing)


def test_class_without_methods_is_refused() -> None:
    class Empty(Runnable):
        def predict(self) -> None: ...

    with pytest.raises(InvalidArgument, match="Empty serves no method: mark at least one"):
        Runner(Empty)


def test_generator_method_is_refused_when_the_runner_is_made() -> None:
    class Streaming(Runnable):
        @Runnable.method
        def words(self, text: str) -> Iterator[str]:
            yield from text.split()

    with pytest.raises(InvalidArgument, match=r"words\(\) is a generator, which runners cannot stream yet"):
        Runner(Streaming)


@pytest.mark.parametrize("name", ["name", "model", "destroy", "transport", "spec", "_methods", "_transport"])
def test_method_that_a_runner_would_hide_is_refused(name: str) -> None:
    class Hiding(Single):
        pass

    Hiding.add_method(lambda self, x: x, name)
    with pytest.raises(InvalidArgument, match=f"serves a method '{name}', but every runner has"):
        Runner(Hiding)


def test_method_called_run_can_be_reached() -> None:
    class Running(Runnable):
        @Runnable.method
        def run(self, x: Any) -> Any:
            return x

    runner = Runner(Running)
    runner.init_local(quiet=True)
    assert runner.run(5) == 5
    runner.destroy()


# ---- run without a method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "expected"), [(Single, 5), (Called, ["called", 5])])
def test_run_calls_the_only_method_or_the_one_called_call(cls: type[Runnable], expected: Any) -> None:
    runner = Runner(cls)
    runner.init_local(quiet=True)
    assert runner.run(5) == expected
    assert asyncio.run(runner.async_run(5)) == expected
    runner.destroy()


@pytest.mark.parametrize("verb", ["run", "async_run"])
def test_run_says_what_to_write_when_there_are_several_methods(verb: str) -> None:
    class Two(Single):
        @Runnable.method
        def more(self, x: Any) -> Any:
            return x

    runner = Runner(Two)
    with pytest.raises(
        AttributeError, match=f"has several methods, so say which: runner.only.{verb} or runner.more.{verb}"
    ):
        getattr(runner, verb)
    assert not hasattr(runner, verb)


def test_unknown_attribute_names_the_methods() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'predict'; its methods are only\."):
        _ = Runner(Single).predict


# ---- where it runs --------------------------------------------------------------------------------------------------


def test_call_before_it_runs_says_what_to_do() -> None:
    runner = Runner(Single)
    with pytest.raises(StateException, match=r"'single' is not running: name it in .* or call `init_local\(\)`"):
        runner.only.run(1)
    with pytest.raises(StateException, match="is not running"):
        asyncio.run(runner.only.async_run(1))


def test_init_local_twice_is_refused_and_destroy_lets_it_start_again(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(Single)
    runner.init_local()
    assert "single runs in this process" in caplog.text
    with pytest.raises(StateException, match=r"running already: call `destroy\(\)` first"):
        runner.init_local(quiet=True)
    with pytest.raises(StateException, match="running already"):
        runner.connect(LocalTransport(runner.spec))
    runner.destroy()
    runner.destroy()
    with pytest.raises(StateException, match="is not running"):
        runner.only.run(1)
    runner.init_local(quiet=True)
    assert runner.only.run(1) == 1
    runner.destroy()


def test_quiet_init_local_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(Single)
    runner.init_local(quiet=True)
    runner.destroy()
    assert not caplog.records


def test_runnable_that_cannot_be_made_raises_its_own_error_and_leaves_no_thread() -> None:
    runner = Runner(Worker, runnable_init_params={"wrong": 1})
    with pytest.raises(TypeError, match="wrong"):
        runner.init_local(quiet=True)
    for thread in threading.enumerate():
        if thread.name.startswith("runner-worker"):
            thread.join(5)
            assert not thread.is_alive()
    with pytest.raises(StateException, match="is not running"):
        runner.predict.run(np.arange(2))


# ---- calls ----------------------------------------------------------------------------------------------------------


def test_call_runs_with_the_init_parameters(runner: Runner) -> None:
    assert runner.predict.run(np.arange(3)).tolist() == [1, 4, 7]
    assert runner.predict.run(x=np.arange(3)).tolist() == [1, 4, 7]
    assert asyncio.run(runner.predict.async_run(np.arange(3))).tolist() == [1, 4, 7]


def test_async_calls_run_side_by_side(runner: Runner) -> None:
    async def several() -> list[Any]:
        return await asyncio.gather(*(runner.predict.async_run(np.array([i])) for i in range(5)))

    assert [r.tolist() for r in asyncio.run(several())] == [[1], [4], [7], [10], [13]]


def test_batch_is_cut_where_the_method_allows_no_more(runner: Runner) -> None:
    assert runner.predict.run(np.arange(9)).tolist() == (np.arange(9) * 3 + 1).tolist()
    assert runner.sizes.run() == [4, 4, 1]


def test_changes_in_place_do_not_reach_the_caller(runner: Runner) -> None:
    array, items, rows = np.arange(3), [1], np.ones((2, 2), np.float32)
    assert runner.change.run(array).tolist() == [-1, -1, -1]
    assert runner.change.run(items) == [1, "changed"]
    assert runner.typed.run(rows).tolist() == [1, 1]
    assert (array.tolist(), items, rows.tolist()) == ([0, 1, 2], [1], [[1, 1], [1, 1]])


def test_results_can_be_changed_without_reaching_the_runnable(runner: Runner) -> None:
    runner.predict.run(np.arange(2))
    sizes = runner.sizes.run()
    sizes.append(99)
    assert runner.sizes.run() == [2]


def test_records_arrive_and_come_back_as_they_were(runner: Runner) -> None:
    assert runner.mirror.run(Point(1, 2)) == [Point(2, 1)]
    assert runner.mirror.run(point=Point(1, 2), times=2) == [Point(2, 1), Point(2, 1)]


def test_frames_arrive_and_come_back(runner: Runner) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    pd.testing.assert_frame_equal(runner.predict.run(frame), frame * 3 + 1)


def test_async_method_is_awaited_on_the_thread_of_the_runnable(runner: Runner) -> None:
    value, thread = runner.later.run(5)
    assert (value, thread) == (5, "runner-worker_0")
    assert asyncio.run(runner.later.async_run(6))[0] == 6


def test_error_of_user_code_arrives_as_it_was_raised(runner: Runner) -> None:
    with pytest.raises(KeyError, match="gone"):
        runner.fail.run("gone")
    assert runner.predict.run(np.arange(1)).tolist() == [1]


@pytest.mark.parametrize(
    ("method", "args", "error", "message"),
    [
        ("predict", (), TypeError, r"predict\(\) missing a required argument: 'x'"),
        ("predict", (1, 2), TypeError, r"predict\(\) too many positional arguments"),
        ("typed", (np.ones((2, 3)),), InvalidArgument, "shape"),
        ("typed", ("text",), InvalidArgument, "'x'"),
        ("mirror", ({"z": 1},), InvalidArgument, "Point"),
        ("change", ({1, 2},), PayloadTypeError, "builtins.set"),
        ("unsendable", (1,), RemoteException, "builtins.set"),
    ],
)
def test_call_that_cannot_be_made_is_refused_as_in_triton(
    runner: Runner, method: str, args: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(runner, method).run(*args)


def test_blocking_call_on_an_event_loop_is_refused_when_serving() -> None:
    runner = Runner(Single)
    runner.connect(LocalTransport(runner.spec, serving=True))

    async def blocking() -> Any:
        return runner.only.run(1)

    with pytest.raises(StateException, match=r"write `await runner\.only\.async_run\(…\)`"):
        asyncio.run(blocking())
    assert runner.only.run(1) == 1
    runner.destroy()


@given(st.lists(st.integers(-99, 99), max_size=11))
@settings(deadline=None, max_examples=30)
def test_row_wise_method_gives_the_same_for_any_number_of_rows(numbers: list[int]) -> None:
    runner = Runner(Worker, max_batch_size=4)
    runner.init_local(quiet=True)
    assert runner.predict.run(np.array(numbers, "int64")).tolist() == [2 * n for n in numbers]
    runner.destroy()


# ---- for type checkers ----------------------------------------------------------------------------------------------

USER_CODE = """
from typing import Any

import numpy as np
import numpy.typing as npt

import adapter


class Doubler(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return 2 * x

    @adapter.Runnable.method
    def plain(self, x: int) -> int:
        return x


runner = adapter.Runner(Doubler, name="doubler", max_batch_size=5)
reveal_type(Doubler().plain(1))


def call(x: npt.NDArray[Any]) -> Any:
    return runner.predict.run(x), runner.run(x)


async def call_later(x: npt.NDArray[Any]) -> Any:
    return await runner.predict.async_run(x), await runner.async_run(x)
"""


def test_user_code_that_calls_runners_is_accepted_by_mypy(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "int"' in done.stdout.replace("builtins.int", "int")


class RunIsItsName(Runnable):
    @Runnable.method
    def run(self, x: int) -> int:
        return x + 1

    @Runnable.method
    def other(self, x: int) -> int:
        return x


def test_method_called_run_is_called_both_ways() -> None:
    runner = Runner(RunIsItsName)
    runner.init_local(quiet=True)
    assert (runner.run(1), runner.run.run(1), runner.other.run(1)) == (2, 2, 1)
    runner.destroy()

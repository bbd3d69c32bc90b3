from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.exceptions import InvalidArgument, PayloadTypeError, RemoteException, ServiceUnavailable, StateException
from adapter.model import BatchingConfig, Model, ModelInfo
from adapter.resources import Resources
from adapter.runnable import Runnable
from adapter.runner import LocalTransport, Runner
from adapter.strategy import Strategy
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
        return object()


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
        ({"nvidia_gpu": [2, 4]}, Resources(nvidia_gpu=(2, 4))),
        ({"cpu": "500m", "gpu": "system"}, Resources(0.5, "system")),
        ({"custom_resources": {"tpu": 2}}, Resources(custom={"tpu": 2})),
    ],
)
def test_resources_are_taken_in_every_spelling(options: Any, resources: Resources) -> None:
    assert Runner(Worker, **options).spec.resources == resources


NO_NUMBERS: list[Any] = [-1, "2", True, float("nan"), float("inf"), "all", {}, int]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        *(("cpu", value, "cpu is .*, but can only be a number above 0") for value in NO_NUMBERS),
        *(("nvidia_gpu", value, "nvidia_gpu is .*, but can only be a number from 0") for value in NO_NUMBERS),
        ("cpu", 0, "cpu is 0, but can only be a number above 0"),
        ("cpu", "0m", "cpu is '0m'"),
        ("cpu", [1], r"cpu is \[1\]"),
        ("gpu", [0, 0], r"nvidia_gpu is \[0, 0\], but can only be .* a list of the indices of GPUs"),
        ("nvidia_gpu", [-1], "nvidia_gpu is"),
        ("nvidia_gpu", ["0"], "nvidia_gpu is"),
        ("custom_resources", ["tpu"], "custom_resources is .*, but can only be a mapping"),
        ("custom_resources", {"tpu": object()}, "custom_resources is"),
        ("custom_resources", {1: 1}, "custom_resources is"),
        ("custom_resources", {"cpu": 1}, "custom_resources has 'cpu': write `cpu=1`"),
        ("custom_resources", {"nvidia.com/gpu": 1}, "write `nvidia_gpu=1`"),
    ],
)
def test_resources_that_are_none_are_refused(name: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        Runner(Worker, **{name: value})


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
        ({"models": 5}, "models=.* not 5"),
        ({"method_configs": 5}, "settings of methods are a mapping from their names, not 5"),
        ({"runnable_init_params": ["a"]}, r"runnable_init_params is a mapping .* Worker\.__init__ .* not \['a'\]"),
        ({"embedded": "false"}, "embedded is True or False, not 'false'"),
        ({"retry_failed_batch": 0}, "retry_failed_batch is True or False, not 0"),
        ({"isolated": "no"}, "isolated is True or False, not 'no'"),
        ({"isolated": False, "embedded": True}, "in the front, isolated=False in Triton's process: leave one"),
        ({"max_batch_size": 1 << 31}, "max_batch_size is 2147483648, but can only be a whole number from 1 on"),
        ({"max_latency_ms": 1e300}, "max_latency_ms is 1e[+]300"),
        ({"name": "no name"}, "runner name"),
    ],
)
def test_option_that_cannot_be_used_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Runner(Worker, **options)


def test_generator_that_would_run_in_the_stub_is_refused() -> None:
    class Talking(Runnable):
        @Runnable.method
        def tokens(self, n: int) -> Iterator[int]:
            yield n

    with pytest.raises(InvalidArgument, match=r"'talking' has isolated=False, but tokens\(\) is a generator.*: leave"):
        Runner(Talking, isolated=False)
    assert Runner(Talking).spec.isolated


def test_runner_is_named_after_its_class_unless_it_has_a_name() -> None:
    assert Runner(Worker).name == "worker"
    assert Runner(Worker, name="custom_runner.1").name == "custom_runner.1"
    assert Runner(type("_Private", (Single,), {})).name == "private"


@pytest.mark.parametrize("keyword", ["strategy", "scheduling_strategy"])
def test_strategy_is_taken_in_both_spellings(keyword: str) -> None:
    class Own(Strategy):
        pass

    options: Any = {keyword: Own}
    assert Runner(Worker, **options).spec.strategy is Own
    others: list[Any] = ["x", Single, Own()]
    for other in others:
        options = {keyword: other}
        with pytest.raises(InvalidArgument, match=r"strategy is a subclass of adapter\.Strategy"):
            Runner(Worker, **options)


def test_every_option_of_the_guide_is_taken() -> None:
    """The "Runner Options" of seed 003, as Python can write them."""

    class Own(Strategy):
        pass

    runner = Runner(
        Worker,
        runnable_init_params={"factor": 1, "bias": 2},
        name="custom_runner_name",
        strategy=Own,
        models=[MODEL],
        cpu=4,
        nvidia_gpu=1,
        custom_resources={"tpu": 2},
        max_batch_size=20,
        max_latency_ms=1000,
        runnable_method_configs=[{"method_name": "predict", "max_batch_size": 10, "max_latency_ms": 500}],
    )
    assert runner.spec.resources == Resources(4, 1, {"tpu": 2})
    assert runner.spec.strategy is Own
    assert {"cpu", "nvidia_gpu", "custom_resources"} == {name for method, name in runner.spec.given if not method}
    assert (runner.predict.max_batch_size, runner.predict.max_latency_ms) == (10, 500)


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
        ("change", (object(),), PayloadTypeError, "builtins.object"),
        ("unsendable", (1,), RemoteException, "builtins.object"),
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


# ---- streams ------------------------------------------------------------------------------------------------------


class Speaker(Runnable):
    """Methods of both kinds."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended: list[str] = []
        self.thread = threading.get_ident()

    @Runnable.method
    def count(self) -> int:
        self.calls += 1
        return self.calls

    @Runnable.method
    def words(self, text: str) -> Iterator[str]:
        self.calls += 1
        try:
            yield from text.split()
        except GeneratorExit:
            self.ended.append(text)
            raise

    @Runnable.method
    async def points(self, points: list[Point], pause: float = 0.0) -> AsyncIterator[Point]:
        try:
            for point in points:
                await asyncio.sleep(pause)
                yield Point(point.x + 1, point.y)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    @Runnable.method
    async def seen(self) -> AsyncIterator[Any]:
        yield self.calls
        yield self.ended
        yield self.thread == threading.get_ident()

    @Runnable.method
    def collect(self) -> Iterator[int]:
        yield gc.collect()

    @Runnable.method
    def fails(self, how: str) -> Iterator[Any]:
        yield 1
        if how == "exit":
            raise SystemExit(3)
        if how == "unsendable":
            yield object()
        raise ValueError(how)


@pytest.fixture
def speaker() -> Iterator[Runner]:
    runner = Runner(Speaker)
    runner.init_local(quiet=True)
    yield runner
    runner.destroy()


async def taken(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]


def test_values_of_a_generator_come_one_by_one(speaker: Runner) -> None:
    assert list(speaker.words.stream("a b c")) == ["a", "b", "c"]
    assert asyncio.run(taken(speaker.words.async_stream(text="a b"))) == ["a", "b"]
    assert list(speaker.words.stream("")) == []


def test_value_is_what_the_generator_is_annotated_with(speaker: Runner) -> None:
    assert list(speaker.points.stream([Point(1), Point(2, 3)])) == [Point(2.0), Point(3.0, 3.0)]


def test_generators_have_an_object_of_their_own_and_a_thread(speaker: Runner) -> None:
    assert speaker.count.run() == 1
    list(speaker.words.stream("a"))
    list(speaker.words.stream("a"))
    assert list(speaker.seen.stream()) == [2, [], True]
    assert speaker.count.run() == 2


def test_generator_is_stepped_as_its_reader_asks(speaker: Runner) -> None:
    values = speaker.words.stream("a b c")
    assert next(values) == "a"
    assert list(speaker.seen.stream())[1] == []
    values.close()  # type: ignore[attr-defined]  # it is a generator
    wait_until_ended(speaker, "a b c")


def test_stream_that_is_thrown_away_on_the_thread_of_the_generators_is_closed(speaker: Runner) -> None:
    def begin() -> None:
        values: list[Any] = [speaker.words.stream("a b c")]
        assert next(values[0]) == "a"
        values.append(values)  # so that it ends where the garbage collector happens to run

    begin()
    assert len(list(speaker.collect.stream())) == 1
    wait_until_ended(speaker, "a b c")


def wait_until_ended(speaker: Runner, what: str) -> None:
    until = time.monotonic() + 5
    while list(speaker.seen.stream())[1] != [what]:
        assert time.monotonic() < until


def test_reader_that_is_cancelled_cancels_the_generator(speaker: Runner) -> None:
    async def main() -> None:
        reading = asyncio.create_task(taken(speaker.points.async_stream([Point(1)], 60)))
        await asyncio.sleep(0.1)
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(main())
    wait_until_ended(speaker, "cancelled")


def test_streams_of_one_object_run_side_by_side(speaker: Runner) -> None:
    async def main() -> list[Any]:
        slow = asyncio.create_task(taken(speaker.points.async_stream([Point(1)] * 3, 0.2)))
        quick = await taken(speaker.words.async_stream("a b c"))
        assert not slow.done()
        return [quick, await slow]

    assert asyncio.run(main()) == [["a", "b", "c"], [Point(2.0)] * 3]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("value", ValueError, "value"),
        ("exit", RemoteException, "SystemExit: 3"),
        ("unsendable", RemoteException, "returned what cannot be sent"),
    ],
)
def test_error_of_a_generator_comes_after_its_values(
    speaker: Runner, how: str, error: type[BaseException], text: str
) -> None:
    values = speaker.fails.stream(how)
    assert next(values) == 1
    with pytest.raises(error, match=text):
        next(values)
    assert list(speaker.words.stream("a")) == ["a"]


def test_generator_is_not_called_as_a_function_nor_a_function_as_a_generator(speaker: Runner) -> None:
    with pytest.raises(StateException, match=r"words\(\) is a generator: write `async for value in runner.words"):
        speaker.words.run("a")
    with pytest.raises(StateException, match=r"or `for value in runner.words.stream\(…\)` in a plain function"):
        asyncio.run(speaker.words.async_run("a"))
    for call in (speaker.count.stream, speaker.count.async_stream):
        with pytest.raises(StateException, match=r"count\(\) is no generator: write `await runner.count.async_run"):
            call()


def test_call_of_a_generator_that_does_not_fit_is_the_type_error_of_python(speaker: Runner) -> None:
    with pytest.raises(TypeError, match=r"words\(\) missing a required argument: 'text'"):
        speaker.words.stream()
    with pytest.raises(PayloadTypeError):
        speaker.words.async_stream(object())


def test_destroyed_runner_ends_the_streams_that_are_open() -> None:
    runner = Runner(Speaker)
    runner.init_local(quiet=True)
    values = runner.points.stream([Point(1), Point(2)])
    assert next(values) == Point(2.0)
    runner.destroy()
    with pytest.raises(ServiceUnavailable, match="this server has stopped"):
        next(values)


def test_error_while_the_object_of_the_generators_is_made_is_raised_as_it_is() -> None:
    class Broken(Speaker):
        def __init__(self) -> None:
            raise SystemExit("no object")

    with pytest.raises(SystemExit, match="no object"):
        Runner(Broken).init_local(quiet=True)

    class Alone(Runnable):
        def __init__(self) -> None:
            raise SystemExit("no object")

        @Runnable.method
        def words(self) -> Iterator[str]:
            yield ""

    with pytest.raises(SystemExit, match="no object"):
        Runner(Alone).init_local(quiet=True)


def test_generator_is_warmed_up_by_its_first_value() -> None:
    runner = Runner(Speaker, warmup={"words": "a b c"})
    runner.init_local(quiet=True)
    assert list(runner.seen.stream())[:2] == [1, ["a b c"]]
    runner.destroy()
    with pytest.raises(StateException, match=r"The warm-up call of points\(\) failed: "):
        Runner(Speaker, warmup={"points": 1}).init_local(quiet=True)

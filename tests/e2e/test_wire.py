"""One table of calls, through the transport in this process and through a real Triton, with the code of runners in a
worker or in Triton's stub: the results are the same."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import adapter
from adapter.exceptions import InvalidArgument, NotFound, PayloadTypeError, RemoteException, StateException
from adapter.runner import LocalTransport, Runner, Transport
from adapter.triton.client import TritonClient
from adapter.triton.engine import Engine
from adapter.triton.export import plan, write
from adapter.triton.manifest import Manifest
from adapter.triton.transport import connect
from tests.e2e.services import wire

Call = Callable[[dict[str, Runner]], Any]
SERVICES = Path(wire.__file__).parent


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on a thread of its own, as a front process has one beside its worker threads."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture(scope="module")
def transports(
    engine_of: Callable[..., Engine], loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Transport]]]:
    repository = tmp_path_factory.mktemp("repository")
    services = {"triton": wire.svc, "stub": wire.in_stub}
    written = [w for service in services.values() for w in write(plan(service, folder=SERVICES), repository)]
    engine = engine_of(repository, [w.name for w in written])

    async def open_client() -> TritonClient:
        client = TritonClient(engine.url)
        manifest = Manifest.read(repository)
        for service in services.values():
            for runner in service.runners:
                connect(client, runner, manifest.entries(service.name, runner.name))
        return client

    client = asyncio.run_coroutine_threadsafe(open_client(), loop).result()
    assert asyncio.run_coroutine_threadsafe(client.not_ready(), loop).result() == ""
    remote = {way: {runner.name: runner.transport for runner in each.runners} for way, each in services.items()}
    for runner in (*wire.svc.runners, *wire.in_stub.runners):
        runner.destroy()
    local: dict[str, Transport] = {r.name: LocalTransport(r.spec, serving=True) for r in wire.svc.runners}
    yield {"local": local, **remote}
    for transport in local.values():
        transport.close()
    asyncio.run_coroutine_threadsafe(client.close(), loop).result()


@pytest.fixture(params=["local", "triton", "stub"])
def runners(request: pytest.FixtureRequest, transports: dict[str, dict[str, Transport]]) -> Iterator[dict[str, Runner]]:
    for runner in wire.svc.runners:
        runner.connect(transports[request.param][runner.name])
    yield {runner.name: runner for runner in wire.svc.runners}
    for runner in wire.svc.runners:
        runner._transport = None  # the transports live as long as the module's tests


def echo(value: Any) -> Call:
    return lambda r: r["calls"].echo.run(value)


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]})
ROWS = np.arange(12.0).reshape(4, 3)

CALLS: list[tuple[str, Call, Any]] = [
    ("none", echo(None), None),
    ("number", echo(3), 3),
    ("text", echo("grüße \N{SNOWMAN}"), "grüße \N{SNOWMAN}"),
    ("bytes", echo(b"\x00\xff"), b"\x00\xff"),
    ("tuple", echo((1, (2, [3]))), (1, (2, [3]))),
    ("list", echo([1, (2,)]), [1, (2,)]),
    ("dict", echo({"a": {1: 2}}), {"a": {1: 2}}),
    ("array", echo(np.arange(6, dtype=np.int16).reshape(2, 3)), np.arange(6, dtype=np.int16).reshape(2, 3)),
    ("strings", echo(np.array(["a", "bc"])), np.array(["a", "bc"])),
    ("dates", echo(np.array(["2026-11-21"], dtype="datetime64[D]")), np.array(["2026-11-21"], dtype="datetime64[D]")),
    ("0-d array", echo(np.array(2.5)), np.array(2.5)),
    ("numpy scalar", echo(np.float32(2.5)), np.float32(2.5)),
    ("empty array", echo(np.zeros((0, 3))), np.zeros((0, 3))),
    ("one megabyte", echo(np.ones((256, 1024), np.float32)), np.ones((256, 1024), np.float32)),
    ("frame", echo(FRAME), FRAME),
    ("series", echo(FRAME["a"]), FRAME["a"]),
    ("type of a tuple", lambda r: r["calls"].type_of.run((1,)), "tuple"),
    ("type of a list", lambda r: r["calls"].type_of.run([1]), "list"),
    ("type of an unannotated dataclass", lambda r: r["calls"].type_of.run(wire.Box([])), "dict"),
    ("keywords", lambda r: r["calls"].named.run(1, b=3, c=4), {"a": 1, "b": 3, "c": 4}),
    ("defaults", lambda r: r["calls"].named.run(a=1), {"a": 1, "b": 2}),
    (
        "dataclass of pydantic models",
        lambda r: r["calls"].grow.run(wire.Box([wire.Row(name="x", size=2)], "l")),
        wire.Box([wire.Row(name="x", size=4.0)], "l"),
    ),
    ("batch", lambda r: r["calls"].scale.run(ROWS), ROWS * 2),
    ("batch with a scalar", lambda r: r["calls"].scale.run(ROWS, by=0.5), ROWS),
    ("batch over the limit", lambda r: r["calls"].scale.run(np.arange(20.0)), np.arange(20.0) * 2),
    ("two outputs", lambda r: r["calls"].two.run(np.array([1, 2])), (np.array([2, 3]), ["1", "2"])),
    ("batch axes 1 and 0", lambda r: r["calls"].columns.run(np.ones((2, 3))), np.full(3, 2.0)),
    ("frames", lambda r: r["calls"].frame.run(FRAME), FRAME.assign(total=[1.5, 3.5, 5.5])),
    ("texts", lambda r: r["calls"].texts.run(["a", "b"]), ["A", "B"]),
    ("async method", lambda r: r["calls"].later.run(1), 2),
    (
        "typed",
        lambda r: r["typed"].norm.run(ROWS),
        ((ROWS.astype(np.float32) ** 2).sum(axis=1), ROWS.astype(np.float32) > 0),
    ),
    ("typed, one row", lambda r: r["typed"].run(x=ROWS[:1])[0], np.array([5.0], np.float32)),
    ("typed with a keyword", lambda r: r["typed"].norm.run(ROWS, power=1)[0], np.array([3, 12, 21, 30], np.float32)),
    ("typed over the limit", lambda r: r["typed"].norm.run(np.ones((11, 3)))[0], np.full(11, 3, np.float32)),
    ("typed integers", lambda r: r["typed"].norm.run(np.ones((1, 3), int))[0], np.array([3], np.float32)),
    (
        "typed frame",
        lambda r: r["typed"].norm.run(pd.DataFrame(ROWS, columns=["a", "b", "c"]), power=1)[0],
        np.array([3, 12, 21, 30], np.float32),
    ),
    ("typed list", lambda r: r["typed"].norm.run([[1, 2, 2]])[0], np.array([9], np.float32)),
    ("typed axes 1 and 0", lambda r: r["sideways"].run(np.arange(20.0).reshape(2, 10)), np.arange(10.0, 30.0, 2)),
    ("typed 0-d", lambda r: r["single"].run(2.7), np.array(3, np.int32)),
]


@pytest.mark.parametrize(("call", "expected"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_call_gives_the_same_through_every_transport(runners: dict[str, Runner], call: Call, expected: Any) -> None:
    same(call(runners), expected)


@pytest.mark.parametrize(("call", "expected"), [c[1:] for c in CALLS[-12:]], ids=[c[0] for c in CALLS[-12:]])
def test_async_run_gives_what_run_gives(
    runners: dict[str, Runner], loop: asyncio.AbstractEventLoop, call: Call, expected: Any
) -> None:
    class Awaited:
        """A runner whose `run` sends the call with `async_run`, on the event loop."""

        def __init__(self, target: Any) -> None:
            self._target = target

        def __getattr__(self, name: str) -> Any:
            return Awaited(getattr(self._target, name))

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(self._target.async_run(*args, **kwargs), loop).result()

    awaited: Any = {name: Awaited(runner) for name, runner in runners.items()}
    same(call(awaited), expected)


ERRORS: list[tuple[str, Call, type[BaseException], str]] = [
    ("missing argument", lambda r: r["calls"].echo.run(), TypeError, "missing a required argument: 'value'"),
    ("unknown argument", lambda r: r["calls"].texts.run(items=[], no=1), TypeError, "unexpected keyword argument"),
    ("too many arguments", lambda r: r["typed"].run(1, 2, 3), TypeError, "too many positional arguments"),
    ("no tensor", lambda r: r["typed"].run(power=1), TypeError, "missing a required argument: 'x'"),
    ("type", lambda r: r["calls"].echo.run(object()), PayloadTypeError, "builtins.object"),
    ("type within", lambda r: r["calls"].echo.run([{"a": object()}]), PayloadTypeError, "builtins.object"),
    ("type beside tensors", lambda r: r["typed"].run(ROWS, power=np.ones(2)), PayloadTypeError, "plain JSON"),
    ("shape", lambda r: r["typed"].run(np.ones((2, 4))), InvalidArgument, r"\(-1, 3\).*\(2, 4\)"),
    ("rank", lambda r: r["typed"].run(np.ones(3)), InvalidArgument, r"\(-1, 3\).*\(3,\)"),
    (
        "dtype",
        lambda r: r["typed"].run(np.array([["a", "b", "c"]])),
        InvalidArgument,
        "float32, which 'a' does not fit",
    ),
    ("empty batch", lambda r: r["typed"].run(np.ones((0, 3))), InvalidArgument, "at least one item"),
    (
        "another length",
        lambda r: r["calls"].short.run(np.ones(3)),
        RemoteException,
        "2 items on axis 0 for a batch of 3",
    ),
    ("adapter's error", lambda r: r["calls"].missing.run(), NotFound, "no such thing in the runner"),
]


@pytest.mark.parametrize(("call", "error", "text"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_bad_call_raises_the_same_through_every_transport(
    runners: dict[str, Runner], call: Call, error: type[BaseException], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(runners)


def test_error_class_of_the_users_own_keeps_its_status(runners: dict[str, Runner]) -> None:
    with pytest.raises(adapter.exceptions.AdapterError, match="short and stout") as caught:
        runners["calls"].teapot.run()
    assert caught.value.error_code == 418


BAD_ERRORS = [
    ("no message", 418, ""),
    ("no text", 500, "Unprintable"),
    ("no status", 500, "odd"),
    ("exit", 500, "SystemExit: 3"),
    ("cancelled", 500, "CancelledError"),
    ("long", 404, "ü" * 1000),
    ("surrogate", 404, "a?bc"),
    ("unsendable", 500, "bad_error() returned what cannot be sent. PayloadTypeError: A value of type builtins.object"),
    ("half a dataclass", 500, "bad_error() returned what cannot be sent. AttributeError"),
]


@pytest.mark.parametrize("way", ["triton", "stub"])
@pytest.mark.parametrize(("kind", "status", "text"), BAD_ERRORS, ids=[e[0] for e in BAD_ERRORS])
def test_error_of_any_kind_hurts_its_own_call_only(
    transports: dict[str, dict[str, Transport]], kind: str, status: int, text: str, way: str
) -> None:
    method = wire.calls.spec.methods["bad_error"]
    with pytest.raises(adapter.exceptions.AdapterError) as caught:
        transports[way]["calls"].run(method, (kind,), {})
    assert caught.value.error_code == status
    assert str(caught.value).startswith(text)
    assert transports[way]["calls"].run(wire.calls.spec.methods["echo"], (1,), {}) == 1


def test_array_changed_in_place_stays_as_it_was_for_the_caller(runners: dict[str, Runner]) -> None:
    x = np.ones(3)
    result = runners["calls"].scale.run(x)
    assert x.tolist() == [1, 1, 1]
    result += 1  # what comes back may be written
    assert result.tolist() == [3, 3, 3]


def test_run_on_an_event_loop_names_async_run(runners: dict[str, Runner]) -> None:
    async def wrong() -> Any:
        return runners["calls"].echo.run(1)

    with pytest.raises(StateException, match=r"await runner\.echo\.async_run"):
        asyncio.run(wrong())


def test_one_bad_call_leaves_the_others_of_its_batch_whole(
    runners: dict[str, Runner], loop: asyncio.AbstractEventLoop
) -> None:
    async def all_at_once() -> list[Any]:
        calls = [runners["calls"].picky.async_run(np.array([float(n)])) for n in range(-1, 20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run_coroutine_threadsafe(all_at_once(), loop).result()
    assert "no negative numbers" in str(first)
    assert [o.tolist() for o in others] == [[float(n)] for n in range(20)]


KINDS = ["typed", "blob", "odd", "gone", "long"]


@pytest.mark.parametrize("runners", ["triton", "stub"], indirect=True)
def test_a_thousand_interleaved_calls_each_get_their_own_result(
    runners: dict[str, Runner], loop: asyncio.AbstractEventLoop
) -> None:
    dice = random.Random(5)

    async def one(n: int) -> str:
        await asyncio.sleep(dice.random() / 2)
        kind = dice.choices(KINDS, [45, 35, 10, 8, 2])[0]
        if kind == "odd":
            with pytest.raises(RemoteException, match="no negative numbers"):
                await runners["calls"].picky.async_run(np.full(3, -float(n + 1)))
        elif kind == "gone":
            task = asyncio.ensure_future(runners["typed"].norm.async_run(np.full((2, 3), n, np.float32)))
            await asyncio.sleep(dice.random() / 500)
            task.cancel()
            await asyncio.wait([task])
        elif kind == "blob":
            x = np.full(dice.randint(1, 6), float(n))
            assert np.array_equal(await runners["calls"].picky.async_run(x), x)
        else:
            x = np.random.default_rng(n).random((dice.randint(1, 4) if kind == "typed" else 50, 3), np.float32)
            power = dice.randint(1, 3)
            sums, positive = await runners["typed"].norm.async_run(x, power=power)
            assert np.allclose(sums, (x**power).sum(axis=1), atol=1e-5)
            assert positive.all()
        return kind

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(one(n) for n in range(800)))

    found = asyncio.run_coroutine_threadsafe(all_at_once(), loop)

    def from_a_thread(first: int) -> list[bool]:
        return [runners["calls"].texts.run([f"n{n}"] * 3) == [f"N{n}"] * 3 for n in range(first, first + 25)]

    with ThreadPoolExecutor(8) as threads:
        assert all(all(each) for each in threads.map(from_a_thread, range(0, 200, 25)))
    assert set(found.result(60)) == set(KINDS)


def same(found: Any, expected: Any) -> None:
    """Assert that two values are equal and of the same types, all the way down."""
    assert type(found) is type(expected)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif dataclasses.is_dataclass(expected):
        same(list(vars(found).values()), list(vars(expected).values()))
    else:
        assert found == expected

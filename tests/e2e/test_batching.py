"""Batches: those that Triton forms of raw requests, and those of calls through the transports, of any type."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc.aio as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from adapter.exceptions import RemoteException
from adapter.runner import LocalTransport, Transport
from adapter.triton.client import TritonClient
from adapter.triton.engine import Engine
from adapter.triton.export import plan, write
from adapter.triton.manifest import Manifest
from adapter.triton.transport import connect
from tests.e2e.services import batching

CLIENTS = 24


@pytest.fixture(scope="module")
def engine(engine_of: Callable[..., Engine], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    repository = tmp_path_factory.mktemp("repository")
    written = write(plan(batching.svc, folder=Path(batching.__file__).parent), repository)
    return engine_of(repository, [w.name for w in written])


# ---- Triton's own batches -------------------------------------------------------------------------------------------


async def infer(client: Any, entry: str, tensor: str, array: Any) -> Any:
    given = grpc.InferInput(tensor, list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return await client.infer(entry, [given])


def batches(engine: Engine, entry: str, arrays: Sequence[Any], tensor: str = "x") -> tuple[list[Any], dict[int, int]]:
    """The answers to raw requests that were sent at once, and how many batches of which size Triton made of them."""

    async def counts(client: Any) -> dict[int, int]:
        found = await client.get_inference_statistics(entry, headers=dict(engine.metadata))
        return {batch.batch_size: batch.compute_infer.count for batch in found.model_stats[0].batch_stats}

    async def all_at_once() -> tuple[list[Any], dict[int, int]]:
        async with grpc.InferenceServerClient(engine.url.removeprefix("grpc://")) as client:
            before = await counts(client)
            answers = await asyncio.gather(*(infer(client, entry, tensor, array) for array in arrays))
            after = await counts(client)
        return answers, {size: n - before.get(size, 0) for size, n in after.items() if n > before.get(size, 0)}

    return asyncio.run(all_at_once())


def test_triton_makes_batches_of_single_rows(engine: Engine) -> None:
    rows = [np.full((1, 2), n, np.float32) for n in range(CLIENTS)]
    answers, made = batches(engine, "batching.slow", rows)
    for n, answer in enumerate(answers):
        assert answer.as_numpy("output_0").tolist() == [[2 * n, 2 * n]]
    assert sum(size * count for size, count in made.items()) == CLIENTS
    assert sum(made.values()) < CLIENTS / 2
    assert max(made) <= 16
    # what the method was called with is what Triton counts
    assert max(answer.as_numpy("output_1").item() for answer in answers) == max(made)


def test_request_of_several_rows_counts_as_such(engine: Engine) -> None:
    answers, made = batches(engine, "batching.slow", [np.full((10, 2), n, np.float32) for n in range(6)])
    assert [answer.as_numpy("output_0").shape for answer in answers] == [(10, 2)] * 6
    assert set(made) == {10}  # two of them would be more than 16


def test_raw_request_longer_than_a_batch_is_refused_by_triton(engine: Engine) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 16"):
        batches(engine, "batching.slow", [np.zeros((17, 2), np.float32)])


def test_ragged_requests_share_a_batch_of_triton_and_are_answered_each_for_itself(engine: Engine) -> None:
    rows = [np.full((1, width), n, np.float32) for n, width in enumerate([3, 4, 3, 4, 5, 3] * 4)]
    answers, made = batches(engine, "batching.ragged", rows)
    for row, answer in zip(rows, answers, strict=True):
        assert answer.as_numpy("output_0").tolist() == [row.sum()]
    assert sum(made.values()) < len(rows) / 2


def test_batch_axis_is_first_on_the_wire(engine: Engine) -> None:
    answers, made = batches(engine, "batching.sideways", [np.full((1, 3), n, np.float32) for n in range(CLIENTS)])
    assert [answer.as_numpy("output_0")[0, 0] for answer in answers] == [3 * n for n in range(CLIENTS)]
    assert sum(made.values()) < CLIENTS / 2


def test_triton_waits_for_a_full_batch_where_it_may(engine: Engine) -> None:
    rows = [np.full((1, 2), n, np.float32) for n in range(4)]
    assert batches(engine, "batching.patient", rows)[1] == {4: 1}
    begun = time.monotonic()
    assert batches(engine, "batching.patient", rows[:1])[1] == {1: 1}
    assert time.monotonic() - begun >= 0.4  # a call alone waits in vain
    assert batches(engine, "batching.patient", rows * 5)[1] == {4: 5}


# ---- batches of calls -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture(scope="module")
def transports(engine: Engine, loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, dict[str, Transport]]]:
    async def open_client() -> TritonClient:
        client = TritonClient(engine.url)
        manifest = Manifest.read(engine.repository)
        for runner in batching.svc.runners:
            connect(client, runner, manifest.entries(batching.svc.name, runner.name))
        return client

    client = asyncio.run_coroutine_threadsafe(open_client(), loop).result()
    remote = {runner.name: runner.transport for runner in batching.svc.runners}
    local: dict[str, Transport] = {r.name: LocalTransport(r.spec, serving=True) for r in batching.svc.runners}
    for runner in batching.svc.runners:
        runner._transport = None  # a transport lives as long as the module's tests
    yield {"local": local, "triton": remote}
    for transport in local.values():
        transport.close()
    asyncio.run_coroutine_threadsafe(client.close(), loop).result()


@pytest.fixture(params=["local", "triton"])
def connected(request: pytest.FixtureRequest, transports: dict[str, dict[str, Transport]]) -> Iterator[str]:
    for runner in batching.svc.runners:
        runner.connect(transports[request.param][runner.name])
    yield request.param
    for runner in batching.svc.runners:
        runner._transport = None


def at_once(loop: asyncio.AbstractEventLoop, calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run_coroutine_threadsafe(all_of_them(), loop).result(30)


FRAME = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
PICTURE = Image.new("RGB", (3, 2), "red")

# what a call brings -> the type of the batch, and its items as they are told
KINDS: list[tuple[str, Any, str, list[Any]]] = [
    ("lists", [1, "b"], "list", [1, "b"]),
    ("strings", ["grüße"], "list", ["grüße"]),
    ("dicts", [{"a": [1]}, {"b": None}], "list", [{"a": [1]}, {"b": None}]),
    ("images", [PICTURE], "list", [("RGB", (3, 2))]),
    ("tuples", [(1, 2)], "list", [(1, 2)]),
    ("none", [None], "list", [None]),
    ("bytes", [b"\0\xff"], "list", [b"\0\xff"]),
    ("arrays", np.array([[1, 2], [3, 4]]), "ndarray", [[1, 2], [3, 4]]),
    ("strings in an array", np.array(["a", "bc"]), "ndarray", ["a", "bc"]),
    ("frames", FRAME, "DataFrame", [[1.0, 0.5], [2.0, 1.5]]),
    ("series", FRAME["a"], "Series", [1, 2]),
]


@pytest.mark.parametrize(("value", "kind", "items"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_values_are_batched_as_what_they_are(
    connected: str, loop: asyncio.AbstractEventLoop, value: Any, kind: str, items: list[Any]
) -> None:
    answers = at_once(loop, [batching.anything.told.async_run(value) for _ in range(CLIENTS)])
    for answer in answers:
        assert [(told[0], told[2]) for told in answer] == [(kind, item) for item in items]
        assert all(told[1] <= 8 for told in answer)
    largest = max(told[1] for answer in answers for told in answer)
    assert largest == 8 if connected == "triton" else largest == len(items)


@pytest.mark.parametrize("value", ["text", {"a": [1, 2]}, 7], ids=repr)
def test_value_without_a_batch_axis_comes_as_it_is(connected: str, loop: asyncio.AbstractEventLoop, value: Any) -> None:
    answers = at_once(loop, [batching.anything.alone.async_run(value) for _ in range(4)])
    assert answers == [(type(value).__name__, value)] * 4
    assert batching.anything.alone.run(PICTURE)[0] == "Image"


def test_call_longer_than_a_batch_is_cut_and_joined(connected: str) -> None:
    told = batching.anything.told.run(list(range(19)))
    assert [item for _, _, item in told] == list(range(19))
    assert [size for _, size, _ in told] == [8] * 16 + [3] * 3
    rows, sizes = batching.slow.run(np.arange(80, dtype=np.float32).reshape(40, 2))
    assert rows.tolist() == (2 * np.arange(80).reshape(40, 2)).tolist()
    assert sizes.max() == 16
    long = pd.DataFrame({"a": range(20)})
    pd.testing.assert_frame_equal(batching.anything.same.run(long), long)


def test_batch_axes_one_and_zero_are_joined_and_split(connected: str, loop: asyncio.AbstractEventLoop) -> None:
    blobs = [batching.anything.columns.async_run(np.full((3, 2), float(n))) for n in range(CLIENTS)]
    typed = [batching.sideways.typed.async_run(np.full((3, 2), n, np.float32)) for n in range(CLIENTS)]
    blob_answers, typed_answers = at_once(loop, blobs), at_once(loop, typed)
    for n in range(CLIENTS):
        assert [column for column, _ in blob_answers[n]] == [3.0 * n] * 2
        assert typed_answers[n][:, 0].tolist() == [3.0 * n] * 2
    if connected == "triton":
        assert max(size for answer in blob_answers for _, size in answer) > 2
        assert max(answer[0, 1] for answer in typed_answers) > 2


def test_answer_of_another_length_is_told_to_every_caller(connected: str, loop: asyncio.AbstractEventLoop) -> None:
    for answer in at_once(loop, [batching.anything.short.async_run([1, 2]) for _ in range(5)]):
        assert isinstance(answer, RemoteException)
        assert "short() returned 1 items on axis 0 for a batch of 2." in str(answer)


# ---- several methods, one object ------------------------------------------------------------------------------------


def test_methods_share_their_object(connected: str, loop: asyncio.AbstractEventLoop) -> None:
    before, pid = batching.shared.asked.run([0])[0]
    at_once(loop, [batching.shared.add.async_run(n) for n in range(10)])
    assert batching.shared.add.run(5) == before + 50
    assert batching.shared.asked.run([0, 0]) == [(before + 50, pid)] * 2

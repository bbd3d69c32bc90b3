"""Runners whose placement, warm-up and home can be asked for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import adapter
from adapter.io import JSON


class Chips(adapter.Strategy):
    @classmethod
    def get_worker_count(cls, runnable_class: Any, resource_request: Any, workers_per_resource: float) -> int:
        return len(resource_request["chips"])

    @classmethod
    def get_worker_env(
        cls, runnable_class: Any, resource_request: Any, workers_per_resource: float, worker_index: int
    ) -> Mapping[str, str]:
        # two of the three see GPUs together, as far as they can
        seen = {"CUDA_VISIBLE_DEVICES": "0,1"} if worker_index else {}
        return {"CHIP": resource_request["chips"][worker_index], **seen}


class Home(adapter.Runnable):
    """Tells where it runs."""

    SUPPORTS_CPU_MULTI_THREADING = True

    @adapter.Runnable.method
    def environment(self, hold_s: float) -> dict[str, Any]:
        time.sleep(hold_s)
        names = ("CHIP", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ADAPTER_NUM_THREAD")
        return {"pid": os.getpid(), **{name: os.environ.get(name) for name in names}}


class Single(Home):
    SUPPORTS_CPU_MULTI_THREADING = False


class Warm(adapter.Runnable):
    """Counts the calls of each of its methods."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @adapter.Runnable.method(batchable=True)
    def first(self, x: Any, by: int = 1) -> Any:
        self.seen.append(["first", len(x), by])
        return x

    @adapter.Runnable.method(
        batchable=True, input_spec=("float32", (-1, 3)), output_spec=[("float32", (-1,)), ("bool", (-1,))]
    )
    def second(self, x: Any) -> Any:
        self.seen.append(["second", *x.shape])
        return x.sum(axis=1), x[:, 0] > 0

    @adapter.Runnable.method
    def calls(self) -> Any:
        return [os.getpid(), self.seen]


class Sluggish(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def wait(self, seconds: Any) -> Any:
        time.sleep(max(seconds))
        return seconds


class Here(adapter.Runnable):
    """Lives in the front, with a state of its own in each."""

    def __init__(self) -> None:
        self.calls = 0

    @adapter.Runnable.method
    def count(self, hold_s: float) -> list[int]:
        time.sleep(hold_s)
        self.calls += 1
        return [os.getpid(), self.calls]

    @adapter.Runnable.method
    async def later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        if value == "fail":
            raise adapter.exceptions.InvalidArgument("not this one")
        return value


spread = adapter.Runner(Home, name="spread", strategy=Chips, custom_resources={"chips": ["a", "b", "c"]})
threads = adapter.Runner(Home, name="threads", cpu=2)
single = adapter.Runner(Single, name="single", cpu=2)
warm = adapter.Runner(
    Warm, cpu=1, warmup={"first": ([1, 2, 3], 7), "second": np.ones((2, 3), np.float32)}, max_batch_size=2
)
sluggish = adapter.Runner(Sluggish, cpu=1, max_latency_ms=300, max_batch_size=1)
here = adapter.Runner(Here, embedded=True, warmup={"later": "warm"})

svc = adapter.Service("placed", runners=[spread, threads, single, warm, sluggish, here])


@svc.api(input=JSON(), output=JSON())
async def environments(body: dict[str, Any]) -> Any:
    runner = {runner.name: runner for runner in svc.runners}[body["runner"]]
    return await asyncio.gather(*(runner.environment.async_run(0.05) for _ in range(body["calls"])))


@svc.api(input=JSON(), output=JSON())
async def warmed(_: Any) -> Any:
    return await warm.calls.async_run()


@svc.api(input=JSON(), output=JSON())
async def wait(seconds: float) -> Any:
    return (await sluggish.wait.async_run([seconds]))[0]


@svc.api(input=JSON(), output=JSON())
async def count(hold_s: float) -> Any:
    return await here.count.async_run(hold_s)


@svc.api(input=JSON(), output=JSON())
def count_in_thread(hold_s: float) -> Any:
    return here.count.run(hold_s)


@svc.api(input=JSON(), output=JSON())
async def blocking(hold_s: float) -> Any:
    return here.count.run(hold_s)


@svc.api(input=JSON(), output=JSON())
async def later(value: Any) -> Any:
    return await here.later.async_run(value)


@svc.api(input=JSON(), output=JSON())
async def ping(_: Any) -> int:
    return os.getpid()

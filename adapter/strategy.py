"""Strategies: how many workers a runner gets, and what each of them may use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adapter.resources import CPU_NAME, GPU_NAME
from adapter.runnable import Runnable, supports_gpu, supports_threads

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
NO_GPU = "-1"
THREAD_VARIABLES = (
    "ADAPTER_NUM_THREAD",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_RS_NUM_CPUS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)


class Strategy:
    """Says how many workers serve a runner, and in which environment each of them runs.

    Subclass it, write both class methods, and give the class to a runner: `adapter.Runner(…, strategy=OnePerChip)`.
    They are asked where the service is exported. `resource_request` is what the runner asks for: `cpu`, a number of
    CPUs; `nvidia.com/gpu`, the indices of GPUs; and its `custom_resources` as they are written. A
    `CUDA_VISIBLE_DEVICES` of one index makes a worker an instance on that GPU; without it the worker sees no GPU.
    """

    @classmethod
    def get_worker_count(
        cls, runnable_class: type[Runnable], resource_request: Mapping[str, Any], workers_per_resource: float
    ) -> int:
        """How many workers there are, 1 or more."""
        raise NotImplementedError

    @classmethod
    def get_worker_env(
        cls,
        runnable_class: type[Runnable],
        resource_request: Mapping[str, Any],
        workers_per_resource: float,
        worker_index: int,
    ) -> Mapping[str, str]:
        """The variables that the environment of one worker has beside those of Triton."""
        raise NotImplementedError


class DefaultStrategy(Strategy):
    """One worker on each GPU where the class supports them and there are any; else one for all CPUs where its library
    uses threads (`SUPPORTS_CPU_MULTI_THREADING`), and one for each CPU where it does not; that times
    `workers_per_resource`. Less than 1 for each GPU is one worker for several GPUs.

    Source: placement of BentoML 1.1, which gives the threads of all CPUs to each of several workers.
    """

    @classmethod
    def get_worker_count(
        cls, runnable_class: type[Runnable], resource_request: Mapping[str, Any], workers_per_resource: float
    ) -> int:
        gpus = _gpus(runnable_class, resource_request)
        if gpus:
            return len(_shares(gpus, workers_per_resource))
        if supports_threads(runnable_class):
            return math.ceil(workers_per_resource)
        cpus: float = resource_request[CPU_NAME]
        return math.ceil(cpus * workers_per_resource)

    @classmethod
    def get_worker_env(
        cls,
        runnable_class: type[Runnable],
        resource_request: Mapping[str, Any],
        workers_per_resource: float,
        worker_index: int,
    ) -> Mapping[str, str]:
        gpus = _gpus(runnable_class, resource_request)
        if gpus:
            return {VISIBLE_GPUS: _shares(gpus, workers_per_resource)[worker_index]}
        threads = 1
        if supports_threads(runnable_class):
            threads = max(1, math.ceil(resource_request[CPU_NAME] / math.ceil(workers_per_resource)))
        return {VISIBLE_GPUS: NO_GPU, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def _gpus(runnable_class: type[Runnable], request: Mapping[str, Any]) -> Sequence[int]:
    return request[GPU_NAME] if supports_gpu(runnable_class) else ()


def _shares(gpus: Sequence[int], each: float) -> list[str]:
    """The GPUs of each worker."""
    if each >= 1:
        return [str(gpu) for gpu in gpus for _ in range(math.ceil(each))]
    size = min(len(gpus), round(1 / each))
    return [",".join(map(str, gpus[i : i + size])) for i in range(0, len(gpus), size)]

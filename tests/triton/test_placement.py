from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import adapter
from adapter.exceptions import ExportError
from adapter.layers import load
from adapter.resources import Machine
from adapter.runner import RunnerSpec
from adapter.strategy import THREAD_VARIABLES
from adapter.triton.placement import Group, Placement, doubts, placement
from adapter.tuning import with_settings


class Plain(adapter.Runnable):
    @adapter.Runnable.method
    def echo(self, x: Any) -> Any:
        return x


class Threads(Plain):
    SUPPORT_CPU_MULTI_THREADING = True


class Gpu(Plain):
    SUPPORT_NVIDIA_GPU = True


class Both(Threads):
    SUPPORTED_RESOURCES = ("cpu", "nvidia.com/gpu")


NO_GPU, TWO_GPUS = Machine(4, 0), Machine(4, 2)


def cpu(count: int, threads: int = 1) -> Placement:
    return Placement((Group(count, environment=dict.fromkeys(THREAD_VARIABLES, str(threads))),))


def gpus(*indices: int, count: int = 1) -> Placement:
    return Placement((Group(count, indices),))


def together(*shares: str) -> Placement:
    return Placement(tuple(Group(1, environment={"CUDA_VISIBLE_DEVICES": share}) for share in shares))


def spec(cls: type[adapter.Runnable], options: Mapping[str, Any], text: str, folder: Path) -> RunnerSpec:
    file = folder / "adapter.yaml"
    file.write_text(f"runners:\n  r: {{{text}}}")
    return with_settings(adapter.Runner(cls, name="r", **options).spec, load(file, {}).settings.runners)


PLACED: list[tuple[type[adapter.Runnable], Mapping[str, Any], str, Machine, Placement]] = [
    (Plain, {}, "", NO_GPU, cpu(4)),
    (Plain, {}, "", TWO_GPUS, cpu(4)),
    (Plain, {"cpu": 2}, "", NO_GPU, cpu(2)),
    (Plain, {"cpu": 0.5}, "", NO_GPU, cpu(1)),
    (Plain, {"cpu": "1500m"}, "", NO_GPU, cpu(2)),
    (Plain, {"cpu": "system"}, "", NO_GPU, cpu(4)),
    (Plain, {"cpu": 8}, "", NO_GPU, cpu(8)),
    (Plain, {"cpu": 8}, "cpu: system", NO_GPU, cpu(4)),
    (Plain, {}, "cpu: 2, workers_per_resource: 2", NO_GPU, cpu(4)),
    (Plain, {}, "workers_per_resource: 0.25", NO_GPU, cpu(1)),
    (Plain, {"nvidia_gpu": 1}, "", TWO_GPUS, cpu(4)),
    (Threads, {}, "", NO_GPU, cpu(1, 4)),
    (Threads, {"cpu": 2.5}, "", NO_GPU, cpu(1, 3)),
    (Threads, {}, "workers_per_resource: 2", NO_GPU, cpu(2, 2)),
    (Threads, {}, "cpu: 1, workers_per_resource: 2", NO_GPU, cpu(2, 1)),
    (Gpu, {}, "", TWO_GPUS, gpus(0, 1)),
    (Gpu, {}, "", NO_GPU, cpu(4)),
    (Gpu, {"cpu": 2}, "", TWO_GPUS, cpu(2)),
    (Gpu, {"cpu": 2, "nvidia_gpu": 1}, "", TWO_GPUS, gpus(0)),
    (Gpu, {"gpu": 2}, "", TWO_GPUS, gpus(0, 1)),
    (Gpu, {"nvidia_gpu": 0.5}, "", TWO_GPUS, gpus(0)),
    (Gpu, {"nvidia_gpu": 1.5}, "", TWO_GPUS, gpus(0, 1)),
    (Gpu, {"nvidia_gpu": 4}, "", TWO_GPUS, gpus(0, 1)),
    (Gpu, {"nvidia_gpu": 0}, "", TWO_GPUS, cpu(4)),
    (Gpu, {"nvidia_gpu": [1]}, "", TWO_GPUS, gpus(1)),
    (Gpu, {"nvidia_gpu": []}, "", TWO_GPUS, cpu(4)),
    (Gpu, {"nvidia_gpu": 1}, "", NO_GPU, cpu(4)),
    (Gpu, {"nvidia_gpu": [1]}, "nvidia_gpu: [0]", TWO_GPUS, gpus(0)),
    (Both, {}, "resources: system", TWO_GPUS, gpus(0, 1)),
    (Both, {}, "nvidia_gpu: 2, workers_per_resource: 3", TWO_GPUS, gpus(0, 1, count=3)),
    (Both, {}, "nvidia_gpu: 0", TWO_GPUS, cpu(1, 4)),
    (Gpu, {}, "workers_per_resource: 0.5", Machine(4, 5), Placement((*together("0,1", "2,3").groups, Group(1, (4,))))),
    (Gpu, {"nvidia_gpu": [2, 7]}, "workers_per_resource: 0.5", Machine(4, 8), together("2,7")),
    (Gpu, {}, "workers_per_resource: 0.01", TWO_GPUS, together("0,1")),
]


@pytest.mark.parametrize(("cls", "options", "text", "machine", "expected"), PLACED)
def test_instances_follow_what_is_asked_for_and_what_there_is(
    cls: type[adapter.Runnable],
    options: Mapping[str, Any],
    text: str,
    machine: Machine,
    expected: Placement,
    tmp_path: Path,
) -> None:
    assert placement(spec(cls, options, text, tmp_path), machine) == expected


@pytest.mark.parametrize(
    ("group", "kind", "instances", "device"),
    [
        (cpu(2).groups[0], "KIND_CPU", 2, "CPU, 1 thread each"),
        (cpu(1, 4).groups[0], "KIND_CPU", 1, "CPU, 4 threads each"),
        (Group(3), "KIND_CPU", 3, "CPU"),
        (Group(2, (0, 3)), "KIND_GPU", 4, "GPU 0, 3"),
        (together("0,1").groups[0], "KIND_MODEL", 1, "GPUs 0,1 together"),
    ],
)
def test_group_is_told_as_triton_and_people_see_it(group: Group, kind: str, instances: int, device: str) -> None:
    assert (group.kind, group.instances, group.device) == (kind, instances, device)


def test_gpu_that_the_machine_lacks_is_refused(tmp_path: Path) -> None:
    for machine, there in ((NO_GPU, "no GPU"), (Machine(1, 1), "1 GPU"), (TWO_GPUS, "2 GPUs")):
        with pytest.raises(ExportError, match=rf"The runner 'r' names GPU 4, but the machine has {there}: .*--gpus"):
            placement(spec(Gpu, {}, "nvidia_gpu: [0, 4]", tmp_path), machine)


DOUBTS: list[tuple[type[adapter.Runnable], Mapping[str, Any], Machine, str]] = [
    (Plain, {"cpu": 5}, NO_GPU, r"asks for 5 CPUs, but the machine has 4: its workers share them"),
    (Gpu, {"nvidia_gpu": 2}, NO_GPU, r"asks for 2 GPUs, but the machine has no GPU: it runs on CPUs"),
    (Gpu, {"nvidia_gpu": 3}, TWO_GPUS, r"asks for 3 GPUs, but the machine has 2 GPUs: it runs on 2 GPUs"),
    (Plain, {"nvidia_gpu": 1}, TWO_GPUS, r"Plain does not say that it uses any .*: it runs on CPUs"),
    (Plain, {"custom_resources": {"tpu": 2}}, NO_GPU, r"asks for tpu, which no strategy of its own reads"),
]


@pytest.mark.parametrize(("cls", "options", "machine", "text"), DOUBTS)
def test_what_is_not_as_asked_for_is_told(
    cls: type[adapter.Runnable], options: Mapping[str, Any], machine: Machine, text: str, tmp_path: Path
) -> None:
    (sentence,) = doubts(spec(cls, options, "", tmp_path), machine)
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(sentence)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Plain, {}), (Plain, {"cpu": 4}), (Gpu, {"nvidia_gpu": 2}), (Gpu, {"nvidia_gpu": 0}), (Plain, {"nvidia_gpu": 0})],
)
def test_what_is_as_asked_for_is_not_told(
    cls: type[adapter.Runnable], options: Mapping[str, Any], tmp_path: Path
) -> None:
    assert doubts(spec(cls, options, "", tmp_path), TWO_GPUS) == []


# ---- strategies -----------------------------------------------------------------------------------------------------


class OneForEachChip(adapter.Strategy):
    @classmethod
    def get_worker_count(cls, runnable_class: Any, resource_request: Any, workers_per_resource: float) -> int:
        assert issubclass(runnable_class, adapter.Runnable)
        return int(resource_request["chips"] * workers_per_resource)

    @classmethod
    def get_worker_env(
        cls, runnable_class: Any, resource_request: Any, workers_per_resource: float, worker_index: int
    ) -> Mapping[str, Any]:
        return {"CHIP": worker_index // 2, "CPUS": resource_request["cpu"]}


class Spread(OneForEachChip):
    """Two on each GPU, and one on the CPU."""

    @classmethod
    def get_worker_count(cls, runnable_class: Any, resource_request: Any, workers_per_resource: float) -> int:
        return 2 * len(resource_request["nvidia.com/gpu"]) + 1

    @classmethod
    def get_worker_env(
        cls, runnable_class: Any, resource_request: Any, workers_per_resource: float, worker_index: int
    ) -> Mapping[str, Any]:
        return {"CUDA_VISIBLE_DEVICES": [0, 0, 1, 1, -1][worker_index]}


def test_strategy_of_ones_own_says_how_many_workers_there_are_and_what_each_has(tmp_path: Path) -> None:
    asked = {"strategy": OneForEachChip, "custom_resources": {"chips": 2}}
    found = spec(Plain, asked, "workers_per_resource: 2", tmp_path)
    assert placement(found, NO_GPU) == Placement(
        (Group(2, environment={"CHIP": "0", "CPUS": "4.0"}), Group(2, environment={"CHIP": "1", "CPUS": "4.0"}))
    )
    assert doubts(found, NO_GPU) == []
    asked = {"scheduling_strategy": Spread}
    assert placement(spec(Plain, asked, "", tmp_path), TWO_GPUS) == Placement((Group(1), Group(2, (0, 1))))


def test_custom_resources_of_the_file_reach_the_strategy(tmp_path: Path) -> None:
    asked = {"strategy": OneForEachChip, "custom_resources": {"chips": 2}}
    assert placement(spec(Plain, asked, "custom_resources: {chips: 1}", tmp_path), NO_GPU).instances == 1
    assert placement(spec(Plain, asked, "resources: {custom: {chips: 3}}", tmp_path), NO_GPU).instances == 3


@pytest.mark.parametrize(
    ("count", "env", "text"),
    [
        (0, {}, r"Bad\.get_worker_count gives the runner 'r' 0 workers, but a runner has 1 to 1024"),
        (2000, {}, "2000 workers"),
        (1.5, {}, r"1\.5 workers"),
        (True, {}, "True workers"),
        ("1", {}, "'1' workers"),
        (1, None, r"Bad\.get_worker_env returned None, but an environment is a mapping from names to texts"),
        (1, {"A": []}, "returned {'A': "),
        (1, {1: "a"}, "returned {1: "),
        (1, {"A=B": "a"}, "returned {'A=B': "),
        (1, {"A": "\0"}, "returned {'A': "),
        (1, {"A": "\ud800"}, "returned {'A': "),
        (
            1,
            {"CUDA_VISIBLE_DEVICES": "0"},
            "The strategy Bad of the runner 'r' names GPU 0, but the machine has no GPU",
        ),
        (SystemExit(2), {}, r"The strategy Bad of the runner 'r' failed: SystemExit: 2\."),
        (ValueError("no"), {}, r"The strategy Bad of the runner 'r' failed: ValueError: no\."),
    ],
)
def test_strategy_that_cannot_be_followed_is_told_so(count: Any, env: Any, text: str) -> None:
    class Bad(adapter.Strategy):
        @classmethod
        def get_worker_count(cls, *args: Any) -> int:
            if isinstance(count, BaseException):
                raise count
            return count  # type: ignore[no-any-return]  # which is what is tried

        @classmethod
        def get_worker_env(cls, *args: Any) -> Mapping[str, str]:
            return env  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match=text):
        placement(adapter.Runner(Plain, name="r", strategy=Bad).spec, NO_GPU)

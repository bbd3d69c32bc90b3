from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapter.resources import Machine, Resources, allowed_cpus, visible_gpus

MACHINE = Machine(4, 2)


@pytest.mark.parametrize(
    ("asked", "cpu", "gpus"),
    [
        (Resources(), 4, (0, 1)),
        (Resources(cpu=2), 2, ()),
        (Resources(cpu="system"), 4, ()),
        (Resources(cpu="250m"), 0.25, ()),
        (Resources(nvidia_gpu="system"), 4, (0, 1)),
        (Resources(cpu=2, nvidia_gpu=1), 2, (0,)),
        (Resources(nvidia_gpu=0), 4, ()),
        (Resources(nvidia_gpu=0.1), 4, (0,)),
        (Resources(nvidia_gpu=9), 4, (0, 1)),
        (Resources(nvidia_gpu=[7, 3]), 4, (7, 3)),  # type: ignore[arg-type]  # as it is written in a call
        (Resources(nvidia_gpu=()), 4, ()),
    ],
)
def test_what_is_asked_for_is_counted_on_the_machine(asked: Resources, cpu: float, gpus: tuple[int, ...]) -> None:
    assert asked.request(MACHINE) == {"cpu": cpu, "nvidia.com/gpu": gpus}


def test_custom_resources_stay_as_they_are_written() -> None:
    custom = {"tpu": 2, "names": ["a", "b"], "more": {"fast": True, "part": 0.5}}
    assert Resources(cpu=1, custom=custom).request(MACHINE) == {"cpu": 1, "nvidia.com/gpu": (), **custom}


def test_machine_is_this_one() -> None:
    here = Machine.here()
    assert 1 <= here.cpus <= len(os.sched_getaffinity(0))
    assert here.gpus >= 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("100001 100000", 2),
        ("99999999 1", None),
        ("", None),
        ("a b", None),
        ("1 0", None),
        ("1 2 3", None),
    ],
)
def test_container_may_allow_fewer_cpus(text: str, expected: int | None, tmp_path: Path) -> None:
    there = len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text(text)
    assert allowed_cpus(tmp_path / "cpu.max") == (there if expected is None else min(there, expected))
    assert allowed_cpus(tmp_path / "none") == there


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "2"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ab,GPU-cd"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}, 3),
    ],
)
def test_gpus_are_those_that_cuda_shows(environ: Mapping[str, str], expected: int, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path, environ) == expected

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from adapter.triton.instance import environment_of
from adapter.triton.spec import EntrySpec


def told(name: str, kind: str = "CPU", device: str = "0") -> dict[str, str]:
    return {"model_instance_name": name, "model_instance_kind": kind, "model_instance_device_id": device}


def config(*groups: str) -> dict[str, Any]:
    return {"instance_group": [{"name": group} for group in groups]}


def spec(*environments: Mapping[str, str]) -> EntrySpec:
    return EntrySpec("e", "0", "3.11", typed=False, batched=False, methods=[], environments=environments)


MANY = tuple({"N": str(n)} for n in range(12))
GROUPS = tuple(f"s.r_{n}" for n in range(12))


@pytest.mark.parametrize(
    ("args", "groups", "environments", "environ", "expected"),
    [
        (told("s.r_0"), ["s.r"], [{"A": "1"}], {}, {"CUDA_VISIBLE_DEVICES": "-1", "A": "1"}),
        (told("s.r_17"), ["s.r"], [{"A": "1"}], {}, {"CUDA_VISIBLE_DEVICES": "-1", "A": "1"}),
        (told("s.r"), ["s.r"], [{}], {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "-1"}),
        (told("s.r_0_gpu1", "GPU", "1"), ["s.r"], [{}], {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        (told("s.r_0", "GPU", "1"), ["s.r"], [{}], {"CUDA_VISIBLE_DEVICES": "5, 7"}, {"CUDA_VISIBLE_DEVICES": "7"}),
        (
            told("s.r_0", "GPU", "0"),
            ["s.r"],
            [{}],
            {"CUDA_VISIBLE_DEVICES": "GPU-ab"},
            {"CUDA_VISIBLE_DEVICES": "GPU-ab"},
        ),
        (told("s.r_1_0"), GROUPS, MANY, {}, {"CUDA_VISIBLE_DEVICES": "-1", "N": "1"}),
        (told("s.r_11_0"), GROUPS, MANY, {}, {"CUDA_VISIBLE_DEVICES": "-1", "N": "11"}),
        (
            told("s.r_1_3", "MODEL"),
            ["s.r_0", "s.r_1"],
            [{}, {"CUDA_VISIBLE_DEVICES": "0,1"}],
            {},
            {"CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        # groups that a person has written into config.pbtxt
        (told("mine_0"), ["mine", "yours"], [{"A": "1"}], {}, {"CUDA_VISIBLE_DEVICES": "-1", "A": "1"}),
        (told("yours_0"), ["mine", "yours"], [{"A": "1"}], {}, {"CUDA_VISIBLE_DEVICES": "-1"}),
        (told("other_0"), ["mine"], [], {}, {"CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_worker_has_the_gpu_of_its_instance_and_what_its_group_has(
    args: Mapping[str, str],
    groups: list[str],
    environments: list[Mapping[str, str]],
    environ: Mapping[str, str],
    expected: Mapping[str, str],
) -> None:
    assert environment_of(args, config(*groups), spec(*environments), environ) == expected

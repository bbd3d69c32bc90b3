"""What runners ask of a machine, and what a machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument
from adapter.kinds import CPU, GPUS, SYSTEM, VALUES, WrongKind

CPU_NAME, GPU_NAME = "cpu", "nvidia.com/gpu"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class Machine:
    """What workers can be spread over."""

    cpus: int
    gpus: int

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as this process may use it."""
        return cls(allowed_cpus(_QUOTA), visible_gpus(_DEVICES, os.environ))


@dataclass(frozen=True)
class Resources:
    """What one runner asks for; None is what nobody has said.

    `cpu` is a number, or "system" for all that the machine has; `nvidia_gpu` a number (a part of one is allowed), the
    indices of those that are meant, or "system"; `custom` is for a strategy of your own.
    """

    cpu: float | str | None = None
    nvidia_gpu: float | tuple[int, ...] | str | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("cpu", CPU), ("nvidia_gpu", GPUS), ("custom", VALUES)):
            value = getattr(self, name)
            if value is None and name != "custom":
                continue
            try:
                object.__setattr__(self, name, kind.read(value))
            except WrongKind:
                called = "custom_resources" if name == "custom" else name
                raise InvalidArgument(f"{called} is {value!r}, but can only be {kind.text}.") from None
        for name, argument in ((CPU_NAME, "cpu"), (GPU_NAME, "nvidia_gpu")):
            if name in self.custom:
                raise InvalidArgument(f"custom_resources has {name!r}: write `{argument}={self.custom[name]!r}`.")

    def request(self, machine: Machine) -> dict[str, Any]:
        """What is asked for on a machine: `cpu`, a number; `nvidia.com/gpu`, indices; and the custom ones.

        Who says nothing gets all that there is; who asks for CPUs alone gets no GPU.
        """
        cpu = self.cpu if isinstance(self.cpu, (int, float)) else float(machine.cpus)
        gpu = (0.0 if self.cpu is not None else SYSTEM) if self.nvidia_gpu is None else self.nvidia_gpu
        if isinstance(gpu, str):
            gpus = tuple(range(machine.gpus))
        else:
            gpus = gpu if isinstance(gpu, tuple) else tuple(range(min(math.ceil(gpu), machine.gpus)))
        return {CPU_NAME: cpu, GPU_NAME: gpus, **self.custom}


def allowed_cpus(limit: Path) -> int:
    """The CPUs that this process may run on, and no more than its container may use of them, as `cpu.max` says."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        return min(allowed, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no such limit
        return allowed


def visible_gpus(devices: Path, environ: Mapping[str, str]) -> int:
    """The GPUs among the devices that CUDA shows to this process, which numbers them from 0 on."""
    found = sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    names = visible.split(",")
    # CUDA reads the list up to the first that is none
    return min(found, next((i for i, name in enumerate(names) if name.strip() in ("", "-1")), len(names)))

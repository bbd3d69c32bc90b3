"""Where the instances of an entry run, from what its runner asks for and what the machine has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adapter.exceptions import AdapterError, ExportError, sentence
from adapter.resources import GPU_NAME, Machine
from adapter.runnable import supports_gpu
from adapter.runner import RunnerSpec
from adapter.strategy import NO_GPU, THREAD_VARIABLES, VISIBLE_GPUS, DefaultStrategy

_MOST_WORKERS = 1024  # each is two processes


@dataclass(frozen=True)
class Group:
    """Instances that are alike: `count` of them on each of `gpus`, or in all where there are none.

    `environment` is what the environment of their workers has of its own.
    """

    count: int = 1
    gpus: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Triton's word: the worker of KIND_MODEL looks for its GPUs by itself."""
        return "KIND_GPU" if self.gpus else "KIND_MODEL" if VISIBLE_GPUS in self.environment else "KIND_CPU"

    @property
    def instances(self) -> int:
        return self.count * max(1, len(self.gpus))

    @property
    def device(self) -> str:
        """The device in words."""
        if self.gpus:
            return f"GPU {', '.join(map(str, self.gpus))}"
        if VISIBLE_GPUS in self.environment:
            return f"GPUs {self.environment[VISIBLE_GPUS]} together"
        threads = self.environment.get(THREAD_VARIABLES[0])
        return "CPU" if threads is None else f"CPU, {threads} thread{'' if threads == '1' else 's'} each"


@dataclass(frozen=True)
class Placement:
    """All instances of an entry."""

    groups: tuple[Group, ...] = (Group(),)

    @property
    def instances(self) -> int:
        return sum(group.instances for group in self.groups)


def placement(runner: RunnerSpec, machine: Machine) -> Placement:
    """Where a runner's instances run on a machine, as its strategy says.

    Raises ExportError where it names a GPU that the machine lacks, or its strategy fails.
    """
    request = runner.resources.request(machine)
    if supports_gpu(runner.runnable_class):
        _check_gpus(request[GPU_NAME], f"The runner {runner.name!r}", machine)
    strategy, each = runner.strategy or DefaultStrategy, runner.workers_per_resource
    named = getattr(strategy, "__name__", type(strategy).__name__)
    try:
        count = strategy.get_worker_count(runner.runnable_class, request, each)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_WORKERS:
            raise ExportError(
                f"{named}.get_worker_count gives the runner {runner.name!r} {count!r} workers, but a runner has 1 to "
                f"{_MOST_WORKERS}."
            )
        environments = [
            _environment(strategy.get_worker_env(runner.runnable_class, request, each, i), f"{named}.get_worker_env")
            for i in range(count)
        ]
    except AdapterError:
        raise
    except (Exception, SystemExit) as error:  # the edge to user code
        raise ExportError(f"The strategy {named} of the runner {runner.name!r} failed: {sentence(error)}.") from error
    groups = _groups(environments)
    used = [gpu for group in groups for gpu in group.gpus]
    _check_gpus(used, f"The strategy {named} of the runner {runner.name!r}", machine)
    return Placement(groups)


def _check_gpus(indices: Sequence[int], who: str, machine: Machine) -> None:
    if indices and max(indices) >= machine.gpus:
        raise ExportError(
            f"{who} names GPU {max(indices)}, but the machine has {_gpus(machine)}: say with `adapter export --gpus` "
            "how many there are where it is served."
        )


def _environment(given: object, function: str) -> Mapping[str, str]:
    if not isinstance(given, Mapping) or not all(
        isinstance(k, str) and k and "=" not in k and isinstance(v, (str, int, float)) and _can_be_set(f"{k}{v}")
        for k, v in given.items()
    ):
        raise ExportError(f"{function} returned {given!r}, but an environment is a mapping from names to texts.")
    return {name: str(value) for name, value in given.items()}


def _can_be_set(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _groups(environments: list[Mapping[str, str]]) -> tuple[Group, ...]:
    """Workers with one environment are one group; so are those that differ in the one GPU that each of them has."""
    alike = Counter(tuple(sorted(environment.items())) for environment in environments)
    on_gpus: dict[tuple[int, tuple[tuple[str, str], ...]], list[int]] = {}
    groups = []
    for items, count in alike.items():
        environment = dict(items)
        visible = environment.pop(VISIBLE_GPUS, NO_GPU).strip()
        if visible.isdecimal():
            on_gpus.setdefault((count, tuple(environment.items())), []).append(int(visible))
        elif visible in ("", NO_GPU):
            groups.append(Group(count, environment=environment))
        else:
            groups.append(Group(count, environment={**environment, VISIBLE_GPUS: visible}))
    groups += [Group(count, tuple(gpus), dict(rest)) for (count, rest), gpus in on_gpus.items()]
    return tuple(groups)


def doubts(runner: RunnerSpec, machine: Machine) -> list[str]:
    """What a person may not expect of a placement, a sentence each."""
    asked, found = runner.resources, []
    if isinstance(asked.cpu, (int, float)) and asked.cpu > machine.cpus:
        found.append(
            f"The runner {runner.name!r} asks for {asked.cpu:g} CPUs, but the machine has {machine.cpus}: its workers "
            "share them."
        )
    wanted = len(asked.nvidia_gpu) if isinstance(asked.nvidia_gpu, tuple) else asked.nvidia_gpu
    if isinstance(wanted, (int, float)) and wanted and runner.strategy is None:
        if not supports_gpu(runner.runnable_class):
            found.append(
                f"The runner {runner.name!r} asks for GPUs, but {runner.runnable_class.__name__} does not say that it "
                'uses any (SUPPORTED_RESOURCES = ("nvidia.com/gpu",)): it runs on CPUs.'
            )
        elif math.ceil(wanted) > machine.gpus:
            where = "on CPUs" if not machine.gpus else f"on {_gpus(machine)}"
            found.append(
                f"The runner {runner.name!r} asks for {wanted:g} GPU{'' if wanted == 1 else 's'}, but the machine has "
                f"{_gpus(machine)}: it runs {where}."
            )
    if asked.custom and runner.strategy is None:
        found.append(
            f"The runner {runner.name!r} asks for {', '.join(asked.custom)}, which no strategy of its own reads: give "
            "it `strategy=`, a subclass of adapter.Strategy."
        )
    return found


def _gpus(machine: Machine) -> str:
    return "no GPU" if not machine.gpus else f"{machine.gpus} GPU{'' if machine.gpus == 1 else 's'}"

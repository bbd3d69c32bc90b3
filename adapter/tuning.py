"""Settings of a deployment, applied to the runners of a service."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from adapter.exceptions import ConfigException
from adapter.kinds import SYSTEM
from adapter.method import MethodSpec
from adapter.model import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_LATENCY_MS, BatchingConfig
from adapter.runnable import supports_gpu
from adapter.runner import DEFAULT_CALL_TIMEOUT_S, Resources, RunnerSpec
from adapter.services import Service
from adapter.settings import Batching, MethodBatching, RunnerResources, Runners, RunnerSettings, RunnerTraffic

# what holds where neither settings nor code say anything
RUNNER_DEFAULTS = RunnerSettings(
    resources=RunnerResources(cpu=SYSTEM),
    workers_per_resource=1.0,
    traffic=RunnerTraffic(timeout=DEFAULT_CALL_TIMEOUT_S),
    batching=Batching(DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_LATENCY_MS, enabled=True),
)

_ALL_GPUS = 1024.0  # an entry is placed on no more than there are

logger = logging.getLogger(__name__)


def tune(service: Service, settings: Runners) -> None:
    """Give the runners of a service the settings of the deployment.

    Every process that knows the service must do so, for they compare the batching of its entries. Raises
    ConfigException where settings name a runner or a method that is not there.
    """
    names = [runner.name for runner in service.runners]
    for name in settings.named:
        if name not in names:
            raise ConfigException(
                f"There are settings for the runner {name!r}, but {_without(f'the service {service.name!r}', names)}."
            )
    for runner in service.runners:
        runner.configure(with_settings(runner.spec, settings))


def with_settings(spec: RunnerSpec, settings: Runners) -> RunnerSpec:
    """What a runner is with settings, weakest first: their defaults, its code, what they say of it by name."""
    weak, strong = settings.defaults, settings.named.get(spec.name, settings.every)
    for method in strong.runnable_method_configs:
        if method not in spec.methods:
            raise ConfigException(
                f"There are settings for the method {method!r} of the runner {spec.name!r}, but "
                f"{_without('it', list(spec.methods))}."
            )
    _warn(spec, strong)
    return replace(
        spec,
        methods={name: _method(spec, method, weak, strong) for name, method in spec.methods.items()},
        resources=_resources(spec, weak.resources, strong.resources),
        workers_per_resource=_first(strong.workers_per_resource, weak.workers_per_resource, spec.workers_per_resource),
        call_timeout_s=_first(strong.traffic.timeout, weak.traffic.timeout, spec.call_timeout_s),
    )


def _method(spec: RunnerSpec, method: MethodSpec, weak: RunnerSettings, strong: RunnerSettings) -> MethodSpec:
    own = strong.runnable_method_configs.get(method.name, MethodBatching())
    said = {key for name, key in spec.given if name == method.name}
    now = method.batching
    batching = BatchingConfig(
        _first(
            own.max_batch_size,
            strong.batching.max_batch_size,
            None if "max_batch_size" in said else weak.batching.max_batch_size,
            now.max_batch_size,
        ),
        _first(
            own.max_latency_ms,
            strong.batching.max_latency_ms,
            None if "max_latency_ms" in said else weak.batching.max_latency_ms,
            now.max_latency_ms,
        ),
    )
    # enabled is no argument of a Runner, so code says nothing that is stronger than a default
    enabled = _first(strong.batching.enabled, weak.batching.enabled, True)
    signature = method.signature if enabled else replace(method.signature, batchable=False)
    return replace(method, batching=batching, signature=signature)


def _resources(spec: RunnerSpec, weak: RunnerResources, strong: RunnerResources) -> Resources:
    now = spec.resources
    cpu: float | str = _first(strong.cpu, None if ("", "cpu") in spec.given else weak.cpu, now.cpu, SYSTEM)
    asked: float | str | tuple[int, ...] = _first(
        strong.nvidia_gpu, None if ("", "nvidia_gpu") in spec.given else weak.nvidia_gpu, now.gpus, now.nvidia_gpu, 0.0
    )
    gpus = asked if isinstance(asked, tuple) else None
    number = _ALL_GPUS if isinstance(asked, str) else len(asked) if isinstance(asked, tuple) else asked
    return replace(now, cpu=None if isinstance(cpu, str) else cpu, nvidia_gpu=number or None, gpus=gpus)


def _warn(spec: RunnerSpec, strong: RunnerSettings) -> None:
    if strong.resources.nvidia_gpu and not supports_gpu(spec.runnable_class):
        logger.warning(
            "The settings of the runner %r give it GPUs, but %s does not say that it uses any: it runs on CPUs.",
            spec.name,
            spec.runnable_class.__name__,
        )
    sizes = [m.max_batch_size for m in (strong.batching, *strong.runnable_method_configs.values())]
    if any(sizes) and not any(m.signature.batchable for m in spec.methods.values()):
        logger.warning(
            "The settings of the runner %r have a max_batch_size, but none of its methods is batchable: they run call "
            "by call.",
            spec.name,
        )


def _without(what: str, names: list[str]) -> str:
    return f"{what} has {', '.join(names) if names else 'none'}"


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)

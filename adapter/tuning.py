"""Settings of a deployment, applied to the runners of a service."""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapter.exceptions import ConfigException, InvalidArgument
from adapter.kinds import SYSTEM
from adapter.method import MethodSpec
from adapter.model import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_LATENCY_MS, DEFAULT_MAX_WAIT_MS, BatchingConfig
from adapter.resources import Resources
from adapter.runner import DEFAULT_CALL_TIMEOUT_S, RunnerSpec
from adapter.services import Service
from adapter.settings import (
    METHODS,
    Batching,
    Keys,
    RunnerResources,
    Runners,
    RunnerSettings,
    RunnerTraffic,
    Settings,
    flat,
    with_values,
)

# what holds where neither settings nor code say anything
RUNNER_DEFAULTS = RunnerSettings(
    resources=RunnerResources(cpu=SYSTEM),
    workers_per_resource=1.0,
    isolated=True,
    traffic=RunnerTraffic(timeout=DEFAULT_CALL_TIMEOUT_S),
    batching=Batching(DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_LATENCY_MS, DEFAULT_MAX_WAIT_MS, enabled=True),
)

# what a runner has by a name of its own -> where it stands among its settings
KEYS: Mapping[str, Keys] = {
    "cpu": ("resources", "cpu"),
    "nvidia_gpu": ("resources", "nvidia.com/gpu"),
    "custom_resources": ("resources", "custom"),
    "workers_per_resource": ("workers_per_resource",),
    "isolated": ("isolated",),
    "timeout": ("traffic", "timeout"),
    "batching": ("batching", "enabled"),
    "max_batch_size": ("batching", "max_batch_size"),
    "max_latency_ms": ("batching", "max_latency_ms"),
    "max_wait_ms": ("batching", "max_wait_ms"),
}

# what sets something up -> what switches it on
_SIGNS = {
    "ssl.certfile": "ssl.enabled",
    "http.cors.access_control_allow_origins": "http.cors.enabled",
    "http.cors.access_control_allow_origin_regex": "http.cors.enabled",
}

logger = logging.getLogger(__name__)


class Layer(enum.Enum):
    """Where a setting can come from, the strongest first."""

    METHOD = "settings of the method"
    RUNNER = "settings of the runner, or of every runner where nothing is stronger"
    CODE = "code"
    DEFAULTS = "settings of all runners"
    DEFAULT = "default"


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


def tailored(settings: Settings, service: Service) -> Settings:
    """The settings as a class-based service has them, weakest first: settings of all, its code, those by its name.

    What the environment and flags say stays. A limit on the requests at a time is shared by the workers.
    """
    given = {".".join(keys): value for keys, value in service.config.items()}
    given |= settings.services.get(service.name, {})
    given = {key: value for key, value in given.items() if key not in settings.strong}
    if not given:
        return settings
    for sign, switch in _SIGNS.items():  # enabled where it is set up, as in `api_server`
        if given.get(sign) and switch not in settings.strong:
            given.setdefault(switch, True)
    server = with_values(settings.api_server, {tuple(key.split(".")): value for key, value in given.items()})
    limit = given.get("traffic.max_concurrency")
    if limit is not None:
        each = math.ceil(limit / (server.workers or 1))
        server = replace(server, traffic=replace(server.traffic, max_concurrency=each))
    return replace(settings, api_server=server)


@dataclass(frozen=True)
class Chosen:
    """The value of a setting, and the layer that it comes from."""

    value: Any
    layer: Layer


def chosen(spec: RunnerSpec, settings: Runners) -> Mapping[tuple[str, str], Chosen]:
    """Every setting of a runner by method ("" where it is none of one method's) and name.

    Weakest first: defaults, what settings say of all runners, the code, what they say of this one by name.
    """
    weak, strong = flat(settings.defaults), flat(settings.named.get(spec.name, settings.every))
    asked = spec.resources
    code = {
        ("", "cpu"): asked.cpu,
        ("", "nvidia_gpu"): asked.nvidia_gpu,
        ("", "custom_resources"): asked.custom,
        ("", "workers_per_resource"): spec.workers_per_resource,
        ("", "isolated"): spec.isolated,
        ("", "timeout"): spec.call_timeout_s,
        ("", "batching"): True,
        **{(m.name, limit): value for m in spec.methods.values() for limit, value in vars(m.batching).items()},
    }
    return {
        (method, name): next(
            Chosen(found, layer)
            for found, layer in (
                (strong.get((METHODS, method, name)), Layer.METHOD),
                (strong[KEYS[name]], Layer.RUNNER),
                (value if (method, name) in spec.given else None, Layer.CODE),
                (weak[KEYS[name]], Layer.DEFAULTS),
                (value, Layer.DEFAULT),
            )
            if found is not None or layer is Layer.DEFAULT
        )
        for (method, name), value in code.items()
    }


def with_settings(spec: RunnerSpec, settings: Runners) -> RunnerSpec:
    """What a runner is with settings; ConfigException where they name a method that it lacks, or do not go together."""
    strong = settings.named.get(spec.name, settings.every)
    for method in strong.runnable_method_configs:
        if method not in spec.methods:
            raise ConfigException(
                f"There are settings for the method {method!r} of the runner {spec.name!r}, but "
                f"{_without('it', list(spec.methods))}."
            )
    _warn(spec, strong)
    choices = chosen(spec, settings)
    found = {key: choice.value for key, choice in choices.items()}
    if not found["", "isolated"] and choices["", "timeout"].layer is Layer.RUNNER and not spec.embedded:
        raise ConfigException(
            f"The settings of the runner {spec.name!r} do not go together: nobody can end its calls after a "
            f"traffic.timeout ({found['', 'timeout']:g} s), since it is not isolated: leave out one of the two."
        )
    try:
        return replace(
            spec,
            methods={name: _method(method, found) for name, method in spec.methods.items()},
            resources=Resources(found["", "cpu"], found["", "nvidia_gpu"], found["", "custom_resources"]),
            workers_per_resource=found["", "workers_per_resource"],
            isolated=found["", "isolated"],
            call_timeout_s=found["", "timeout"],
        )
    except InvalidArgument as error:
        raise ConfigException(f"The settings of the runner {spec.name!r} do not go together: {error}") from error


def _method(method: MethodSpec, found: Mapping[tuple[str, str], Any]) -> MethodSpec:
    batching = BatchingConfig(**{limit: found[method.name, limit] for limit in vars(method.batching)})
    signature = method.signature if found["", "batching"] else replace(method.signature, batchable=False)
    return replace(method, batching=batching, signature=signature)


def _warn(spec: RunnerSpec, strong: RunnerSettings) -> None:
    sizes = [m.max_batch_size for m in (strong.batching, *strong.runnable_method_configs.values())]
    if any(sizes) and not any(m.signature.batchable for m in spec.methods.values()):
        logger.warning(
            "The settings of the runner %r have a max_batch_size, but none of its methods is batchable: they run call "
            "by call.",
            spec.name,
        )


def _without(what: str, names: list[str]) -> str:
    return f"{what} has {', '.join(names) if names else 'none'}"

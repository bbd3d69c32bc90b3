"""Runners: Runnables and saved models as a service calls them, and the transports that carry the calls."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from adapter import payload
from adapter.exceptions import InvalidArgument, StateException
from adapter.invocation import Invoker
from adapter.method import MethodSpec, methods_of
from adapter.model import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_LATENCY_MS, BatchingConfig, Model
from adapter.runnable import Runnable
from adapter.tag import valid_name

DEFAULT_CALL_TIMEOUT_S = 900.0  # a batch that runs longer is taken for hung

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries calls to where a runner lives; the one seam between a service and the outside world."""

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method and wait for its result, from a thread without an event loop."""

    def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        """Call a method from an event loop."""

    def close(self) -> None:
        """Release what the transport holds."""


@dataclass(frozen=True)
class Resources:
    """What one runner asks for: CPUs, GPUs (a part of one is allowed), and anything a strategy of your own knows.

    `gpus` are the indices of the GPUs that are meant, None where it may be any.
    """

    cpu: float | None = None
    nvidia_gpu: float | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("cpu", "nvidia_gpu"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InvalidArgument(f"{name} is a number from 0 on, not {value!r}.")
        if self.cpu == 0:
            raise InvalidArgument("cpu is above 0: a runner needs a processor.")


@dataclass(frozen=True)
class RunnerSpec:
    """All that is known of a runner before it runs; what `adapter export` writes down.

    `given` says which settings stand in the code: a pair of a method (or "") and the name of the setting.
    """

    name: str
    runnable_class: type[Runnable]
    init_params: Mapping[str, Any]
    methods: Mapping[str, MethodSpec]
    models: tuple[Model, ...] = ()
    model: Model | None = None
    resources: Resources = Resources()
    strategy: Any = None
    embedded: bool = False
    retry_failed_batch: bool = True
    workers_per_resource: float = 1.0
    call_timeout_s: float = DEFAULT_CALL_TIMEOUT_S
    given: frozenset[tuple[str, str]] = frozenset()


class RunnerMethod:
    """One method of a runner: `runner.predict.run(x)`, or `await runner.predict.async_run(x)`."""

    def __init__(self, runner: Runner, spec: MethodSpec) -> None:
        self._runner = runner
        self.config = spec

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def max_batch_size(self) -> int:
        return self.config.batching.max_batch_size

    @property
    def max_latency_ms(self) -> float:
        return self.config.batching.max_latency_ms

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method and wait for its result; for plain functions, whose threads may wait."""
        return self._runner.transport.run(self.config, args, kwargs)

    __call__ = run

    def async_run(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the method from an `async def` function: `await runner.predict.async_run(x)`."""
        return self._runner.transport.async_run(self.config, args, kwargs)

    def __repr__(self) -> str:
        return f"RunnerMethod({self._runner.name}.{self.name})"


class Runner:
    """A Runnable class (or a saved model, by `model.to_runner()`) that a service calls.

    Its methods are attributes: `runner.predict.run(x)`. A runner with one method, or with one called `__call__`, has
    `runner.run(x)` and `await runner.async_run(x)` too. It is named after its class unless `name` says otherwise.

    `max_batch_size` and `max_latency_ms` hold for every batchable method unless `method_configs` (a mapping
    from method names to settings; `runnable_method_configs`, a list with `method_name` or `name`, means the same) says
    otherwise; a call that Triton has not answered after `max_latency_ms`, waiting and running, raises
    ServiceUnavailable, which a client sees as 503. `cpu`, `nvidia_gpu` (or `gpu`) and `custom_resources` are what it
    asks for; `models` the saved models that the class reads. When a batch of several calls fails, each of them runs
    once more by itself, so that one bad call hurts no other; `retry_failed_batch=False` turns that off, for methods
    with side effects. Source: seeds 001 and 003.
    """

    def __init__(
        self,
        runnable_class: type[Runnable],
        *,
        runnable_init_params: Mapping[str, Any] | None = None,
        name: str | None = None,
        strategy: Any = None,
        scheduling_strategy: Any = None,
        models: Iterable[Model] | None = None,
        max_batch_size: int | None = None,
        max_latency_ms: float | None = None,
        method_configs: Mapping[str, Mapping[str, Any]] | None = None,
        runnable_method_configs: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
        cpu: float | None = None,
        nvidia_gpu: float | None = None,
        gpu: float | None = None,
        custom_resources: Mapping[str, Any] | None = None,
        embedded: bool = False,
        retry_failed_batch: bool = True,
        model: Model | None = None,
    ) -> None:
        if not (isinstance(runnable_class, type) and issubclass(runnable_class, Runnable)):
            raise InvalidArgument(f"A Runner is made of a subclass of adapter.Runnable, not of {runnable_class!r}.")
        configs = _method_configs(method_configs, runnable_method_configs)
        everywhere = {"max_batch_size": max_batch_size, "max_latency_ms": max_latency_ms}
        resources = {"cpu": cpu, "nvidia_gpu": _first(nvidia_gpu, gpu)}

        def batching(method: str) -> BatchingConfig:
            given = configs.get(method, {})
            return BatchingConfig(
                _first(given.get("max_batch_size"), max_batch_size, DEFAULT_MAX_BATCH_SIZE),
                _first(given.get("max_latency_ms"), max_latency_ms, DEFAULT_MAX_LATENCY_MS),
            )

        methods = methods_of(runnable_class, batching)
        if not methods:
            raise InvalidArgument(
                f"{runnable_class.__name__} serves no method: mark at least one with @adapter.Runnable.method."
            )
        for method in configs:
            if method not in methods:
                raise InvalidArgument(
                    f"{runnable_class.__name__} serves no method {method!r}, which has settings; it serves "
                    f"{', '.join(methods)}."
                )
        self.spec = RunnerSpec(
            name=valid_name(name or runnable_class.__name__.lower().strip("_"), "runner name"),
            runnable_class=runnable_class,
            init_params=dict(runnable_init_params or {}),
            methods=methods,
            models=_models(models),
            model=model,
            resources=Resources(**resources, custom=dict(custom_resources or {})),
            strategy=_first(strategy, scheduling_strategy),
            embedded=embedded,
            retry_failed_batch=retry_failed_batch,
            given=frozenset(
                [("", key) for key, value in resources.items() if value is not None]
                + [
                    (method, key)
                    for method in methods
                    for key, value in everywhere.items()
                    if _first(configs.get(method, {}).get(key), value) is not None
                ]
            ),
        )
        self._methods = {method: RunnerMethod(self, spec) for method, spec in methods.items()}
        self._transport: Transport | None = None
        for method in methods:
            if method not in ("run", "__call__") and (method in vars(self) or hasattr(Runner, method)):
                raise InvalidArgument(
                    f"{runnable_class.__name__} serves a method {method!r}, but every runner has a {method!r} of its "
                    "own: give the method another name."
                )
            vars(self)[method] = self._methods[method]
        options = {
            "strategy": strategy,
            "scheduling_strategy": scheduling_strategy,
            "custom_resources": custom_resources,
        }
        unused = [option for option, value in options.items() if value]
        if unused:
            logger.warning(
                "%s of the runner %r %s no effect yet: `cpu` and `nvidia_gpu` alone say where it runs.",
                " and ".join(f"`{option}`" for option in unused),
                self.name,
                "is noted but has" if len(unused) == 1 else "are noted but have",
            )

    def configure(self, spec: RunnerSpec) -> None:
        """Give this runner another spec of the same class, before it runs: settings of a deployment change it."""
        self.spec = spec
        for name, method in self._methods.items():
            method.config = spec.methods[name]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def models(self) -> tuple[Model, ...]:
        return self.spec.models

    @property
    def model(self) -> Model | None:
        """The saved model this runner was made of, None for one of a Runnable class."""
        return self.spec.model

    @property
    def runner_methods(self) -> list[RunnerMethod]:
        return list(self._methods.values())

    # ---- where it runs ------------------------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        if self._transport is None:
            raise StateException(
                f"The runner {self.name!r} is not running: name it in `adapter.Service(…, runners=[…])` and serve "
                "that service, or call `init_local()` to run it in this process."
            )
        return self._transport

    def connect(self, transport: Transport) -> None:
        """Send this runner's calls over `transport` from now on."""
        if self._transport is not None:
            raise StateException(f"The runner {self.name!r} is running already: call `destroy()` first.")
        self._transport = transport

    def init_local(self, *, quiet: bool = False) -> None:
        """Run the Runnable in this process, for debugging and tests: no engine, no batching across callers."""
        if not quiet:
            logger.warning("%s runs in this process: for debugging and tests, not for production.", self.name)
        if self._transport is not None:
            raise StateException(f"The runner {self.name!r} is running already: call `destroy()` first.")
        self.connect(LocalTransport(self.spec))

    def destroy(self) -> None:
        """Stop running; the runner can be started again."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # ---- calling --------------------------------------------------------------------------------------------------

    @property
    def run(self) -> RunnerMethod:
        """Call the runner's only method, or the one called `__call__`, and wait for its result.

        Where a method is itself called `run` this is that method: `runner.run(x)` and `runner.run.run(x)` are the same.
        """
        return self._methods["run"] if "run" in self._methods else self._only("run")

    @property
    def async_run(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Call the runner's only method, or the one called `__call__`, from an `async def` function."""
        return self._only("async_run").async_run

    def _only(self, verb: str) -> RunnerMethod:
        if "__call__" in self._methods:
            return self._methods["__call__"]
        if len(self._methods) > 1:
            raise AttributeError(self._several(verb))
        (method,) = self._methods.values()
        return method

    def _several(self, verb: str) -> str:
        names = " or ".join(f"runner.{name}.{verb}" for name in self._methods)
        return f"The runner {self.name!r} has several methods, so say which: {names}."

    def __getattr__(self, name: str) -> RunnerMethod:
        # only for what is missing: the methods are attributes of their own
        methods = self.__dict__.get("_methods", {})
        if name in ("run", "async_run") and methods:  # Python asks here when the property of that name has none
            raise AttributeError(self._several(name))
        raise AttributeError(
            f"A runner has no attribute {name!r}; its methods are {', '.join(methods) or 'not known'}."
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._methods]

    def __reduce__(self) -> Any:
        raise StateException(
            f"The runner {self.name!r} is used inside a Runnable, and cannot go with it into Triton: call runners "
            "from API functions."
        )

    def __repr__(self) -> str:
        return f"Runner({self.name!r}, methods=[{', '.join(self._methods)}])"


class LocalTransport:
    """Runs the Runnable in this process, on one thread of its own.

    Arguments and results go the same way as to Triton (bound, checked, encoded, decoded), so a call gives here what
    it gives there; only an error of user code arrives as it was raised.
    """

    def __init__(self, spec: RunnerSpec, *, serving: bool = False) -> None:
        """Make the Runnable; `serving` refuses `.run` on an event loop, as Triton's transport does."""
        self._serving = serving
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"runner-{spec.name}")
        try:
            runnable = self._thread.submit(lambda: spec.runnable_class(**spec.init_params)).result()
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._invoker = Invoker(runnable)

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._serving:
            refuse_event_loop(method)
        return self._thread.submit(self._call, method, args, kwargs).result()

    async def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await asyncio.wrap_future(self._thread.submit(self._call, method, args, kwargs))

    def _call(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if method.typed:
            arrays, extra = method.pack(args, kwargs)
            call = method.unpack([array.copy() for array in arrays], extra)
            result = self._invoker.run([call])[0].unwrap()
            return method.unpack_result([array.copy() for array in method.pack_result(result)])
        method.check(args, kwargs)
        sent_args, sent_kwargs = payload.decode(payload.encode((tuple(args), dict(kwargs))))
        result = self._invoker.run([method.rebuild(sent_args, sent_kwargs)])[0].unwrap()
        return method.rebuild_result(payload.decode(b"".join(method.encode_result(result))))

    def close(self) -> None:
        self._thread.submit(self._invoker.close).result()
        self._thread.shutdown()


def refuse_event_loop(method: MethodSpec) -> None:
    """Raise StateException where a blocking call would stop the event loop that it runs on."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise StateException(
        f"`.{method.name}.run(…)` waits for its result, which would stop every other request of this worker: in an "
        f"`async def` function write `await runner.{method.name}.async_run(…)`."
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _models(models: Iterable[Model] | None) -> tuple[Model, ...]:
    found = tuple(models or ())
    for model in found:
        if not isinstance(model, Model):
            raise InvalidArgument(
                f"models=[…] holds saved models such as adapter.models.get('x:latest'), not {model!r}."
            )
    return found


def _method_configs(*given: Any) -> dict[str, Mapping[str, Any]]:
    """Read both shapes: a mapping from method names, and a list with `method_name` or `name`."""
    found: dict[str, Mapping[str, Any]] = {}
    for configs in given:
        if configs is None:
            continue
        items = configs.items() if isinstance(configs, Mapping) else [_named_config(config) for config in configs]
        for name, config in items:
            if not isinstance(config, Mapping):
                raise InvalidArgument(f"The settings of the method {name!r} are a mapping, not {config!r}.")
            for key in config:
                if key not in ("max_batch_size", "max_latency_ms"):
                    raise InvalidArgument(
                        f"The method {name!r} has the setting {key!r}; there are max_batch_size and max_latency_ms."
                    )
            found[name] = config
    return found


def _named_config(config: Any) -> tuple[str, Mapping[str, Any]]:
    name = config.get("method_name") or config.get("name") if isinstance(config, Mapping) else None
    if not name:
        raise InvalidArgument(f"The settings of a method are a mapping with its 'method_name': {config!r} is not.")
    return name, {key: value for key, value in config.items() if key not in ("method_name", "name")}

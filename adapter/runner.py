"""Runners: Runnables and saved models as a service calls them, and the transports that carry the calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from adapter import payload
from adapter import warmup as warming
from adapter.exceptions import InvalidArgument, StateException
from adapter.invocation import Invoker
from adapter.method import MethodSpec, methods_of
from adapter.model import BatchingConfig, Model
from adapter.resources import Resources
from adapter.runnable import Runnable
from adapter.strategy import Strategy
from adapter.streaming import LocalStreams, async_stepped, stepped
from adapter.tag import valid_name

DEFAULT_CALL_TIMEOUT_S = 900.0  # a batch that runs longer is taken for hung
_OWN = ("spec", "_methods", "_transport")  # what a runner keeps
_LIMITS = tuple(limit.name for limit in fields(BatchingConfig))

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries calls to where a runner lives; the one seam between a service and the outside world."""

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method and wait for its result, from a thread without an event loop."""

    def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        """Call a method from an event loop."""

    def stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
        """Call a generator method; its values, for a thread without an event loop."""

    def async_stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        """Call a generator method; its values, for an event loop."""

    def close(self) -> None:
        """Release what the transport holds."""


@dataclass(frozen=True)
class RunnerSpec:
    """All that is known of a runner before it runs; what `adapter export` writes down.

    `given` says which settings stand in the code: a pair of a method (or "") and the name of the setting. `existing` is
    where entries lie that are called as they are: a folder, or the address of a Triton. What is not `isolated` runs in
    Triton's stub; InvalidArgument where one of its methods is a generator.
    """

    name: str
    runnable_class: type[Runnable]
    init_params: Mapping[str, Any]
    methods: Mapping[str, MethodSpec]
    models: tuple[Model, ...] = ()
    model: Model | None = None
    resources: Resources = field(default_factory=Resources)
    strategy: type[Strategy] | None = None
    embedded: bool = False
    retry_failed_batch: bool = True
    isolated: bool = True
    workers_per_resource: float = 1.0
    call_timeout_s: float = DEFAULT_CALL_TIMEOUT_S
    warmup: warming.Samples | bool = False
    given: frozenset[tuple[str, str]] = frozenset()
    existing: str | None = None

    def __post_init__(self) -> None:
        stream = next((name for name, method in self.methods.items() if method.stream), None)
        if stream is not None and not self.isolated and not self.embedded:
            raise InvalidArgument(
                f"The runner {self.name!r} has isolated=False, but {stream}() is a generator, whose streams only a "
                "process of its own can take turns with: leave isolated=True, or let the method return all at once."
            )


class RunnerMethod:
    """One method of a runner: `runner.predict.run(x)`, or `await runner.predict.async_run(x)`.

    A generator method has `runner.tokens.async_stream(x)` for `async for`, and `runner.tokens.stream(x)` for `for`.
    """

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

    @property
    def max_wait_ms(self) -> float:
        return self.config.batching.max_wait_ms

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method and wait for its result; for plain functions, whose threads may wait."""
        if self.config.stream:
            raise self._otherwise()
        return self._runner.transport.run(self.config, args, kwargs)

    __call__ = run

    def async_run(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the method from an `async def` function: `await runner.predict.async_run(x)`."""
        if self.config.stream:
            raise self._otherwise()
        return self._runner.transport.async_run(self.config, args, kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Call a generator method; its values, one by one, for plain functions, whose threads may wait.

        Closing the iterator ends the call: the generator in the worker is closed.
        """
        if not self.config.stream:
            raise self._otherwise()
        return self._runner.transport.stream(self.config, args, kwargs)

    def async_stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Call a generator method from an `async def` function: `async for token in runner.tokens.async_stream(x)`.

        The worker is ahead of its reader by a few values at most. Closing the iterator, or leaving the loop over it,
        ends the call: the generator in the worker is closed.
        """
        if not self.config.stream:
            raise self._otherwise()
        return self._runner.transport.async_stream(self.config, args, kwargs)

    def _otherwise(self) -> StateException:
        name = f"runner.{self.name}"
        if self.config.stream:
            return StateException(
                f"{self.name}() is a generator: write `async for value in {name}.async_stream(…)`, or `for value in "
                f"{name}.stream(…)` in a plain function."
            )
        return StateException(
            f"{self.name}() is no generator: write `await {name}.async_run(…)`, or `{name}.run(…)` in a plain function."
        )

    def __repr__(self) -> str:
        return f"RunnerMethod({self._runner.name}.{self.name})"


class Runner:
    """A Runnable class (or a saved model, by `model.to_runner()`) that a service calls.

    Its methods are attributes: `runner.predict.run(x)`. A runner with one method, or with one called `__call__`, has
    `runner.run(x)` and `await runner.async_run(x)` too. It is named after its class unless `name` says otherwise.

    `max_batch_size`, `max_latency_ms` and `max_wait_ms` hold for every batchable method unless `method_configs` (a
    mapping from method names to settings; `runnable_method_configs`, a list with `method_name` or `name`, means the
    same) says otherwise; a call that Triton has not answered after `max_latency_ms`, waiting and running, raises
    ServiceUnavailable, which a client sees as 503. For up to `max_wait_ms` Triton waits until a batch is full.

    `cpu` (4, "500m"), `nvidia_gpu` (or `gpu`; 1, 0.5, or the indices [2, 4]) and `custom_resources` are what it asks
    for, all of the machine where nothing is said; `strategy` (or `scheduling_strategy`), a subclass of
    adapter.Strategy, turns that into workers. `models` are the saved models that the class reads. With `warmup` each
    worker calls its methods before it is ready: a sample for the only method (a tuple is several arguments), samples by
    the names of methods, or True for the sample that a model was saved with, or zeros. `embedded=True` runs it inside
    each front process.

    When a batch of several calls fails, each of them runs once more by itself, so that one bad call hurts no other;
    `retry_failed_batch=False` turns that off, for methods with side effects. Source: seeds 001 and 003.

    User code has a process of its own beside Triton's, started again when it dies. With `isolated=False` it runs in
    Triton's process for the instance (its stub, with the libraries of that Python), which saves 0.1 to 0.2 ms a call:
    for a model that is trusted not to crash or hang. A crash, or running out of memory, takes the stub with it: the
    requests under way fail with 503, it is back after about a second and the time to load, and Triton keeps the memory
    of what it held. A call that hangs is never ended, so no `traffic.timeout` can be set for such a runner; and no
    method of it may be a generator.
    """

    def __init__(
        self,
        runnable_class: type[Runnable],
        *,
        runnable_init_params: Mapping[str, Any] | None = None,
        name: str | None = None,
        strategy: type[Strategy] | None = None,
        scheduling_strategy: type[Strategy] | None = None,
        models: Iterable[Model] | None = None,
        max_batch_size: int | None = None,
        max_latency_ms: float | None = None,
        max_wait_ms: float | None = None,
        method_configs: Mapping[str, Mapping[str, Any]] | None = None,
        runnable_method_configs: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
        cpu: float | str | None = None,
        nvidia_gpu: float | Sequence[int] | str | None = None,
        gpu: float | Sequence[int] | str | None = None,
        custom_resources: Mapping[str, Any] | None = None,
        warmup: Any = None,
        embedded: bool = False,
        retry_failed_batch: bool = True,
        isolated: bool | None = None,
        model: Model | None = None,
    ) -> None:
        if not (isinstance(runnable_class, type) and issubclass(runnable_class, Runnable)):
            raise InvalidArgument(f"A Runner is made of a subclass of adapter.Runnable, not of {runnable_class!r}.")
        flags = {"embedded": embedded, "retry_failed_batch": retry_failed_batch, "isolated": _first(isolated, True)}
        for option, flag in flags.items():
            if not isinstance(flag, bool):  # "false" would be true
                raise InvalidArgument(f"{option} is True or False, not {flag!r}.")
        if embedded and isolated is False:
            raise InvalidArgument(
                "embedded=True runs a runner in the front, isolated=False in Triton's process: leave one of them out."
            )
        if runnable_init_params is not None and not isinstance(runnable_init_params, Mapping):
            raise InvalidArgument(
                "runnable_init_params is a mapping from the parameters of "
                f"{runnable_class.__name__}.__init__ to their values, not {runnable_init_params!r}."
            )
        configs = _method_configs(method_configs, runnable_method_configs)
        everywhere = {"max_batch_size": max_batch_size, "max_latency_ms": max_latency_ms, "max_wait_ms": max_wait_ms}
        asked = {
            "cpu": cpu,
            "nvidia_gpu": _first(nvidia_gpu, gpu),
            "custom_resources": custom_resources,
            "isolated": isolated,
        }

        def batching(method: str) -> BatchingConfig:
            said = {key: _first(configs.get(method, {}).get(key), value) for key, value in everywhere.items()}
            return BatchingConfig(**{key: value for key, value in said.items() if value is not None})

        if model is not None and runnable_init_params:
            raise InvalidArgument(
                f"The runner of the saved model {model.tag} takes no runnable_init_params: `model.with_options(…)` has "
                "the options of its framework, and an adapter.Runnable of your own takes any."
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
        spec = RunnerSpec(
            name=valid_name(name or runnable_class.__name__.lower().strip("_"), "runner name"),
            runnable_class=runnable_class,
            init_params=dict(runnable_init_params or {}),
            methods=methods,
            models=_models(models),
            model=model,
            resources=Resources(cpu, _first(nvidia_gpu, gpu), custom_resources or {}),
            strategy=_strategy(_first(strategy, scheduling_strategy)),
            embedded=embedded,
            retry_failed_batch=retry_failed_batch,
            isolated=flags["isolated"],
            warmup=warming.read(warmup, methods),
            given=frozenset(
                [("", key) for key, value in asked.items() if value not in (None, {})]
                + [
                    (method, key)
                    for method in methods
                    for key, value in everywhere.items()
                    if _first(configs.get(method, {}).get(key), value) is not None
                ]
            ),
        )
        self._transport: Transport | None = None
        self._hold(spec, runnable_class.__name__)

    def _hold(self, spec: RunnerSpec, owner: str) -> None:
        """Make the methods of a spec attributes; `owner` is who serves them, for an error."""
        self.spec = spec
        self._methods = {name: RunnerMethod(self, method) for name, method in spec.methods.items()}
        for name, method in self._methods.items():
            if name not in ("run", "__call__") and (name in _OWN or hasattr(Runner, name)):
                raise InvalidArgument(
                    f"{owner} serves a method {name!r}, but every runner has a {name!r} of its own: give the method "
                    "another name."
                )
            vars(self)[name] = method

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

    @property
    def running(self) -> bool:
        """Whether it can be called now."""
        return self._transport is not None

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
    """Runs the Runnable in this process, on one thread of its own; its generator methods on another, with an object
    of their own as in Triton.

    Arguments and results go the same way as to Triton (bound, checked, encoded, decoded), so a call gives here what
    it gives there; only an error of user code arrives as it was raised.
    """

    def __init__(self, spec: RunnerSpec, *, serving: bool = False) -> None:
        """Make the Runnable; `serving` refuses `.run` on an event loop, as Triton's transport does."""
        self._serving = serving
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"runner-{spec.name}")
        self._invoker: Invoker | None = None
        self._streams: LocalStreams | None = None

        def make() -> Runnable:
            return spec.runnable_class(**spec.init_params)

        try:
            if any(not method.stream for method in spec.methods.values()):
                self._invoker = Invoker(self._thread.submit(make).result())
            if any(method.stream for method in spec.methods.values()):
                self._streams = LocalStreams(make, f"streams-{spec.name}")
            self._thread.submit(self._warm_up, spec).result()
        except BaseException:
            self.close()
            raise

    def _warm_up(self, spec: RunnerSpec) -> None:
        for name, arguments in warming.samples(spec.warmup, spec.methods, spec.model, spec.name).items():
            method, call = spec.methods[name], warming.encode(spec.methods[name], arguments)
            if method.stream:
                self._generators.warm_up(method.decode(call))
            else:
                warming.run(self._object, method, call)

    @property
    def _object(self) -> Invoker:
        assert self._invoker is not None  # there is one where a method is no generator
        return self._invoker

    @property
    def _generators(self) -> LocalStreams:
        assert self._streams is not None  # there is one where a method is a generator
        return self._streams

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._serving:
            refuse_event_loop(method)
        return self._thread.submit(self._call, method, args, kwargs).result()

    async def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await asyncio.wrap_future(self._thread.submit(self._call, method, args, kwargs))

    def stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
        if self._serving:
            refuse_event_loop(method)
        return stepped(self._values(method, args, kwargs), self._generators.loop)

    def async_stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        return async_stepped(self._values(method, args, kwargs), self._generators.loop)

    def _values(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        method.check(args, kwargs)
        return self._generators.values(method.decode(payload.encode((tuple(args), dict(kwargs)))))

    def _call(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if method.typed:
            arrays, extra = method.pack(args, kwargs)
            call = method.unpack([array.copy() for array in arrays], extra)
            result = self._object.run([call])[0].unwrap()
            return method.unpack_result([array.copy() for array in method.pack_result(result)])
        method.check(args, kwargs)
        sent_args, sent_kwargs = payload.decode(payload.encode((tuple(args), dict(kwargs))))
        result = self._object.run([method.rebuild(sent_args, sent_kwargs)])[0].unwrap()
        return method.rebuild_result(payload.decode(b"".join(method.encode_result(result))))

    def close(self) -> None:
        if self._streams is not None:
            self._streams.close()
        if self._invoker is not None:
            self._thread.submit(self._invoker.close).result()
        self._thread.shutdown()


def refuse_event_loop(method: MethodSpec) -> None:
    """Raise StateException where a blocking call would stop the event loop that it runs on."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    verb, instead = ("stream", "async for … in") if method.stream else ("run", "await")
    raise StateException(
        f"`.{method.name}.{verb}(…)` waits for its result, which would stop every other request of this worker: in an "
        f"`async def` function write `{instead} runner.{method.name}.async_{verb}(…)`."
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _strategy(given: Any) -> type[Strategy] | None:
    if given is None or (isinstance(given, type) and issubclass(given, Strategy)):
        return given
    raise InvalidArgument(
        f"strategy is a subclass of adapter.Strategy, such as adapter.DefaultStrategy, not {given!r}."
    )


def _models(models: Iterable[Model] | None) -> tuple[Model, ...]:
    found = tuple(models) if isinstance(models, Iterable) else () if models is None else (models,)
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
        if not isinstance(configs, Iterable):
            raise InvalidArgument(f"The settings of methods are a mapping from their names, not {configs!r}.")
        items = configs.items() if isinstance(configs, Mapping) else [_named_config(config) for config in configs]
        for name, config in items:
            if not isinstance(config, Mapping):
                raise InvalidArgument(f"The settings of the method {name!r} are a mapping, not {config!r}.")
            for key in config:
                if key not in _LIMITS:
                    raise InvalidArgument(
                        f"The method {name!r} has the setting {key!r}; there are {', '.join(_LIMITS)}."
                    )
            found[name] = config
    return found


def _named_config(config: Any) -> tuple[str, Mapping[str, Any]]:
    name = config.get("method_name") or config.get("name") if isinstance(config, Mapping) else None
    if not name:
        raise InvalidArgument(f"The settings of a method are a mapping with its 'method_name': {config!r} is not.")
    return name, {key: value for key, value in config.items() if key not in ("method_name", "name")}

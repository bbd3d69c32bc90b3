"""Services as classes: the decorators, and the Service that they make of a class. Source: seed 000."""

from __future__ import annotations

import functools
import inspect
import logging as logging_
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar, overload

from pydantic import BaseModel
from starlette.types import ASGIApp

from adapter import hosted
from adapter.context import Context
from adapter.dependency import API as API_MARK
from adapter.dependency import HOOK as HOOK_MARK
from adapter.dependency import Dependency, dependencies_of, hooks_of
from adapter.exceptions import AdapterError, InvalidArgument, message_of
from adapter.io import annotated
from adapter.io.base import IODescriptor
from adapter.io.json import JSON
from adapter.io.stream import Stream
from adapter.kinds import CPU, WrongKind
from adapter.layers import of_code
from adapter.life import ALIVE, READY, ClassLife
from adapter.model import Model
from adapter.resources import CPU_NAME, GPU_NAME
from adapter.runnable import Runnable
from adapter.runner import Runner
from adapter.services import API, Life, Service
from adapter.strategy import NO_GPU, THREAD_VARIABLES, VISIBLE_GPUS, Strategy

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

logger = logging_.getLogger("adapter.server")

DEFAULT_WORKERS = DEFAULT_THREADS = 1
DEFAULT_MAX_BATCH_SIZE = 100
DEFAULT_MAX_LATENCY_MS = 60_000.0
DEPLOYMENT, STARTUP, SHUTDOWN = "deployment", hosted.STARTUP, hosted.SHUTDOWN
MOUNTS = "__adapter_mounts__"

# arguments of @bentoml.service that there are not here -> the way out
_ABSENT = {
    "image": "`adapter export` writes the requirements of every entry",
    "cmd": "`adapter serve` starts the service",
    "endpoints": "the health routes are /livez and /readyz",
    "monitoring": "log in the method, or count with adapter.metrics",
    "tracing": "`tracing` stands in adapter.yaml",
    "runner_probe": "/readyz always asks whether every entry is ready",
}


# ---- marks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marked:
    """What `@adapter.api` or `@adapter.task` says of a method."""

    route: str | None = None
    name: str | None = None
    input_spec: Any = None
    output_spec: Any = None
    batchable: bool = False
    batch_dim: int | tuple[int, int] = 0
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_latency_ms: float = DEFAULT_MAX_LATENCY_MS
    task: bool = False


_ARGUMENTS = {
    "api": {field.name for field in fields(Marked)} - {"task"},
    "task": {"route", "name", "input_spec", "output_spec", "task"},
}


@overload
def api(function: F, /) -> F: ...


@overload
def api(
    *,
    route: str | None = None,
    name: str | None = None,
    input_spec: type[BaseModel] | None = None,
    output_spec: Any = None,
    batchable: bool = False,
    batch_dim: int | tuple[int, int] = 0,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    max_latency_ms: float = DEFAULT_MAX_LATENCY_MS,
) -> Callable[[F], F]: ...


def api(function: Any = None, /, **options: Any) -> Any:
    """Offer a method of an `@adapter.service` class as `POST /<its name>`, or at `route`.

    Its parameters are the keys of a JSON object, checked by their annotations; a value before `/` is the whole body; a
    parameter called `ctx` or `context`, or annotated as adapter.Context, is the Context. What it returns is sent as its
    return annotation says. A batchable method takes one list, array or data frame, and what callers sent at the same
    time may reach it joined along `batch_dim`; its class is hosted on Triton. `max_latency_ms` is how long a call may
    take before it is answered with 503. Source: seed 000.
    """
    return _marking("api", function, options)


@overload
def task(function: F, /) -> F: ...


@overload
def task(
    *,
    route: str | None = None,
    name: str | None = None,
    input_spec: type[BaseModel] | None = None,
    output_spec: Any = None,
) -> Callable[[F], F]: ...


def task(function: Any = None, /, **options: Any) -> Any:
    """Offer a method as an API, and as work that goes on without its caller.

    Beside `POST <route>`: `POST <route>/submit` answers with a `task_id` at once; `GET <route>/status?task_id=…` and
    `/get?task_id=…` tell what has become of it; `PUT <route>/cancel?task_id=…` ends it, `POST <route>/retry?task_id=…`
    begins it anew.
    """
    return _marking("task", function, {**options, "task": True})


def _marking(what: str, function: Any, options: dict[str, Any]) -> Any:
    known = _ARGUMENTS[what]
    for option in options:
        if option not in known:
            raise InvalidArgument(f"@adapter.{what} has no argument {option!r}; it has {', '.join(sorted(known))}.")
    if function is not None and options.keys() - {"task"}:
        raise InvalidArgument(f"@adapter.{what} takes its arguments by name: @adapter.{what}(route='/v1/predict').")

    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            raise InvalidArgument(f"@adapter.{what} marks a function in the body of a class, not {method!r}.")
        if method.__name__.startswith("__"):
            raise InvalidArgument(f"{method.__name__}() cannot be an API: give the method another name.")
        if getattr(method, HOOK_MARK, ()):
            raise InvalidArgument(f"{method.__name__}() is a hook, so it cannot be an API as well.")
        # plain values: the function travels into Triton with what is set on it
        setattr(method, API_MARK, dict(options))
        return method

    return decorate if function is None else decorate(function)


def on_deployment(function: F) -> F:
    """Call a function of the class body, without `self`, once before there is any worker. Source: seed 000."""
    return _hook(function, DEPLOYMENT)


def on_startup(method: F) -> F:
    """Call a method in each worker, after `__init__` and before its first request. Source: seed 000."""
    return _hook(method, STARTUP)


def on_shutdown(method: F) -> F:
    """Call a method in each worker after its last request. Source: seed 000."""
    return _hook(method, SHUTDOWN)


def _hook(found: F, kind: str) -> F:
    function: Any = getattr(found, "__func__", found)
    if not inspect.isfunction(function) or isinstance(found, classmethod):
        raise InvalidArgument(f"@adapter.on_{kind} marks a function in the body of a class, not {found!r}.")
    if hasattr(function, API_MARK):
        raise InvalidArgument(f"{function.__name__}() is an API, so it cannot be a hook as well.")
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if kind == DEPLOYMENT and required:
        raise InvalidArgument(
            f"The deployment hook {function.__name__}() takes {required[0]!r}, but there is no object yet when it "
            "runs: write it without parameters."
        )
    if kind != DEPLOYMENT and (len(required) != 1 or isinstance(found, staticmethod)):
        raise InvalidArgument(f"The hook {function.__name__}() takes self and nothing else.")
    setattr(function, HOOK_MARK, (*getattr(function, HOOK_MARK, ()), kind))
    return found


def depends(service: Any = None) -> Any:  # type checkers take a decorated class for the class itself
    """Use another service of this deployment: `other = adapter.depends(Other)` in the body of a class.

    `self.other.method(x)` calls it, `await self.other.to_async.method(x)` does so without holding the event loop.
    """
    if not isinstance(service, ClassService):
        raise InvalidArgument(
            f"adapter.depends takes a class marked with @adapter.service of this deployment, not {service!r}; to call "
            "another server, use adapter.client."
        )
    return Dependency(service.inner, service)


def asgi_app(app: ASGIApp, path: str = "/", name: str | None = None) -> Callable[[Any], Any]:
    """Let an ASGI application answer what lies below `path`; routes that stand in the class get its object as `self`.

    It stands above or below `@adapter.service`.
    """

    def decorate(found: Any) -> Any:
        if isinstance(found, ClassService):
            found.mount_asgi_app(app, path, name)
        elif isinstance(found, type):
            setattr(found, MOUNTS, [*vars(found).get(MOUNTS, ()), (app, path, name)])
        else:
            raise InvalidArgument(f"@adapter.asgi_app marks a class, not {found!r}.")
        return found

    return decorate


# ---- the service ----------------------------------------------------------------------------------------------------


@overload
def service(cls: type[T], /) -> ClassService[T]: ...


@overload
def service(
    *,
    name: str | None = None,
    workers: int | str | None = None,
    threads: int | None = None,
    resources: Mapping[str, Any] | None = None,
    traffic: Mapping[str, Any] | None = None,
    path_prefix: str | None = None,
    http: Mapping[str, Any] | None = None,
    ssl: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    logging: Mapping[str, Any] | None = None,
    backlog: int | None = None,
    envs: Sequence[Mapping[str, str]] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Callable[[type[T]], ClassService[T]]: ...


def service(cls: Any = None, /, **options: Any) -> Any:
    """Make a Service of a class; its object is made in each worker, and methods marked `@adapter.api` are its APIs.

    `workers` (1, or "cpu_count") is the number of processes with an object of their own, `threads` (1) how many plain
    methods run at a time in each of them. `resources` (`cpu`, `gpu`) with a GPU, and a batchable method, have the class
    hosted on Triton. `traffic`, `http`, `ssl`, `metrics`, `logging` and `backlog` are those of `api_server` in
    adapter.yaml; `services.<class name>` there is stronger than what the code says. `path_prefix` stands before every
    route. `envs` are variables of the environment; `labels` stand in the OpenAPI document. Calling the service makes an
    object: `HookService().predict("x")`. Source: seed 000.
    """
    if cls is not None and options:
        raise TypeError("@adapter.service takes its arguments by name: @adapter.service(workers=4).")
    return _service(cls, {}) if cls is not None else functools.partial(_service, options=options)


def _service(cls: Any, options: Mapping[str, Any]) -> ClassService[Any]:
    if isinstance(cls, Service):
        raise TypeError(f"{cls!r} is a service already: write @adapter.service once.")
    if not isinstance(cls, type):
        raise InvalidArgument(f"@adapter.service marks a class, not {cls!r}.")
    return ClassService(cls, Options.of(cls.__name__, options))


@dataclass(frozen=True)
class Options:
    """The arguments of `@adapter.service`, read and checked; `config` are settings below `api_server`."""

    name: str | None = None
    config: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    cpu: float | None = None
    gpu: float | tuple[int, ...] | None = None
    path_prefix: str = ""
    envs: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def workers(self) -> int | None:
        workers: int | None = self.config[("workers",)]
        return workers

    @classmethod
    def of(cls, what: str, given: Mapping[str, Any]) -> Options:
        rest = {key: value for key, value in given.items() if value is not None}
        name, prefix = rest.pop("name", None), rest.pop("path_prefix", "")
        resources, envs, labels = rest.pop("resources", {}), rest.pop("envs", ()), rest.pop("labels", {})
        for key in rest:
            if key in _ABSENT:
                raise InvalidArgument(f"@adapter.service has no argument {key!r}: {_ABSENT[key]}.")
            if key not in ("workers", "threads", "traffic", "http", "ssl", "metrics", "logging", "backlog"):
                raise TypeError(f"@adapter.service has no argument {key!r}")
        try:
            config = of_code({"workers": DEFAULT_WORKERS, "threads": DEFAULT_THREADS, **rest}, what)
        except AdapterError as error:
            raise InvalidArgument(f"An argument of @adapter.service cannot be used: {message_of(error)}") from error
        return cls(name, config, *_resources(what, resources), _prefix(prefix), _envs(envs), _labels(labels))


def _resources(what: str, given: Any) -> tuple[float | None, float | tuple[int, ...] | None]:
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"resources of @adapter.service is a mapping such as {{'gpu': 1}}, not {given!r}.")
    for key in given:
        if key not in ("cpu", "gpu", "memory", "gpu_type"):
            raise InvalidArgument(
                f"resources of @adapter.service has no {key!r}; it has cpu, gpu, memory and gpu_type."
            )
    for key in ("memory", "gpu_type"):
        if key in given:
            raise InvalidArgument(
                f"resources={{{key!r}: {given[key]!r}}} of {what} has no effect here: the container or the Kubernetes "
                "pod that runs `adapter serve` says it."
            )
    cpu = given.get("cpu")
    if isinstance(cpu, str) and cpu.replace(".", "", 1).isdigit():
        cpu = float(cpu)
    try:
        amount = None if cpu is None else CPU.read(cpu)
    except WrongKind:
        raise InvalidArgument(f"resources['cpu'] is {cpu!r}, but can only be {CPU.text}.") from None
    gpu: Any = given.get("gpu")
    if isinstance(gpu, str) and gpu.isdigit():
        gpu = int(gpu)
    listed = isinstance(gpu, (list, tuple))
    numbers = list(gpu) if listed else [] if gpu is None else [gpu]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise InvalidArgument(f"resources['gpu'] is {gpu!r}, but can only be a number of GPUs or a list of indices.")
    return amount if isinstance(amount, float) else None, tuple(numbers) if listed else gpu


def _prefix(given: Any) -> str:
    if not isinstance(given, str):
        raise InvalidArgument(f"path_prefix is a path such as '/v1', not {given!r}.")
    return "/" + given.strip("/") if given.strip("/") else ""


def _envs(given: Any) -> Mapping[str, str]:
    found = {}
    for item in [{"name": k, "value": v} for k, v in given.items()] if isinstance(given, Mapping) else given:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or not item["name"]:
            raise InvalidArgument(f"envs is a list of mappings such as {{'name': 'A', 'value': 'b'}}, not {given!r}.")
        found[item["name"]] = str(item.get("value", ""))
    return found


def _labels(given: Any) -> Mapping[str, str]:
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"labels of @adapter.service is a mapping such as {{'owner': 'me'}}, not {given!r}.")
    return {str(key): str(value) for key, value in given.items()}


@dataclass(frozen=True)
class Method:
    """One API of a class: how a request becomes its arguments."""

    name: str
    api: str
    function: Callable[..., Any]
    marked: Marked
    parameters: tuple[inspect.Parameter, ...]
    context: str | None
    paths: tuple[str, ...]
    returns_path: bool
    input: IODescriptor[Any]
    output: IODescriptor[Any]

    @property
    def output_streams(self) -> bool:
        return isinstance(self.output, Stream)

    @property
    def root(self) -> bool:
        """Whether the body is one value."""
        return not self.input.by_name

    @property
    def positional(self) -> tuple[str, ...]:
        """The parameters to give by position, so that what `*names` collects can follow them."""
        if not any(p.kind is p.VAR_POSITIONAL for p in self.parameters):
            return ()
        return tuple(p.name for p in self.parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != self.context)

    @property
    def rest(self) -> str | None:
        return next((p.name for p in self.parameters if p.kind is p.VAR_POSITIONAL), None)

    @property
    def simple(self) -> bool:
        """Whether the arguments are those of the request, as they are."""
        return not (self.context or self.paths or self.rest)

    @property
    def shape(self) -> hosted.Shape:
        return hosted.Shape(self.name, self.context, self.paths, self.returns_path)


def methods_of(cls: type) -> dict[str, Method]:
    """The APIs of a class by the name of the method: inherited ones first, in the order of their definition."""
    marks: dict[str, tuple[Callable[..., Any], Marked]] = {}
    for parent in reversed(cls.__mro__):
        for name, value in vars(parent).items():
            options = getattr(value, API_MARK, None)
            if options is not None:
                marks[name] = value, Marked(**options)
            else:
                marks.pop(name, None)
    return {name: _method(cls, name, function, marked) for name, (function, marked) in marks.items()}


def _method(cls: type, name: str, function: Callable[..., Any], marked: Marked) -> Method:
    of = f"{cls.__name__}.{name}()"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are the user's own code
        raise InvalidArgument(f"The annotations of {of} cannot be read: {message_of(error)}.") from error
    every = list(inspect.signature(function).parameters.values())
    if not every or every[0].kind not in (every[0].POSITIONAL_ONLY, every[0].POSITIONAL_OR_KEYWORD):
        raise InvalidArgument(f"{of} takes no self.")
    contexts = [p for p in every[1:] if _is_context(p, hints.get(p.name))]
    if len(contexts) > 1:
        raise InvalidArgument(f"{of} takes the Context twice: {contexts[0].name!r} and {contexts[1].name!r}.")
    if contexts and any(p.kind is p.VAR_POSITIONAL for p in every[every.index(contexts[0]) :]):
        starred = next(p.name for p in every if p.kind is p.VAR_POSITIONAL)
        raise InvalidArgument(f"{of} takes the Context before *{starred}: put {contexts[0].name!r} behind it.")
    if contexts and contexts[0].kind is contexts[0].POSITIONAL_ONLY:
        raise InvalidArgument(f"{of} takes the Context by position only: put {contexts[0].name!r} behind the `/`.")
    parameters = tuple(p for p in every[1:] if p not in contexts)
    # `def f(self, x, /)` makes self positional-only as well
    api_name = marked.name or name
    if marked.input_spec is not None:
        input_ = annotated.arguments_of_model(marked.input_spec, of=of, taken=every[0].name)
    else:
        title = f"{''.join(part.capitalize() for part in api_name.split('_'))}Input"
        input_ = annotated.arguments(parameters, hints, of=of, name=title, taken=every[0].name)
    returned = hints.get("return", Any)
    output = (
        JSON(pydantic_model=marked.output_spec) if marked.output_spec is not None else annotated.result(returned, of=of)
    )
    found = Method(
        name=name,
        api=api_name,
        function=function,
        marked=marked,
        parameters=parameters,
        context=contexts[0].name if contexts else None,
        paths=tuple(p.name for p in parameters if annotated.has_path(hints.get(p.name, Any))),
        returns_path=annotated.has_path(returned),
        input=input_,
        output=output,
    )
    _check(of, found)
    return found


def _is_context(parameter: inspect.Parameter, annotation: Any) -> bool:
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) in annotated.UNIONS else (annotation,)
    if any(isinstance(kind, type) and issubclass(kind, Context) for kind in kinds):
        return True
    return parameter.name in ("ctx", "context") and annotation in (None, Any)


def _check(of: str, method: Method) -> None:
    marked, streams = method.marked, _is_generator(method.function)
    if streams and not method.output_streams:
        raise InvalidArgument(
            f"{of} is a generator, so annotate what it returns as one: `-> typing.Iterator[str]`, or "
            "`typing.AsyncIterator[str]` for an `async def`."
        )
    if marked.task and method.output_streams:
        raise InvalidArgument(f"{of} is a task and streams, but nobody may be there when a task runs: return a list.")
    if not isinstance(marked.batchable, bool):
        raise InvalidArgument(f"batchable of {of} is true or false, not {marked.batchable!r}.")
    if not marked.batchable:
        return
    if len(method.parameters) != 1 or method.context is not None:
        names = [*(p.name for p in method.parameters), *([method.context] if method.context else [])]
        raise InvalidArgument(
            f"{of} is batchable, so it takes one argument, the batch of several requests, and no Context: it takes "
            f"{', '.join(names) or 'none'}."
        )
    if method.output_streams or method.paths or method.returns_path:
        raise InvalidArgument(f"{of} is batchable, so it takes and returns a list, an array or a data frame.")
    size = marked.max_batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise InvalidArgument(f"max_batch_size of {of} is a whole number above 1, not {size!r}.")


def _is_generator(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class Workers(Strategy):
    """So many workers as a class says, spread over the GPUs that it asks for, else sharing the CPUs."""

    count: ClassVar[int | None] = None

    @classmethod
    def get_worker_count(
        cls, runnable_class: type[Runnable], resource_request: Mapping[str, Any], workers_per_resource: float
    ) -> int:
        return cls.count or max(1, math.ceil(resource_request[CPU_NAME]))

    @classmethod
    def get_worker_env(
        cls,
        runnable_class: type[Runnable],
        resource_request: Mapping[str, Any],
        workers_per_resource: float,
        worker_index: int,
    ) -> Mapping[str, str]:
        gpus = resource_request[GPU_NAME]
        if gpus:
            return {VISIBLE_GPUS: str(gpus[worker_index % len(gpus)])}
        count = cls.get_worker_count(runnable_class, resource_request, workers_per_resource)
        threads = max(1, math.ceil(resource_request[CPU_NAME] / count))
        return {VISIBLE_GPUS: NO_GPU, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


class ClassService(Service, Generic[T]):
    """The Service of a class; `inner` is the class, and calling this makes an object of it, without any hook."""

    def __init__(self, cls: type[T], options: Options) -> None:
        _forget_services(cls)
        self.inner = cls
        self.options = options
        self.dependencies = dependencies_of(cls)
        self.methods = methods_of(cls)
        own = options.name if options.name is not None else cls.__name__.strip("_").lower()
        attributes = _attributes(cls)
        super().__init__(
            own,
            runners=[a for a in attributes if isinstance(a, Runner)],
            models=[a for a in attributes if isinstance(a, Model)],
        )
        self.hosted = any(m.marked.batchable for m in self.methods.values()) or bool(options.gpu)
        self.runner = self._hosted() if self.hosted else None
        used = [d.service for d in self.dependencies.values()]
        if self.runner is not None:  # what it uses is in its workers
            self.runners = (self.runner,)
            for service in used:
                if service.hosted:
                    logger.warning(
                        "%s is hosted on Triton and uses %s, which is as well: each worker of %s has an object of it.",
                        *(cls.__name__, service.inner.__name__, cls.__name__),
                    )
        else:
            found = dict.fromkeys([*self.runners, *(r for s in used for r in s.runners)])
            # where all run in one process, a hosted class finds those that it has as attributes running
            self.runners = tuple(sorted(found, key=lambda r: issubclass(r.spec.runnable_class, hosted.Hosted)))
        self.models = tuple(dict.fromkeys([*self.models, *(m for s in used for m in s.models)]))
        for method in self.methods.values():
            self._add(method)
        self.deployment_hooks += [_deployment(cls, name) for name in hooks_of(cls, DEPLOYMENT)]
        for service in dict.fromkeys(used):
            self.deployment_hooks += [h for h in service.deployment_hooks if h not in self.deployment_hooks]
        for app, path, name in vars(cls).get(MOUNTS, ()):
            self.mount_asgi_app(app, path, name)
        if MOUNTS in vars(cls):
            delattr(cls, MOUNTS)

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        return self.inner(*args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self.inner,)  # so that a class can inherit from a service

    @property
    def config(self) -> Mapping[tuple[str, ...], Any]:
        if not self.hosted:
            return self.options.config
        # its workers and threads are those of Triton
        return {k: v for k, v in self.options.config.items() if k not in (("workers",), ("threads",))}

    @property
    def uses(self) -> Sequence[Service]:
        return [service for service in self.every() if service is not self]

    @property
    def classes(self) -> Sequence[type]:
        return self.inner.__mro__

    @property
    def labels(self) -> Mapping[str, str]:
        return self.options.labels

    @property
    def envs(self) -> Mapping[str, str]:
        return {name: value for service in self.every() for name, value in service.options.envs.items()}

    def life(self, state: Mapping[str, Any]) -> Life:
        return ClassLife(self, state)

    def mount_asgi_app(self, app: ASGIApp, path: str = "/", name: str | None = None) -> None:
        super().mount_asgi_app(app, self.options.path_prefix + "/" + path.strip("/"), name)

    def every(self, *, in_front: bool = False) -> Iterator[ClassService[Any]]:
        """This service and those that it uses, directly or not: the used ones first, each of them once.

        With `in_front` without those that only services inside Triton use, where they have objects of their own.
        """
        seen: dict[ClassService[Any], None] = {}

        def visit(service: ClassService[Any]) -> None:
            for dependency in service.dependencies.values():
                if not (in_front and service.hosted):
                    visit(dependency.service)
            seen[service] = None

        visit(self)
        return iter(seen)

    def _add(self, method: Method) -> None:
        name = self._api_name(method.api)
        given = method.marked.route
        if given is not None and (not isinstance(given, str) or not given.startswith("/")):
            raise InvalidArgument(
                f"The route of {method.name}() begins with a slash, as '/v1/predict' does: not {given!r}."
            )
        wants_context = bool(method.context or method.paths or method.returns_path)
        self.apis[name] = API(
            name=name,
            route=self._route(name, f"{self.options.path_prefix}{given or '/' + name}"),
            func=method.function,
            input=method.input,
            output=method.output,
            doc=inspect.getdoc(method.function) or "",
            ctx_param=(method.context or hosted.CONTEXT) if wants_context else None,
            task=method.marked.task,
        )

    def _hosted(self) -> Runner:
        """The runner whose workers each have an object of the class."""
        body: dict[str, Any] = {"__adapter_served__": self.inner, "__module__": self.inner.__module__}
        body["__doc__"] = self.inner.__doc__
        body["__qualname__"] = self.inner.__qualname__
        limits = {}
        for method in self.methods.values():
            body[method.name] = _served(method)
            limits[method.name] = {
                "max_batch_size": method.marked.max_batch_size,
                "max_latency_ms": method.marked.max_latency_ms,
            }
        for name in (ALIVE, READY):
            if callable(getattr(self.inner, name, None)):
                body[name] = Runnable.method(hosted.method(hosted.Shape(name)))
        if not self.methods:
            raise InvalidArgument(f"{self.inner.__name__} is to be hosted on Triton, but has no API: mark a method.")
        runnable = type(self.inner.__name__, (hosted.Hosted,), body)
        return Runner(
            runnable,
            name=self.name,
            cpu=self.options.cpu,
            nvidia_gpu=self.options.gpu or 0,
            method_configs={n: limit for n, limit in limits.items() if self.methods[n].marked.batchable},
            strategy=type("Workers", (Workers,), {"count": self.options.workers}),
            models=self.models,
        )


def _served(method: Method) -> Callable[..., Any]:
    """The method of the Runnable that hosts a class."""
    if _is_generator(method.function):
        function = hosted.stream(method.shape, asynchronous=inspect.isasyncgenfunction(method.function))
    else:
        function = hosted.method(method.shape)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p.replace(annotation=p.empty) for p in method.parameters]
    if parameters and parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY:
        own = own.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
    if method.context is not None:
        extra = inspect.Parameter(hosted.CONTEXT, inspect.Parameter.KEYWORD_ONLY, default=None)
        last = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        parameters = [*(p for p in parameters if p not in last), extra, *last]
    function.__name__ = method.name
    function.__qualname__ = f"{method.function.__qualname__}"
    function.__module__ = method.function.__module__
    hints = typing.get_type_hints(method.function, include_extras=True)
    kept = {p.name for p in method.parameters if p.name not in method.paths}
    if method.shape.plain:
        kept.add("return")
    function.__annotations__ = {name: hint for name, hint in hints.items() if name in kept}
    function.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]  # Python reads it there
    marked = method.marked
    return Runnable.method(batchable=marked.batchable, batch_dim=marked.batch_dim)(function)


def _forget_services(cls: type) -> None:
    """Let a class that inherits from a service know only the class of it, since it may travel into Triton."""
    for parent in cls.__mro__:
        bases = vars(parent).get("__orig_bases__", ())  # Python notes there what stood in the parentheses
        if any(isinstance(base, ClassService) for base in bases):
            own = tuple(base.inner if isinstance(base, ClassService) else base for base in bases)
            parent.__orig_bases__ = own  # type: ignore[attr-defined]  # a class with such bases has it


def _attributes(cls: type) -> list[Any]:
    """The attributes of a class, those of its parents that it does not hide included."""
    found: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        found |= vars(parent)
    return list(found.values())


def _deployment(cls: type, name: str) -> Callable[[], Any]:
    for parent in cls.__mro__:
        if name in vars(parent):
            hook = vars(parent)[name]
            return typing.cast(Callable[[], Any], getattr(hook, "__func__", hook))
    raise AssertionError(name)

"""Services: a name, the runners it needs, the APIs it offers, and hooks around its life."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import logging
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from a2wsgi import WSGIMiddleware
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX, compile_path
from starlette.types import ASGIApp

from adapter.context import Context
from adapter.exceptions import AlreadyExists, InvalidArgument, StateException
from adapter.io.base import IODescriptor
from adapter.layers import load
from adapter.model import Model
from adapter.runner import Runner
from adapter.tag import valid_name

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("adapter.server")

RESERVED = frozenset({"index", "swagger", "docs", "metrics", "healthz", "livez", "readyz", "static_content"})
_CONTEXT_NAMES = ("ctx", "context")
# what a parameter of a route takes, as unlike the literal part of another route as can be
_SAMPLES = {
    "str": "\ue000",
    "path": "\ue000/" * 40,
    "int": "98765432109876543210",
    "float": "98765432109876543210.5",
    "uuid": "98765432-1098-7654-3210-987654321098",
}


@dataclass(frozen=True)
class API:
    """One API: the function, where it is reached, and what its body and its answer are."""

    name: str
    route: str
    func: Callable[..., Any]
    input: IODescriptor[Any]
    output: IODescriptor[Any]
    doc: str
    ctx_param: str | None = None
    task: bool = False

    @property
    def needs_ctx(self) -> bool:
        return self.ctx_param is not None

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)

    @property
    def multi_input(self) -> bool:
        """Whether the input is a dict of arguments: the function takes them, and the Context, by keyword."""
        return self.input.by_name


@dataclass(frozen=True)
class Mount:
    """An ASGI application that answers what lies below `path`, where no API and no route of the server does."""

    path: str
    app: ASGIApp
    name: str | None = None


class Life:
    """A service as one application has it: its APIs and mounts, its hooks, and what it says of its own health."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.instance: Any = None
        self.apis: Mapping[str, API] = service.apis
        self.mounts: Sequence[Mount] = service.mounts

    async def start(self, context: Context) -> None:
        """Run what stands before the first request; what a hook raises goes on."""
        for hook in self.service.startup_hooks:
            await awaited(hook(context))

    async def stop(self, context: Context) -> None:
        """Run every shutdown hook, also after one that failed."""
        for hook in self.service.shutdown_hooks:
            await ended(hook, context)

    async def alive(self) -> bool:
        """Whether the service itself says that it lives."""
        return True

    async def not_ready(self) -> str:
        """Why the service itself says that it cannot be called; "" where it does not."""
        return ""


async def awaited(value: Any) -> Any:
    """A result, waited for where it can be."""
    return await value if inspect.isawaitable(value) else value


async def ended(hook: Callable[..., Any], *args: Any) -> None:
    """Run one shutdown hook; the log tells where it fails, and the others are not hurt."""
    try:
        await awaited(hook(*args))
    except Exception:
        logger.exception("The shutdown hook %s failed.", getattr(hook, "__name__", hook))


class Service:
    """A service: `svc = adapter.Service("iris", runners=[runner])`, then `@svc.api(input=…, output=…)`.

    Underscores around the name are left out, so that `Service(__name__)` has one under `python service.py` as well.
    Two saved models of one name get runners called `<name>_<version>`. To call a service without serving it, run
    `for runner in svc.runners: runner.init_local()` and then `svc.apis["classify"].func(x)`. Source: seed 001.
    """

    def __init__(
        self, name: str, *, runners: Iterable[Runner] | None = None, models: Iterable[Model] | None = None
    ) -> None:
        # `Service(__name__)` is `__main__` under `python service.py`
        stripped = name.strip("_") if isinstance(name, str) else name
        self.name = valid_name(stripped or name, "service name")
        self.runners = _runners(runners)
        self.models = tuple(models or ())
        for model in self.models:
            if not isinstance(model, Model):
                raise InvalidArgument(f"models=[…] of a Service holds saved models, not {model!r}.")
        self.apis: dict[str, API] = {}
        self.startup_hooks: list[Callable[[Context], Any]] = []
        self.shutdown_hooks: list[Callable[[Context], Any]] = []
        self.deployment_hooks: list[Callable[[], Any]] = []
        self.mounts: list[Mount] = []
        self.middlewares: list[tuple[Callable[..., ASGIApp], dict[str, Any]]] = []
        self.import_string: str | None = None
        self.working_dir: str | None = None

    def life(self, state: Mapping[str, Any]) -> Life:
        """What one application has of this service; `state` is the `ctx.state` of its process."""
        return Life(self)

    @property
    def config(self) -> Mapping[tuple[str, ...], Any]:
        """Settings of the server that stand in the code, by their keys below `api_server`."""
        return {}

    @property
    def uses(self) -> Sequence[Service]:
        """The other services that this one uses."""
        return ()

    @property
    def classes(self) -> Sequence[type]:
        """The class that a class-based service was made of, and its parents."""
        return ()

    @property
    def labels(self) -> Mapping[str, str]:
        """What the code says of the service for people and programs that look at its OpenAPI document."""
        return {}

    @property
    def envs(self) -> Mapping[str, str]:
        """Variables of the environment that stand in the code."""
        return {}

    @property
    def doc(self) -> str:
        return "\n\n".join(f"{api.name}: {api.doc}" for api in self.apis.values() if api.doc)

    @property
    def openapi_spec(self) -> dict[str, Any]:
        """The OpenAPI document, as `GET /docs.json` answers it."""
        # the server stands above this file and imports it; whoever asks for a server at a Service has it in hand
        from adapter.server.openapi import document

        return document(self)

    @property
    def asgi_app(self) -> ASGIApp:
        """An application for any ASGI server, with the runners in its process: `uvicorn service:svc.asgi_app`.

        Each use makes another one. It starts the runners and hooks in its lifespan, so it answers nothing before. Its
        settings are those of the environment, tokens among them.
        """
        from adapter.server.app import LocalRunners, create_app  # see `openapi_spec`

        settings = load(None, os.environ).settings
        return create_app(self, LocalRunners(settings.triton), settings)

    # ---- APIs -----------------------------------------------------------------------------------------------------

    def api(
        self,
        input: IODescriptor[Any],  # noqa: A002  # the names of seed 001
        output: IODescriptor[Any],
        *,
        name: str | None = None,
        doc: str | None = None,
        route: str | None = None,
    ) -> Callable[[F], F]:
        """Offer the decorated function as `POST /<name>`, or at `route`.

        A route may have parameters, whose values are in `ctx.request.path_params`: `/users/{user}/score`, or
        `{user:int}`, also float, uuid and path. A route without any goes before them, then the one added first.
        A plain function runs on a thread, an `async def` one on the event loop. Its first parameter is what `input`
        makes of the body; a second one, of any name, is the Context. For a Multipart its parameters are called like the
        parts, and the Context `ctx` or `context`, or is annotated as such. `doc` (or the docstring) goes into OpenAPI.
        """
        for what, descriptor in (("input", input), ("output", output)):
            if not isinstance(descriptor, IODescriptor):
                raise InvalidArgument(
                    f"{what}={descriptor!r} is not an IO descriptor: write for example {what}=adapter.io.JSON()."
                )

        def decorate(function: F) -> F:
            api_name = self._api_name(name or str(getattr(function, "__name__", "")))
            self.apis[api_name] = API(
                name=api_name,
                route=self._route(api_name, route),
                func=function,
                input=input,
                output=output,
                doc=doc if doc is not None else inspect.getdoc(function) or "",
                ctx_param=_context_parameter(function, input),
            )
            return function

        return decorate

    def _api_name(self, name: str) -> str:
        if not name.isidentifier():
            raise InvalidArgument(f"{name!r} cannot be the name of an API: it is a Python identifier.")
        if name in RESERVED:
            raise InvalidArgument(f"{name!r} cannot be the name of an API: the server uses it. Give `name=` another.")
        if name in self.apis:
            raise AlreadyExists(f"The service {self.name!r} has an API {name!r} already: give `name=` another.")
        return name

    def _route(self, name: str, given: str | None) -> str:
        route = _path(name if given is None else given, "a route")
        shape, values = _pattern(route)
        for other in self.apis.values():
            if other.route == route:
                raise AlreadyExists(f"The route {route!r} belongs to the API {other.name!r} already.")
            its_shape, _ = _pattern(other.route)
            if its_shape == shape or ("{" in route and compile_path(other.route)[0].match(values)):
                raise AlreadyExists(
                    f"The route {route!r} would never be reached: {other.route!r} of the API {other.name!r} takes "
                    "the same paths."
                )
        return route

    # ---- beside the APIs ------------------------------------------------------------------------------------------

    def mount_asgi_app(self, app: ASGIApp, path: str = "/", name: str | None = None) -> None:
        """Let another ASGI application (FastAPI, Starlette) answer what lies below `path`.

        The APIs and the server's own routes go before it, and of two such applications the one with the longer path.
        The paths of a FastAPI application are shown in the service's OpenAPI document. Source: seed 002.
        """
        if _arguments(app) == 2:
            raise InvalidArgument(f"{app!r} takes two arguments as a WSGI application does: use mount_wsgi_app.")
        self._mount(app, path, name)

    def mount_wsgi_app(self, app: Callable[..., Iterable[bytes]], path: str = "/", name: str | None = None) -> None:
        """Let a WSGI application (Flask, Django) answer what lies below `path`, on threads of its own."""
        if _arguments(app) == 3:
            raise InvalidArgument(f"{app!r} takes three arguments as an ASGI application does: use mount_asgi_app.")
        self._mount(WSGIMiddleware(app) if callable(app) else app, path, name)

    def _mount(self, app: Any, given: str, name: str | None) -> None:
        if not callable(app):
            raise InvalidArgument(f"{app!r} cannot be mounted: it is not an application, which can be called.")
        path = "/" if given in ("", "/") else _path(given, "the path of a mounted application").rstrip("/")
        if "{" in path:
            raise InvalidArgument(f"{given!r} cannot be the path of a mounted application: it has parameters.")
        if any(mount.path == path for mount in self.mounts):
            raise AlreadyExists(f"Another application is mounted at {path!r} already.")
        self.mounts.append(Mount(path, app, name))
        self.mounts.sort(key=lambda mount: -len(mount.path))  # the application takes the first that matches

    def add_asgi_middleware(self, middleware: Callable[..., ASGIApp], **options: Any) -> None:
        """Wrap the application in `middleware(app, **options)`; the first added is the outermost.

        It sees every request, those for the server's own routes and for mounted applications included.
        """
        if not callable(middleware):
            raise InvalidArgument(
                f"{middleware!r} is not a middleware: give its class and its options, as in "
                "svc.add_asgi_middleware(GZipMiddleware, minimum_size=500)."
            )
        self.middlewares.append((middleware, options))

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def on_deployment(self, hook: F) -> F:
        """Call a function without arguments once, before any worker process exists."""
        self.deployment_hooks.append(hook)
        return hook

    def on_startup(self, hook: F) -> F:
        """Call a function with the Context in each worker process before it takes requests."""
        self.startup_hooks.append(hook)
        return hook

    def on_shutdown(self, hook: F) -> F:
        """Call a function with the Context in each worker process after its last request."""
        self.shutdown_hooks.append(hook)
        return hook

    def __reduce__(self) -> Any:
        raise StateException(
            f"The service {self.name!r} is used inside a Runnable, and cannot go with it into Triton: keep what the "
            "Runnable needs in functions and values of their own."
        )

    def __repr__(self) -> str:
        if self.import_string:
            folder = f', working_dir="{self.working_dir}"' if self.working_dir else ""
            return f'adapter.Service(name="{self.name}", import_str="{self.import_string}"{folder})'
        return f'adapter.Service(name="{self.name}", runners=[{", ".join(r.name for r in self.runners)}])'


def _path(given: str, what: str) -> str:
    """A path as a person may write it, beginning with a slash, or InvalidArgument that says why it is none."""
    path = "/" + given.removeprefix("/") if isinstance(given, str) else ""
    if (
        not path.strip("/")
        or path.startswith(("//", "/:"))
        or any(c in "?#%\\" or c.isspace() or not c.isprintable() for c in path)
    ):
        raise InvalidArgument(f"{given!r} cannot be {what}: write a path such as '/v1/classify'.")
    if path.strip("/").split("/")[0] in RESERVED or path.rstrip("/") == "/docs.json":
        raise InvalidArgument(f"{path!r} cannot be {what}: the server uses it.")
    if any(c in PARAM_REGEX.sub("", path) for c in "{}"):
        raise InvalidArgument(f"{given!r} cannot be {what}: write a parameter as in '/users/{{user}}/score'.")
    parameters = PARAM_REGEX.findall(path)
    for name, kind in parameters:
        if kind and kind[1:] not in CONVERTOR_TYPES:
            raise InvalidArgument(
                f"{given!r} cannot be {what}: {kind[1:]!r} is no kind of parameter; there are "
                f"{', '.join(CONVERTOR_TYPES)}."
            )
        if [name for name, _ in parameters].count(name) > 1:
            raise InvalidArgument(f"{given!r} cannot be {what}: it has two parameters called {name!r}.")
    return path


def _pattern(route: str) -> tuple[str, str]:
    """The route with its parameters made alike, and a path that only its parameters would match."""
    kinds = {name: kind[1:] or "str" for name, kind in PARAM_REGEX.findall(route)}
    path = PARAM_REGEX.sub(lambda match: _SAMPLES.get(kinds[match[1]], _SAMPLES["str"]), route)
    return PARAM_REGEX.sub("{}", route), path


def _arguments(app: Any) -> int:
    """How many arguments an application takes; 0 where it does not say."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return 0
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 0
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _runners(runners: Iterable[Runner] | None) -> tuple[Runner, ...]:
    found = tuple(runners or ())
    for runner in found:
        if not isinstance(runner, Runner):
            raise InvalidArgument(
                f"runners=[…] of a Service holds runners, not {runner!r}: write `model.to_runner()` or "
                "`adapter.Runner(YourRunnable)`."
            )
    for name, number in collections.Counter(r.name for r in found).items():
        same = [r for r in found if r.name == name]
        tags = {r.model.tag for r in same if r.model is not None}
        if number > 1 and len(tags) == number:
            for runner in same:
                assert runner.model is not None
                runner.spec = dataclasses.replace(runner.spec, name=f"{name}_{runner.model.info.version}")
        elif number > 1:
            raise AlreadyExists(f"Two runners of the service are called {name!r}: give one another `name=`.")
    return found


def _context_parameter(function: Callable[..., Any], descriptor: IODescriptor[Any]) -> str | None:
    """The name of the parameter that takes the Context; InvalidArgument where the function cannot be an API."""
    name, hints = getattr(function, "__name__", repr(function)), _hints(function)
    if descriptor.parts:
        return _context_beside_parts(name, function, descriptor.parts)
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise InvalidArgument(
                f"The API function {name}() takes {parameter.name!r} by keyword only, but the body of the request and "
                "the Context come by position: leave out the `*` before it."
            )
    if not parameters:
        raise InvalidArgument(f"The API function {name}() takes no argument: its first one is the body of the request.")
    if len(parameters) > 2:
        raise InvalidArgument(
            f"The API function {name}() takes {len(parameters)} arguments: there are the body of the request and, if "
            "wanted, the Context."
        )
    _check_annotation(name, hints.get(parameters[0].name), descriptor, "a request")
    if len(parameters) == 1:
        return None
    context = hints.get(parameters[1].name, Context)
    if _is_class(context) and not issubclass(context, Context):
        raise InvalidArgument(
            f"The second parameter of {name}() is the Context, so {parameters[1].name!r} cannot be {context.__name__}."
        )
    return parameters[1].name


def _context_beside_parts(
    name: str, function: Callable[..., Any], parts: Mapping[str, IODescriptor[Any]]
) -> str | None:
    """`_context_parameter` of a function that takes the parts of a form, and the Context, by keyword."""
    parameters, hints = inspect.signature(function).parameters, _hints(function)
    names = ", ".join(repr(part) for part in parts)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for part, descriptor in parts.items():
        if part not in parameters and not takes_any:
            raise InvalidArgument(
                f"The API function {name}() does not take the part {part!r}: its parameters are called like the parts, "
                f"{names}, and the Context `ctx`."
            )
        _check_annotation(name, hints.get(part), descriptor, f"the part {part!r}")
    context: str | None = None
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidArgument(
                f"The API function {name}() takes {parameter.name!r} by position only, but the parts come by keyword: "
                "leave out the `/` after it."
            )
        if parameter.name in parts:
            continue
        annotation = hints.get(parameter.name)
        annotated = _is_class(annotation) and issubclass(annotation, Context)
        called = parameter.name in _CONTEXT_NAMES and not (_is_class(annotation) and not annotated)
        if context is not None or not (annotated or called):
            raise InvalidArgument(
                f"The API function {name}() takes {parameter.name!r}, which is none of the parts {names}"
                + (
                    f", and its Context is {context!r}."
                    if context
                    else "; the Context is called `ctx` or annotated as adapter.Context."
                )
            )
        context = parameter.name
    return context


def _check_annotation(name: str, annotation: Any, descriptor: IODescriptor[Any], source: str) -> None:
    expected = descriptor.python_type()
    if _is_class(annotation) and not issubclass(annotation, expected) and not issubclass(expected, annotation):
        raise InvalidArgument(
            f"{name}() takes {annotation.__name__}, but its input {type(descriptor).__name__} makes "
            f"{expected.__name__} of {source}."
        )


def _is_class(annotation: Any) -> TypeGuard[type]:
    # typing.Any is a class from Python 3.11 on; before, dict[str, int] says that it is one
    return isinstance(annotation, type) and annotation is not Any and typing.get_origin(annotation) is None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # a string annotation that names what is not imported
        return {}

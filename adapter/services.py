"""Services: a name, the runners it needs, the APIs it offers, and hooks around its life."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from adapter.context import Context
from adapter.exceptions import AlreadyExists, InvalidArgument, StateException
from adapter.io.base import IODescriptor
from adapter.model import Model
from adapter.runner import Runner
from adapter.tag import valid_name

F = TypeVar("F", bound=Callable[..., Any])

RESERVED = frozenset({"index", "swagger", "docs", "metrics", "healthz", "livez", "readyz", "static_content"})


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

    @property
    def needs_ctx(self) -> bool:
        return self.ctx_param is not None

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)


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
        self.import_string: str | None = None

    @property
    def doc(self) -> str:
        return "\n\n".join(f"{api.name}: {api.doc}" for api in self.apis.values() if api.doc)

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

        A plain function runs on a thread, an `async def` one on the event loop. Its first parameter is what `input`
        makes of the body; a second one, of any name, is the Context. `doc` (or the docstring) goes into OpenAPI.
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

    def _route(self, name: str, route: str | None) -> str:
        given = name if route is None else route
        path = "/" + given.removeprefix("/")
        if not path.strip("/") or path.startswith(("//", "/:")) or any(c in path for c in "?# {}"):
            raise InvalidArgument(f"{given!r} cannot be a route: write a path such as '/v1/classify'.")
        if path.strip("/").split("/")[0] in RESERVED or path == "/docs.json":
            raise InvalidArgument(f"{path!r} cannot be a route: the server uses it.")
        for other in self.apis.values():
            if other.route == path:
                raise AlreadyExists(f"The route {path!r} belongs to the API {other.name!r} already.")
        return path

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
            return f'adapter.Service(name="{self.name}", import_str="{self.import_string}")'
        return f'adapter.Service(name="{self.name}", runners=[{", ".join(r.name for r in self.runners)}])'


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
    name = getattr(function, "__name__", repr(function))
    parameters: Sequence[inspect.Parameter] = [
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
    hints = _hints(function)
    expected, annotation = descriptor.python_type(), hints.get(parameters[0].name)
    if _is_class(annotation) and not issubclass(annotation, expected) and not issubclass(expected, annotation):
        raise InvalidArgument(
            f"{name}() takes {annotation.__name__}, but its input {type(descriptor).__name__} makes "
            f"{expected.__name__} of a request."
        )
    if len(parameters) == 1:
        return None
    context = hints.get(parameters[1].name, Context)
    if _is_class(context) and not issubclass(context, Context):
        raise InvalidArgument(
            f"The second parameter of {name}() is the Context, so {parameters[1].name!r} cannot be {context.__name__}."
        )
    return parameters[1].name


def _is_class(annotation: Any) -> TypeGuard[type]:
    # typing.Any is a class from Python 3.11 on; before, dict[str, int] says that it is one
    return isinstance(annotation, type) and annotation is not Any and typing.get_origin(annotation) is None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # a string annotation that names what is not imported
        return {}

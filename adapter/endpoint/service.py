"""The class that an endpoint is: what to subclass, and what the signatures of its methods say."""

from __future__ import annotations

import abc
import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, create_model
from pydantic.errors import PydanticUserError

from adapter.endpoint.types import File
from adapter.exceptions import InvalidArgument, sentence

F = TypeVar("F", bound=Callable[..., Any])

VOLUME = "ADAPTER_VOLUME_PATH"
DEFAULT_VOLUME_PATH = "/adapter/cache"
INFER, FORM = "infer", "infer_form_data"


class Service(abc.ABC):
    """An endpoint: subclass it, load in `setup`, answer in `infer`; every other public method is an endpoint, too.

    >>> class Hello(Service):
    ...     def setup(self) -> None:  # noqa: B027  # to be overridden where it is needed
    ...         self.greeting = "Hello, "
    ...
    ...     def infer(self, name: str) -> str:
    ...         return self.greeting + name

    `setup` and the methods that answer run in a process of their own, one call at a time, on the instance as
    `on_server_startup` left it. Their annotations say what comes and what goes. Source: seed 004.
    """

    def setup(self) -> None:  # noqa: B027  # to be overridden where it is needed
        """Load what `infer` needs; runs once before the first call, and again when the process is replaced."""

    def store_assets(self) -> None:  # noqa: B027  # to be overridden where it is needed
        """Download what `setup` loads, into the volume; override it where a volume is needed."""

    def on_server_startup(self) -> None:  # noqa: B027  # to be overridden where it is needed
        """Runs in the server's own process, before `setup`."""

    def on_server_shutdown(self) -> None:  # noqa: B027  # to be overridden where it is needed
        """Runs in the server's own process, after the last call."""

    @abc.abstractmethod
    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a request to `/infer`."""


def path(path: str) -> Callable[[F], F]:
    """Serve a method under this path."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidArgument(f"A path begins with a slash, such as @path('/classify'); {path!r} does not.")

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def served(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        served.__path__ = path  # type: ignore[attr-defined]  # where the server looks for it
        return typing.cast(F, served)

    return decorate


class ResponseAnalytics(BaseModel):
    """How long a call took, in milliseconds."""

    inference_time_ms: float = Field(description="Milliseconds in the method itself")
    performance_time_ms: float = Field(description="Milliseconds from the request to its answer, waiting included")


@dataclass(frozen=True)
class Endpoint:
    """One method as it is served: its path, and models of what comes and what goes."""

    method: str
    path: str
    output: type[BaseModel]
    input: type[BaseModel] | None = None  # None for a form
    form: inspect.Signature | None = None

    ANALYTICS: ClassVar[str] = "analytics"


def endpoints_of(service: Service) -> list[Endpoint]:
    """The endpoints of a service: a form first, `/infer`, then the others by name.

    InvalidArgument where a signature does not say what comes or goes.
    """
    found = [_form(service)] if hasattr(service, FORM) else []
    found.append(_endpoint(INFER, service.infer, "/infer"))
    for name, method in _other_methods(service):
        where = getattr(method, "__path__", None) or "/" + name.replace("_", "-")
        found.append(_endpoint(name, method, where))
    taken: dict[str, str] = dict.fromkeys(("/", "/healthcheck", "/docs", "/redoc", "/openapi.json"), "the server")
    for endpoint in found:
        if endpoint.path in taken:
            raise InvalidArgument(
                f"{endpoint.path} is served by {taken[endpoint.path]}: give {endpoint.method}() another @path."
            )
        taken[endpoint.path] = f"{endpoint.method}()"
    return found


def _other_methods(service: Service) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods that its class adds.

    Only the class is asked: properties may need what `setup` makes, and what `setup` keeps in an attribute may be a
    method of something else.
    """
    cls = type(service)
    reserved = {*dir(Service), FORM}
    for name in dir(cls):
        written = inspect.getattr_static(cls, name, None)
        served = not name.startswith("_") and name not in reserved
        if served and (inspect.isfunction(written) or isinstance(written, classmethod)):
            yield name, written.__get__(service, cls)


def stores_assets(service: Service) -> bool:
    """Whether the service has assets to store: it overrides `store_assets`."""
    return type(service).store_assets is not Service.store_assets


def volume_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where the volume is, as ADAPTER_VOLUME_PATH says."""
    return environ.get(VOLUME) or DEFAULT_VOLUME_PATH


def volume_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that let libraries keep what they download in the volume."""
    volume = volume_path(environ)
    return {
        "HUGGINGFACE_HUB_CACHE": os.path.join(volume, "huggingface_hub_cache"),
        "TORCH_HOME": os.path.join(volume, "torch_home"),
    }


def _endpoint(name: str, method: Callable[..., Any], where: str) -> Endpoint:
    signature = _signature(name, method)
    if not signature.parameters:
        raise InvalidArgument(f"{name}() takes no argument; an endpoint takes at least one.")
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.annotation is parameter.empty:
            raise InvalidArgument(
                f"{name}() says no type for {parameter.name!r}: write it as `{parameter.name}: str`, for example. A "
                f"public method is an endpoint; one that is not meant to be begins with an underscore."
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    return Endpoint(name, where, output=_output(name, signature), input=_model(name, "Input", fields))


def _form(service: Service) -> Endpoint:
    method = getattr(service, FORM)
    where = getattr(method, "__path__", None)
    if where is None or where == "/infer":
        raise InvalidArgument(f"{FORM}() needs a path of its own: decorate it with @path('/infer-form'), for example.")
    signature = _signature(FORM, method)
    if not signature.parameters:
        raise InvalidArgument(f"{FORM}() takes no argument; it takes at least one, of type File or str.")
    for parameter in signature.parameters.values():
        if parameter.annotation not in (File, str):
            raise InvalidArgument(f"{FORM}() takes arguments of type File or str; {str(parameter)!r} is neither.")
    return Endpoint(FORM, where, output=_output(FORM, signature), form=signature)


def _signature(name: str, method: Callable[..., Any]) -> inspect.Signature:
    try:
        signature = inspect.signature(method, eval_str=True)
    except Exception as error:  # an annotation in quotes is code of the user's
        raise InvalidArgument(f"The annotations of {name}() cannot be read: {sentence(error)}.") from error
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            how = " by position only" if parameter.kind is parameter.POSITIONAL_ONLY else ""
            raise InvalidArgument(f"{name}() takes {parameter}{how}; an endpoint names every argument.")
    return signature


def _output(name: str, signature: inspect.Signature) -> type[BaseModel]:
    if signature.return_annotation is signature.empty:
        raise InvalidArgument(f"{name}() does not say what it returns: write `-> str`, for example.")
    fields = {"output": (signature.return_annotation, None), Endpoint.ANALYTICS: (ResponseAnalytics, None)}
    return _model(name, "Output", fields)


def _model(name: str, kind: str, fields: dict[str, Any]) -> type[BaseModel]:
    try:
        model: type[BaseModel] = create_model(kind, __module__=__name__, **fields)
    except (PydanticUserError, NameError, TypeError) as error:
        raise InvalidArgument(f"{name}() has an annotation that pydantic cannot describe: {sentence(error)}") from error
    return model

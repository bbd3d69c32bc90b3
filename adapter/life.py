"""A class-based service in use by one application: its objects, their hooks, and its APIs bound to them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter import hosted
from adapter.context import Context
from adapter.dependency import Far, Near, hooks_of
from adapter.io.upload import UploadedFile
from adapter.runner import Runner
from adapter.services import API, Life, awaited, ended

if TYPE_CHECKING:
    from adapter.classes import ClassService, Method

ALIVE, READY = "__is_alive__", "__is_ready__"
_COPIED_BYTES = 1 << 20

logger = logging.getLogger("adapter.server")


class ClassLife(Life):
    """The objects of a class and of those that it depends on, one of each in this application.

    What is hosted on Triton has no object here: its APIs call its runner.
    """

    def __init__(self, service: ClassService[Any], state: Mapping[str, Any]) -> None:
        super().__init__(service)
        self._service = service
        self._state = state
        self._begun: list[tuple[ClassService[Any], Any]] = []
        bound = {method.api: self._bound(method) for method in service.methods.values()}
        self.apis: Mapping[str, API] = {name: replace(api, func=bound[name]) for name, api in service.apis.items()}

    # ---- hooks ------------------------------------------------------------------------------------------------------

    async def start(self, context: Context) -> None:
        """Make the objects, those that are used before those that use them, each with its start-up hooks."""
        loop = asyncio.get_running_loop()
        made: dict[ClassService[Any], Any] = {}
        for service in self._service.every(in_front=True):
            if service is not self._service and service.options.config[("workers",)] != 1 and not service.hosted:
                logger.warning(
                    "`workers` of %s has no effect here: each worker of %s has one object of it.",
                    service.inner.__name__,
                    self._service.inner.__name__,
                )
            if service.runner is not None:
                made[service] = Far(service.inner.__name__, _calls(service, service.runner))
                continue
            used = {name: made[dependency.service] for name, dependency in service.dependencies.items()}
            instance = hosted.made(service.inner, used)
            if service is self._service:
                self.instance = instance
            made[service] = Near(instance, loop)
            self._begun.append((service, instance))
            for name in hooks_of(service.inner, hosted.STARTUP):
                await awaited(getattr(instance, name)())
        if self._service.hosted:
            self.instance = made[self._service]  # for routes of mounted applications
        await super().start(context)

    async def stop(self, context: Context) -> None:
        await super().stop(context)
        while self._begun:
            service, instance = self._begun.pop()
            for name in hooks_of(service.inner, hosted.SHUTDOWN):
                await ended(getattr(instance, name))

    # ---- health -----------------------------------------------------------------------------------------------------

    async def alive(self) -> bool:
        return all([await _says(instance, ALIVE) for _, instance in self._asked()])

    async def not_ready(self) -> str:
        for service, instance in self._asked():
            if not await _says(instance, READY):
                return f"{service.inner.__name__} says that it is not ready."
        return ""

    def _asked(self) -> list[tuple[ClassService[Any], Any]]:
        far = [(s, s.runner) for s in self._service.every(in_front=True) if s.runner is not None]
        return [*self._begun, *far]

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _bound(self, method: Method) -> Callable[..., Any]:
        """The function that the server calls: with the arguments of a request, on the object of this application."""
        if self._service.runner is not None:
            return self._far(method, self._service.runner)
        function = method.function
        if method.simple:
            return self._simple(function)
        if inspect.iscoroutinefunction(function):

            async def call_async(*args: Any, **kwargs: Any) -> Any:
                given, named = (
                    await asyncio.to_thread(_arguments, method, args, kwargs)
                    if method.paths
                    else (_arguments(method, args, kwargs))
                )
                return await function(self.instance, *given, **named)

            return call_async

        def call(*args: Any, **kwargs: Any) -> Any:
            given, named = _arguments(method, args, kwargs)
            return function(self.instance, *given, **named)

        return call

    def _simple(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def call_async(*args: Any, **kwargs: Any) -> Any:
                return await function(self.instance, *args, **kwargs)

            return call_async

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):

            async def begin(*args: Any, **kwargs: Any) -> Any:
                return function(self.instance, *args, **kwargs)  # nothing runs before its first step

            return begin

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(self.instance, *args, **kwargs)

        return call

    def _far(self, method: Method, runner: Runner) -> Callable[..., Any]:
        called = getattr(runner, method.name)
        if method.output_streams:

            async def stream(*args: Any, **kwargs: Any) -> Any:
                _, given, named = await _travelling(method, args, kwargs)
                return called.async_stream(*given, **named)

            return stream
        if method.shape.plain and method.rest is None:
            call: Callable[..., Any] = called.async_run
            return call

        async def complete(*args: Any, **kwargs: Any) -> Any:
            context, given, named = await _travelling(method, args, kwargs)
            answer = await called.async_run(*given, **named)
            if method.shape.plain:
                return answer
            if context is not None and (response := answer.get("response")) is not None:
                _apply(response, context)
            value = answer["value"]
            if method.returns_path and hosted.is_file(value) and context is not None:
                return await asyncio.to_thread(hosted.written, value, context.temp_dir)
            return value

        return complete


async def _says(found: Any, question: str) -> bool:
    """What an object, or the runner of a hosted class, says of its health; an error is a no."""
    try:
        if isinstance(found, Runner):
            if question not in found.spec.methods:
                return True
            return bool(await getattr(found, question).async_run())
        method = getattr(found, question, None)
        return method is None or bool(await awaited(method()))
    except Exception:
        logger.exception("%s failed.", question)
        return False


def _calls(service: ClassService[Any], runner: Runner) -> Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    found = {}
    for name, method in service.methods.items():
        if method.shape.plain:
            called = getattr(runner, name)
            streams = method.output_streams
            found[name] = (called.stream, called.async_stream) if streams else (called.run, called.async_run)
    return found


def _arguments(method: Method, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """What a method is called with, from the arguments of a request and its Context."""
    context, args = _context(method, args, kwargs)
    if method.paths and context is not None:
        args = [_paths(value, context) for value in args]
        kwargs.update({name: _paths(kwargs[name], context) for name in method.paths if name in kwargs})
    if method.rest is not None:
        args = [*(kwargs.pop(name) for name in method.positional), *kwargs.pop(method.rest)]
    if method.context is not None:
        kwargs[method.context] = context
    return args, kwargs


def _context(method: Method, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Context | None, Sequence[Any]]:
    if method.simple and not method.returns_path:
        return None, args
    if method.root:
        return (args[1] if len(args) > 1 else None), args[:1]
    return kwargs.pop(method.context or hosted.CONTEXT, None), args


def _paths(value: Any, context: Context) -> Any:
    """Uploads as files in the folder of the request, with the endings that they had."""
    if isinstance(value, (list, tuple)):
        return type(value)(_paths(item, context) for item in value)
    if not isinstance(value, UploadedFile):
        return value
    name = Path(value.name).name
    path = Path(tempfile.mkdtemp(dir=context.temp_dir)) / (name if name not in ("", "<request body>") else "body")
    with path.open("wb") as file:
        shutil.copyfileobj(value, file, _COPIED_BYTES)
    return path


async def _travelling(
    method: Method, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Context | None, Sequence[Any], dict[str, Any]]:
    """The arguments of a request as they travel to Triton."""
    context, args = _context(method, args, kwargs)
    if method.paths:
        args = [_file(value) for value in args]
        kwargs = {name: _file(value) if name in method.paths else value for name, value in kwargs.items()}
    if method.rest is not None:
        args = [*(kwargs.pop(name) for name in method.positional), *kwargs.pop(method.rest)]
    if method.context is not None and context is not None:
        kwargs[hosted.CONTEXT] = _record(context)
    return context, args, kwargs


def _file(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_file(item) for item in value]
    return {"adapter_file": value.name, "data": value.read()} if isinstance(value, UploadedFile) else value


def _record(context: Context) -> dict[str, Any]:
    """What travels of a Context."""
    request = context.request
    return {
        "method": request.method,
        "url": str(request.url),
        "headers": dict(request.headers),
        "query_params": dict(request.query_params),
        "path_params": {name: str(value) for name, value in request.path_params.items()},
        "cookies": dict(request.cookies),
    }


def _apply(response: Mapping[str, Any], context: Context) -> None:
    context.response.status_code = response["status_code"]
    context.response.headers.update(response["headers"])
    for cookie in response["cookies"]:
        context.response.set_cookie(**cookie)

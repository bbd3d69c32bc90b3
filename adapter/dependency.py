"""Services that use other services: `adapter.depends(Other)` as an attribute of a class."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from adapter.exceptions import StateException

API, HOOK = "__adapter_api__", "__adapter_hook__"


class Dependency:
    """Stands in a class for an object of another service; a worker puts the object itself into its place.

    Where nobody does (the class is called in a test, or runs inside Triton), it is made when it is first used.
    """

    def __init__(self, cls: type, service: Any = None) -> None:
        self.cls = cls
        self.service = service
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        found = vars(instance)[self.name] = Near(self.cls())
        return found

    def __reduce__(self) -> Any:
        return _without_service, (self.cls, self.name)

    def __repr__(self) -> str:
        return f"adapter.depends({self.cls.__name__})"


def _without_service(cls: type, name: str) -> Dependency:
    dependency = Dependency(cls)
    dependency.name = name
    return dependency


class Near:
    """Another service's object in this process: `other.method(x)`, `await other.to_async.method(x)`.

    A plain method runs where it is called, and with `to_async` on a thread, so that the event loop goes on. An
    `async def` method is awaited on an event loop; a thread that calls it waits until the worker's loop has run it.
    """

    def __init__(self, instance: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._instance = instance
        self._loop = loop
        self.to_async = _Near(instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._instance, name)
        if not callable(found) or not inspect.iscoroutinefunction(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                if self._loop is None or not self._loop.is_running():
                    return asyncio.run(found(*args, **kwargs))
                return asyncio.run_coroutine_threadsafe(found(*args, **kwargs), self._loop).result()
            return found(*args, **kwargs)

        return call


class _Near:
    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._instance, name)
        if inspect.isasyncgenfunction(found):
            return found  # type: ignore[no-any-return]  # what it is called with and gives is the person's

        async def call(*args: Any, **kwargs: Any) -> Any:
            if inspect.iscoroutinefunction(found):
                return await found(*args, **kwargs)
            return await asyncio.to_thread(found, *args, **kwargs)

        return call


class Far:
    """Another service's object inside Triton, all workers' calls to it together; its APIs can be called as on `Near`.

    `calls` are coroutine functions by the name of the method, `streams` those that give an async iterator.
    """

    def __init__(
        self,
        name: str,
        calls: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]],
    ) -> None:
        self._name = name
        self._calls = calls
        self.to_async = _Far(name, calls)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        plain, _ = _of(self._name, self._calls, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return plain(*args, **kwargs)
            raise StateException(
                f"`{name}(…)` of the service {self._name!r} waits for Triton, which would stop every other request of "
                f"this worker: in an `async def` method write `await …to_async.{name}(…)`."
            )

        return call


class _Far:
    def __init__(self, name: str, calls: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]) -> None:
        self._name = name
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _of(self._name, self._calls, name)[1]


def _of(
    service: str, calls: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]], name: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if name not in calls:
        raise AttributeError(
            f"The service {service!r} is hosted on Triton, where only its APIs can be called: {', '.join(calls)}; "
            f"{name!r} is none of them."
        )
    return calls[name]


def dependencies_of(cls: type) -> dict[str, Dependency]:
    """The services that a class uses, by the names of its attributes."""
    found: dict[str, Dependency] = {}
    for parent in reversed(cls.__mro__):
        for name, value in vars(parent).items():
            if isinstance(value, Dependency):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def hooks_of(cls: type, kind: str) -> list[str]:
    """The names of the hooks of a class: inherited ones first, each class's in the order of their definition."""
    found: dict[str, bool] = {}
    for parent in reversed(cls.__mro__):
        for name, value in vars(parent).items():
            function = getattr(value, "__func__", value)
            if kind in getattr(function, HOOK, ()):
                found[name] = True
            else:
                found.pop(name, None)  # a class hides what it inherits
    return list(found)

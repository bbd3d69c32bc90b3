"""Routes of a mounted FastAPI application that stand in a class: they get the object of the class as `self`."""

from __future__ import annotations

import inspect
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.services import Life, Service

_INSTANCE = "adapter.instance"  # the key in the scope of the object


def give_self(service: Service) -> None:
    """Have FastAPI take `self` of routes in the class from where `WithSelf` puts it, and not from the query."""
    functions = {id(f) for parent in service.classes for f in vars(parent).values() if inspect.isfunction(f)}
    for mount in service.mounts:
        if not isinstance(mount.app, FastAPI):
            continue
        own = [r for r in mount.app.router.routes if _endpoint(r) in functions]
        if not own:
            continue
        router = APIRouter()
        for route in own:
            mount.app.router.routes.remove(route)
            _take_self(route.endpoint)  # type: ignore[attr-defined]  # both kinds have one
            router.routes.append(route)
        mount.app.include_router(router)


def _endpoint(route: Any) -> int:
    found = isinstance(route, (APIRoute, APIWebSocketRoute)) and not hasattr(route.endpoint, "__adapter_self__")
    return id(route.endpoint) if found else 0


def _take_self(function: Any) -> None:
    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    keyword = first.replace(kind=first.KEYWORD_ONLY, default=Depends(_instance))
    more = [p for p in others if p.kind is p.VAR_KEYWORD]
    # the object comes by keyword, whatever has a default before it
    function.__signature__ = signature.replace(parameters=[*(p for p in others if p not in more), keyword, *more])
    function.__adapter_self__ = True


def _instance(connection: HTTPConnection) -> Any:
    return connection.scope[_INSTANCE]


class WithSelf:
    """An application that is called with the object of the class in its scope."""

    def __init__(self, app: ASGIApp, life: Life) -> None:
        self._app = app
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_INSTANCE] = self._life.instance
        await self._app(scope, receive, send)

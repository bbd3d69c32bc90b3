"""The application of a service: its APIs behind the edge, health routes, mounts, hooks and runners."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.context import Context
from adapter.exceptions import AdapterError
from adapter.runner import LocalTransport, Runner
from adapter.server import swagger
from adapter.server.edge import ENDPOINT, Edge, Log
from adapter.server.endpoint import Endpoint, error_response
from adapter.server.health import Health
from adapter.server.metrics import CONTENT_TYPE, ServerMetrics
from adapter.server.openapi import document
from adapter.server.threads import Threads
from adapter.server.tracing import Tracer
from adapter.services import Service
from adapter.settings import Cors, Settings
from adapter.triton.client import CallMetrics, CallTracer, TritonClient, connect
from adapter.triton.manifest import Manifest

logger = logging.getLogger("adapter.server")

DEFAULTS = Settings()
_READY_FOR_S = 1.0  # how long an answer to "is Triton ready?" is believed


class Runners(Protocol):
    """Gives the runners of a service their transports, for as long as the application lives."""

    async def start(self, service: Service) -> None: ...

    async def not_ready(self) -> str:
        """Why calls would fail now; "" when they would not."""

    async def stop(self) -> None: ...


class LocalRunners:
    """All runners in this process: `adapter serve --development`, and embedded ones."""

    def __init__(self) -> None:
        self._started: list[Runner] = []  # and not those that another application has started

    async def start(self, service: Service) -> None:
        await self._run_here(service.runners)

    async def _run_here(self, runners: Iterable[Runner]) -> None:
        for runner in runners:
            runner.connect(await asyncio.to_thread(LocalTransport, runner.spec, serving=True))
            self._started.append(runner)

    async def not_ready(self) -> str:
        return ""

    async def stop(self) -> None:
        while self._started:
            self._started.pop().destroy()


class TritonRunners(LocalRunners):
    """Runners in Triton, as a manifest places them; embedded ones in this process."""

    def __init__(
        self, url: str, manifest: Manifest, *, metrics: CallMetrics | None = None, tracer: CallTracer | None = None
    ) -> None:
        super().__init__()
        self._url = url
        self._manifest = manifest
        self._metrics = metrics
        self._tracer = tracer
        self._client: TritonClient | None = None
        self._expected: dict[str, str] = {}
        self._asked, self._reason = -math.inf, ""

    async def start(self, service: Service) -> None:
        self._client = TritonClient(self._url)
        for runner in service.runners:
            if not runner.spec.embedded:
                entries = self._manifest.entries(service.name, runner.name)
                self._expected |= connect(self._client, runner, entries, metrics=self._metrics, tracer=self._tracer)
                self._started.append(runner)
        await self._run_here(runner for runner in service.runners if runner.spec.embedded)

    async def not_ready(self) -> str:
        if self._client is None:
            return "This worker is starting."
        if time.monotonic() - self._asked > _READY_FOR_S:
            self._reason = await self._client.not_ready(self._expected)
            self._asked = time.monotonic()
        return self._reason

    async def stop(self) -> None:
        await super().stop()
        if self._client is not None:
            await self._client.close()


def create_app(
    service: Service,
    runners: Runners,
    settings: Settings = DEFAULTS,
    *,
    log: Log | None = None,
    metrics: ServerMetrics | None = None,
    tracer: Tracer | None = None,
) -> Edge:
    """Build the application of a service: its APIs behind the edge, and FastAPI with every other route.

    From the outermost: the edge, the service's middlewares, CORS, then an endpoint or FastAPI.
    """
    server = settings.api_server
    state: dict[str, Any] = {}
    threads = Threads(server.threads)
    health = Health(threads, runners.not_ready)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if tracer is not None:
                stack.callback(tracer.close)
            if metrics is not None:
                stack.callback(metrics.close)
            stack.push_async_callback(runners.stop)
            await runners.start(service)
            if reason := await runners.not_ready():
                logger.warning("%s", reason)
            stack.callback(threads.stop)
            context = Context(state)
            stack.push_async_callback(_shut_down, service, context)
            for hook in service.startup_hooks:
                await _call(hook, context)
            for mount in service.mounts:
                if (
                    router := getattr(mount.app, "router", None)
                ) is not None:  # Starlette runs no lifespan below its own
                    await stack.enter_async_context(router.lifespan_context(mount.app))
            yield

    app = FastAPI(title=service.name, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes += [*_infrastructure(service, health, metrics), *swagger.routes(service)]
    for mount in service.mounts:
        app.mount(mount.path, mount.app, mount.name)
    app.add_exception_handler(HTTPException, _no_such_route(service))
    for kind in (AdapterError, Exception):  # FastAPI raises again what only the second one is for
        app.add_exception_handler(kind, _failed)
    with_cors = functools.partial(_with_cors, cors=server.http.cors)
    inner = with_cors(_Dispatch(app))
    for middleware, options in reversed(service.middlewares):
        inner = middleware(inner, **options)
    endpoints = {api.route: Endpoint(api, state, threads) for api in service.apis.values()}
    return Edge(inner, endpoints, server, with_cors=with_cors, health=health, log=log, metrics=metrics, tracer=tracer)


class _Dispatch:
    """Calls the endpoint that the edge found, else the application with its other routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (scope.get(ENDPOINT) or self._app)(scope, receive, send)


def _with_cors(app: ASGIApp, cors: Cors) -> ASGIApp:
    if not cors.enabled:
        return app
    given = {
        "allow_origins": cors.access_control_allow_origins,
        "allow_origin_regex": cors.access_control_allow_origin_regex,
        "allow_credentials": cors.access_control_allow_credentials,
        "allow_methods": cors.access_control_allow_methods,
        "allow_headers": cors.access_control_allow_headers,
        "expose_headers": cors.access_control_expose_headers,
        "max_age": cors.access_control_max_age,
    }
    options: dict[str, Any] = {"allow_methods": ("GET", "POST"), **{k: v for k, v in given.items() if v is not None}}
    return CORSMiddleware(app, **options)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _shut_down(service: Service, context: Context) -> None:
    for hook in service.shutdown_hooks:
        try:
            await _call(hook, context)
        except Exception:
            logger.exception("The shutdown hook %s failed.", getattr(hook, "__name__", hook))


async def _call(hook: Callable[..., Any], *args: Any) -> None:
    result = hook(*args)
    if inspect.isawaitable(result):
        await result


# ---- the other routes ---------------------------------------------------------------------------------------------


def _infrastructure(service: Service, health: Health, metrics: ServerMetrics | None) -> list[Route]:
    openapi = document(service)

    async def alive(request: Request) -> Response:
        return PlainTextResponse("\n")

    async def ready(request: Request) -> Response:
        reason = await health.not_ready()
        return JSONResponse({"error": reason}, status_code=503) if reason else PlainTextResponse("\n")

    async def docs(request: Request) -> Response:
        return JSONResponse(openapi)

    routes = [
        Route("/livez", alive),
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/docs.json", docs),
    ]
    if metrics is not None:
        counted = metrics

        async def page(request: Request) -> Response:
            return Response(await counted.page(), headers={"content-type": CONTENT_TYPE})

        routes.append(Route("/metrics", page))
    return routes


def _no_such_route(service: Service) -> Callable[[Request, Exception], Response]:
    offered = ", ".join(f"POST {api.route}" for api in service.apis.values()) or "no API"

    def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 404:
            text = f"There is nothing at {path}; this service offers {offered}."
        elif error.status_code == 405:
            text = f"{path} does not answer {request.method}; this service offers {offered}."
        else:
            text = str(error.detail)
        return JSONResponse({"error": text}, status_code=error.status_code, headers=error.headers)

    return handle

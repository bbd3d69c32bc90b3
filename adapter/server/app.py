"""The application of a service: its APIs behind the edge, health routes, mounts, hooks and runners."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
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
from adapter.runner import LocalTransport, Runner, RunnerSpec
from adapter.server import swagger
from adapter.server.affinity import Affinity
from adapter.server.edge import ENDPOINT, Edge, Log
from adapter.server.elsewhere import Elsewhere
from adapter.server.endpoint import Endpoint, error_response
from adapter.server.guard import Guard, tokens_of
from adapter.server.health import Health
from adapter.server.metrics import CONTENT_TYPE, ServerMetrics
from adapter.server.openapi import document
from adapter.server.tasks import TaskRoute, Tasks
from adapter.server.tasks import routes as task_routes
from adapter.server.threads import Threads
from adapter.server.tracing import Tracer
from adapter.server.views import WithSelf
from adapter.services import Life, Service
from adapter.settings import Cors, Settings, Triton
from adapter.triton.address import is_address
from adapter.triton.client import TritonClient
from adapter.triton.existing import ExistingTransport
from adapter.triton.existing import Runner as ExistingRunner
from adapter.triton.manifest import Manifest
from adapter.triton.notice import Notice, Notices
from adapter.triton.routes import CallMetrics, CallTracer
from adapter.triton.transport import connect
from adapter.tuning import tailored

logger = logging.getLogger("adapter.server")

DEFAULTS = Settings()
_READY_FOR_S = 1.0  # how long an answer to "is Triton ready?" is believed


class Runners(Protocol):
    """Gives the runners of a service their transports, for as long as the application lives."""

    async def start(self, service: Service) -> None: ...

    async def not_ready(self) -> str:
        """Why calls would fail now; "" when they would not."""

    def abandon(self, identity: str) -> None:
        """End the calls of an HTTP request whose client has gone."""

    async def stop(self) -> None: ...


class LocalRunners:
    """All runners in this process: `adapter serve --development`, and embedded ones."""

    def __init__(
        self,
        triton: Triton = DEFAULTS.triton,
        *,
        metrics: CallMetrics | None = None,
        tracer: CallTracer | None = None,
    ) -> None:
        """`triton` is how Tritons are called that code names."""
        self._started: list[Runner] = []  # and not those that another application has started
        self._elsewhere = Elsewhere(triton, metrics=metrics, tracer=tracer)

    async def start(self, service: Service) -> None:
        await self._run_here(service, service.runners)

    async def _run_here(self, service: Service, runners: Iterable[Runner]) -> None:
        for runner in runners:
            if runner.spec.existing is None:
                runner.connect(await asyncio.to_thread(LocalTransport, runner.spec, serving=True))
            else:
                self._elsewhere.connect(runner, service)
            self._started.append(runner)

    async def not_ready(self) -> str:
        return await self._elsewhere.not_ready()

    def abandon(self, identity: str) -> None:
        self._elsewhere.abandon(identity)

    async def stop(self) -> None:
        while self._started:
            self._started.pop().destroy()
        await self._elsewhere.close()


class TritonRunners(LocalRunners):
    """Runners in Triton, as a manifest places them; embedded ones in this process."""

    def __init__(
        self,
        manifest: Manifest,
        triton: Triton = DEFAULTS.triton,
        *,
        engine: str | None = None,
        metrics: CallMetrics | None = None,
        tracer: CallTracer | None = None,
        notices: Notices | None = None,
    ) -> None:
        """`triton` says where Tritons are that run elsewhere.

        `engine` is where one of our own is at first; `notices` say where it is now, and which entries cannot be called.
        """
        super().__init__(triton, metrics=metrics, tracer=tracer)
        self._manifest = manifest
        self._engine = engine
        self._metrics = metrics
        self._tracer = tracer
        self._notices = notices
        self._notice = Notice()
        self._client: TritonClient | None = None  # of the engine
        self._began = False
        self._asked, self._reason = -math.inf, ""

    async def start(self, service: Service) -> None:
        if self._engine is not None:
            self._client = TritonClient(self._engine)
        natives = self._manifest.natives(service.name)
        for runner in service.runners:
            if self._is_here(runner.spec):
                continue
            client = self._client or self._elsewhere.client(runner.spec, service)
            entries = self._manifest.entries(service.name, runner.name)
            if isinstance(runner, ExistingRunner):
                runner.know(entries)
                runner.connect(ExistingTransport(client, runner.spec, metrics=self._metrics, tracer=self._tracer))
            else:
                connect(client, runner, entries, natives=natives, metrics=self._metrics, tracer=self._tracer)
            self._started.append(runner)
        if self._client is not None and self._notices is not None:
            self._notices.follow(self._heard)
        await self._run_here(service, (runner for runner in service.runners if self._is_here(runner.spec)))
        self._began = True

    def _is_here(self, runner: RunnerSpec) -> bool:
        """Whether a runner has no entries in the manifest: it is in this process, or in a Triton that code names."""
        return runner.embedded or (runner.existing is not None and is_address(runner.existing))

    def _heard(self, notice: Notice) -> None:
        if self._client is None:
            return
        if notice.url is not None and notice.url != self._engine:
            self._client.move(notice.url)
            self._engine = notice.url
        self._client.refuse(notice.refused)
        self._notice = notice
        self._asked = -math.inf

    async def not_ready(self) -> str:
        if not self._began:
            return "This worker is starting."
        if self._client is not None:
            for entry in self._client.expected:
                if reason := self._notice.refused.get(entry) or self._notice.not_ready.get(entry):
                    return reason
            if time.monotonic() - self._asked > _READY_FOR_S:
                self._reason = await self._client.not_ready()
                self._asked = time.monotonic()
        return self._reason or await self._elsewhere.not_ready()

    def abandon(self, identity: str) -> None:
        super().abandon(identity)
        if self._client is not None:
            self._client.abandon(identity)

    async def stop(self) -> None:
        await super().stop()
        if self._client is not None:
            if self._notices is not None:
                self._notices.leave()
            await self._client.close()


def create_app(
    service: Service,
    runners: Runners,
    settings: Settings = DEFAULTS,
    *,
    log: Log | None = None,
    metrics: ServerMetrics | None = None,
    tracer: Tracer | None = None,
    tasks_folder: Path | None = None,
) -> Edge:
    """Build the application of a service: its APIs behind the edge, and FastAPI with every other route.

    Tasks are kept in `tasks_folder`, which several applications of one service may share, or as long as this one lives.

    From the outermost: the edge, the service's middlewares, CORS, then an endpoint or FastAPI.
    """
    settings = tailored(settings, service)
    server = settings.api_server
    state: dict[str, Any] = {}
    life = service.life(state)

    async def not_ready() -> str:
        return await runners.not_ready() or await life.not_ready()

    threads = Threads(server.threads)
    health = Health(threads, not_ready)

    jobs = {name: api for name, api in life.apis.items() if api.task}
    working = Threads(server.threads)  # a task that runs long leaves the others to requests
    tasks = Tasks({name: Endpoint(api, state, working) for name, api in jobs.items()}, jobs, server.threads)

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
            if server.affinity == "auto" and not all(api.is_async for api in life.apis.values()):
                affinity = Affinity(threads)
                stack.callback(affinity.stop)
                affinity.start()
            context = Context(state)
            stack.push_async_callback(life.stop, context)
            await life.start(context)
            for mount in life.mounts:
                if (
                    router := getattr(mount.app, "router", None)
                ) is not None:  # Starlette runs no lifespan below its own
                    await stack.enter_async_context(router.lifespan_context(mount.app))
            if jobs:
                stack.callback(working.stop)
                stack.push_async_callback(tasks.stop)
                folder = tasks_folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="adapter-tasks-"))
                await tasks.start(Path(folder))
            yield

    app = FastAPI(title=service.name, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    tokens = tokens_of(server)
    openapi = document(service, with_tokens=tokens is not None)
    app.router.routes += [*_infrastructure(service, life, health, metrics, openapi), *swagger.routes(service)]
    for mount in life.mounts:
        app.mount(mount.path, WithSelf(mount.app, life) if service.classes else mount.app, mount.name)
    app.add_exception_handler(HTTPException, _no_such_route(service))
    for kind in (AdapterError, Exception):  # FastAPI raises again what only the second one is for
        app.add_exception_handler(kind, _failed)
    with_cors = functools.partial(_with_cors, cors=server.http.cors, with_tokens=tokens is not None)
    inner = with_cors(_Dispatch(app))
    for middleware, options in reversed(service.middlewares):
        inner = middleware(inner, **options)
    endpoints: dict[str, Endpoint | TaskRoute] = {
        api.route: Endpoint(api, state, threads) for api in life.apis.values()
    }
    endpoints |= task_routes(tasks, jobs)
    return Edge(
        inner,
        endpoints,
        server,
        with_cors=with_cors,
        health=health,
        log=log,
        metrics=metrics,
        tracer=tracer,
        abandon=runners.abandon,
        guard=Guard(tokens, page=swagger.sign_in()) if tokens is not None else None,
    )


class _Dispatch:
    """Calls the endpoint that the edge found, else the application with its other routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (scope.get(ENDPOINT) or self._app)(scope, receive, send)


def _with_cors(app: ASGIApp, cors: Cors, *, with_tokens: bool) -> ASGIApp:
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
    if with_tokens:
        options["allow_headers"] = (*options.get("allow_headers", ()), "Authorization")
    return CORSMiddleware(app, **options)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(error)


# ---- the other routes ---------------------------------------------------------------------------------------------


def _infrastructure(
    service: Service, life: Life, health: Health, metrics: ServerMetrics | None, openapi: dict[str, Any]
) -> list[Route]:
    async def alive(request: Request) -> Response:
        if await life.alive():
            return PlainTextResponse("\n")
        return JSONResponse({"error": f"{service.name} says that it is not alive."}, status_code=503)

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
            ready = not await health.not_ready()
            return Response(await counted.page(ready=ready), headers={"content-type": CONTENT_TYPE})

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

"""The FastAPI application of a service: one route for each API, health, and errors as JSON sentences."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol

import anyio
import anyio.to_thread
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.context import Context
from adapter.exceptions import (
    AdapterError,
    DeadlineExceeded,
    RemoteException,
    ServiceUnavailable,
    message_of,
    sentence,
    status_of,
)
from adapter.runner import LocalTransport, Runner
from adapter.server.openapi import document
from adapter.services import API, Service
from adapter.triton.client import TritonClient, connect, deadline, request_id
from adapter.triton.manifest import Manifest

logger = logging.getLogger("adapter.server")
access = logging.getLogger("adapter.access")

REQUEST_ID = "x-adapter-request-id"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_THREADS = 40
_READY_FOR_S = 1.0  # how long an answer to "is Triton ready?" is believed
_LONGEST_ID = 128


class Runners(Protocol):
    """Gives the runners of a service their transports, for as long as the application lives."""

    async def start(self, service: Service) -> None: ...

    async def not_ready(self) -> str:
        """Why calls would fail now; "" when they would not."""

    async def stop(self, service: Service) -> None: ...


class LocalRunners:
    """All runners in this process: `adapter serve --development`, and embedded ones."""

    async def start(self, service: Service) -> None:
        await _run_here(service.runners)

    async def not_ready(self) -> str:
        return ""

    async def stop(self, service: Service) -> None:
        for runner in service.runners:
            runner.destroy()


class TritonRunners:
    """Runners in Triton, as a manifest places them."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self._url = url
        self._manifest = manifest
        self._expected: dict[str, str] = {}
        self._asked, self._reason = -math.inf, ""

    async def start(self, service: Service) -> None:
        self._client = TritonClient(self._url)
        remote = [r for r in service.runners if not r.spec.embedded]
        self._expected = connect(self._client, service.name, remote, self._manifest)
        await _run_here(r for r in service.runners if r.spec.embedded)

    async def not_ready(self) -> str:
        if time.monotonic() - self._asked > _READY_FOR_S:
            self._reason = await self._client.not_ready(self._expected)
            self._asked = time.monotonic()
        return self._reason

    async def stop(self, service: Service) -> None:
        for runner in service.runners:
            runner.destroy()
        await self._client.close()


async def _run_here(runners: Iterable[Runner]) -> None:
    for runner in runners:
        runner.connect(await asyncio.to_thread(LocalTransport, runner.spec, serving=True))


def create_app(
    service: Service, runners: Runners, *, timeout_s: float = DEFAULT_TIMEOUT_S, threads: int = DEFAULT_THREADS
) -> FastAPI:
    """Build the application: middlewares, API routes, health routes, and the life of hooks and runners."""
    state: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await runners.start(service)
        if reason := await runners.not_ready():
            logger.warning("%s", reason)
        context = Context(state)
        try:
            for hook in service.startup_hooks:
                await _call(hook, context)
            yield
        finally:
            for hook in service.shutdown_hooks:
                try:
                    await _call(hook, context)
                except Exception:
                    logger.exception("The shutdown hook %s failed.", getattr(hook, "__name__", hook))
            await runners.stop(service)

    app = FastAPI(title=service.name, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.draining = False
    limiter = anyio.CapacityLimiter(threads)
    for api in service.apis.values():
        app.router.routes.append(
            Route(api.route, _endpoint(api, state, timeout_s, limiter), methods=["POST"], name=api.name)
        )
    app.router.routes += _infrastructure(service, runners, app)
    app.add_exception_handler(HTTPException, _no_such_route(service))
    app.add_middleware(_AccessLog)
    return app


async def _call(hook: Callable[..., Any], *args: Any) -> None:
    result = hook(*args)
    if inspect.isawaitable(result):
        await result


# ---- one API ------------------------------------------------------------------------------------------------------


def _endpoint(
    api: API, state: dict[str, Any], timeout_s: float, limiter: anyio.CapacityLimiter
) -> Callable[[Request], Awaitable[Response]]:
    read, write, function, name = api.input.from_http_request, api.output.to_http_response, api.func, api.ctx_param

    async def answer(request: Request) -> Response:
        value = await read(request)
        context = Context(state, request) if name is not None else None
        arguments = (value,) if context is None else (value, context)
        if api.is_async:
            result = await function(*arguments)
        else:
            result = await anyio.to_thread.run_sync(function, *arguments, limiter=limiter, abandon_on_cancel=True)
            if inspect.isawaitable(result):
                result = await result
        return await write(result, context)

    async def endpoint(request: Request) -> Response:
        identity = _request_id(request)
        request_id.set(identity)
        deadline.set(time.monotonic() + timeout_s)
        response: Response | None = None
        with anyio.move_on_after(timeout_s) as scope:
            try:
                response = await answer(request)
            except asyncio.CancelledError:  # grpc raises one of its own, which the scope does not know for its
                if not scope.cancel_called:
                    raise
            except (Exception, SystemExit) as error:  # noqa: BLE001  # the edge: whatever user code raises is answered
                response = error_response(error, api.name, identity)
        if response is None:
            late = DeadlineExceeded(f"/{api.name} did not answer within {timeout_s:g} seconds.")
            response = error_response(late, api.name, identity)
        response.headers[REQUEST_ID] = identity
        return response

    return endpoint


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if 0 < len(given) <= _LONGEST_ID and given.isprintable() and given.isascii() else uuid.uuid4().hex


def error_response(error: BaseException, api: str = "", identity: str = "") -> Response:
    """What a client sees of an error: adapter's own with status and message, any other as a fixed sentence and 500."""
    if isinstance(error, AdapterError) and not isinstance(error, RemoteException):
        status = status_of(error)
        if status >= 500 and not isinstance(error, (ServiceUnavailable, DeadlineExceeded)):
            logger.error("request %s to /%s: %s", identity, api, sentence(error))
        headers = {}
        if isinstance(error, ServiceUnavailable):
            headers["retry-after"] = str(max(1, math.ceil(getattr(error, "retry_after", 1.0))))
        return JSONResponse({"error": message_of(error)}, status_code=status, headers=headers)
    if isinstance(error, RemoteException):
        logger.error("request %s to /%s: the runner raised %s", identity, api, message_of(error))
    else:
        logger.error("request %s to /%s failed", identity, api, exc_info=error)
    text = f"The code of this service failed on the request; its log says why, under the request id {identity}."
    return JSONResponse({"error": text}, status_code=500)


# ---- the other routes ---------------------------------------------------------------------------------------------


def _infrastructure(service: Service, runners: Runners, app: FastAPI) -> list[Route]:
    openapi = document(service)

    async def alive(request: Request) -> Response:
        return PlainTextResponse("\n")

    async def ready(request: Request) -> Response:
        reason = "This worker is shutting down." if app.state.draining else await runners.not_ready()
        return JSONResponse({"error": reason}, status_code=503) if reason else PlainTextResponse("\n")

    async def docs(request: Request) -> Response:
        return JSONResponse(openapi)

    async def index(request: Request) -> Response:
        return RedirectResponse("docs.json")

    return [
        Route("/livez", alive),
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/docs.json", docs),
        Route("/", index),
    ]


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
        headers = {**(error.headers or {}), REQUEST_ID: _request_id(request)}
        return JSONResponse({"error": text}, status_code=error.status_code, headers=headers)

    return handle


class _AccessLog:
    """One line for each request: who asked what, what came back, how long it took."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not access.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status, headers = 500, {}

        async def watched(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message.get("headers", ()))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            asked = dict(scope["headers"])
            client = scope.get("client") or ("-", 0)
            access.info(
                "%s:%s (scheme=%s,method=%s,path=%s,type=%s,length=%s) (status=%s,type=%s,length=%s) %.3fms (id=%s)",
                *client,
                scope["scheme"],
                scope["method"],
                scope.get("raw_path", b"").decode("latin-1") or scope["path"],
                _text(asked, b"content-type"),
                _text(asked, b"content-length"),
                status,
                _text(headers, b"content-type"),
                _text(headers, b"content-length"),
                (time.perf_counter() - begun) * 1000,
                _text(headers, REQUEST_ID.encode()),
            )


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")

"""The server of an endpoint: its application, its states, and how it is loaded and run."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import json
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from types import FrameType
from typing import Any

import starlette.exceptions
import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile

from adapter.endpoint import fetching
from adapter.endpoint.compute import DIED, LONGEST_S, Compute, LocalCompute, TritonCompute
from adapter.endpoint.documenter import DocumentationFormat, MustacheGenerationResult, generate_usage_examples
from adapter.endpoint.hosted import FAILED, LAUNCHED, SET_UP
from adapter.endpoint.loading import is_store_assets_needed as is_store_assets_needed
from adapter.endpoint.loading import load_service as load_service
from adapter.endpoint.loading import (
    maybe_set_volume_environment_variables as maybe_set_volume_environment_variables,
)
from adapter.endpoint.service import (
    Endpoint,
    ResponseAnalytics,
    Service,
    endpoints_of,
)
from adapter.endpoint.types import File
from adapter.exceptions import AdapterError, ServiceUnavailable, StateException, message_of, sentence, status_of
from adapter.server.edge import Edge
from adapter.server.guard import Guard, Tokens
from adapter.server.health import Health
from adapter.server.logs import AccessLog
from adapter.server.threads import Threads
from adapter.settings import ApiServer, Logging, Traffic
from adapter.triton.installation import Installation

logger = logging.getLogger("adapter.endpoint")

HEALTH = "/healthcheck"
REPLICA = "ADAPTER_REPLICA_NAME"  # the variable, and the header of every answer
DEFAULT_PORT = 8080
DEFAULT_KEEP_ALIVE_S = 900
DEFAULT_DRAIN_S = 30.0


class Server:
    """Serves one `Service`: `app` is its FastAPI application, whose lifespan is `prepare_for_serving`.

    With `async_enable` the service sets up and answers in a process of its own, under Triton, which is replaced when it
    dies, and HTTP is answered meanwhile; without, in this process, before HTTP is. `find_engine` finds the
    tritonserver; `limits` say what may be read from URLs. Source: seed 004.
    """

    class State(enum.Enum):
        """What the server does now."""

        UNINITIALIZED = "UNINITIALIZED"
        LAUNCH_PREDICT_LOOP = "LAUNCH_PREDICT_LOOP"
        SETUP_SERVICE = "SETUP_SERVICE"
        RUNNING = "RUNNING"
        SHUTTING_DOWN = "SHUTTING_DOWN"
        STOPPED = "STOPPED"

    def __init__(
        self,
        service: Service,
        async_enable: bool = True,
        *,
        limits: fetching.Limits = fetching.Limits(),  # noqa: B008  # frozen
        find_engine: Callable[[], Installation] | None = None,
    ) -> None:
        self.service = service
        self.is_async = async_enable
        self.response_headers = {REPLICA: os.environ.get(REPLICA, "")}
        self.app = FastAPI(lifespan=lambda _: self.prepare_for_serving(), strict_content_type=False)
        self._limits = limits
        self._find_engine = find_engine
        self._state = self.State.UNINITIALIZED
        self._compute: Compute | None = None
        self._failure = ""
        for endpoint in endpoints_of(service):
            if endpoint.path == "/infer":
                self._add_health()
            self._add(endpoint)
        self.app.add_exception_handler(AdapterError, self._refused)
        self.app.add_exception_handler(RequestValidationError, self._invalid)
        self.app.add_exception_handler(starlette.exceptions.HTTPException, self._unreadable)

    # ---- states ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, new: State) -> None:
        logger.info("status: %s -> %s", self._state.name, new.name)
        self._state = new

    @property
    def is_running(self) -> bool:
        """Whether a request would be answered now."""
        return self._state is self.State.RUNNING

    @contextlib.asynccontextmanager
    async def prepare_for_serving(self) -> AsyncIterator[None]:
        """Start the service, and end it after the block; StateException where the server is not at rest."""
        if self._state not in (self.State.UNINITIALIZED, self.State.STOPPED):
            raise StateException(f"The server is {self._state.name}; it can start when it is UNINITIALIZED or STOPPED.")
        self._failure = ""
        self.service.on_server_startup()
        self._compute = compute = self._make_compute()
        try:
            self.state = self.State.LAUNCH_PREDICT_LOOP if self.is_async else self.State.SETUP_SERVICE
            await compute.start(self._heard)
            yield
        finally:
            self.drain()
            await compute.stop()
            self._compute = None
            try:
                self.service.on_server_shutdown()
            except Exception:  # the edge to user code
                logger.exception("on_server_shutdown() failed")
                self._failure = self._failure or "on_server_shutdown() failed"
            self.state = self.State.STOPPED

    def _make_compute(self) -> Compute:
        if not self.is_async:
            return LocalCompute(self.service, self._limits)
        if self._find_engine is None:
            return TritonCompute(self.service, self._limits)
        return TritonCompute(self.service, self._limits, self._find_engine)

    def _heard(self, event: str, text: str) -> None:
        """Follow what becomes of the process of the service."""
        if self._state in (self.State.SHUTTING_DOWN, self.State.STOPPED):
            return
        if event == DIED:
            logger.error("The process of the service died; a new one is started.")
            self.state = self.State.LAUNCH_PREDICT_LOOP
        elif event == LAUNCHED:
            self.state = self.State.SETUP_SERVICE
        elif event == SET_UP:
            self.state = self.State.RUNNING
        elif event == FAILED:
            logger.error("The service cannot be set up:\n%s", text)
            self._failure = text
            os.kill(os.getpid(), signal.SIGTERM)  # whatever serves this application ends it in good order then

    # ---- the application ------------------------------------------------------------------------------------------

    def _add_health(self) -> None:
        @self.app.get(HEALTH)
        async def health() -> JSONResponse:
            """200 when a request would be answered now, else 503."""
            status = HTTPStatus.OK if self.is_running else HTTPStatus.SERVICE_UNAVAILABLE
            return JSONResponse({"status": self._state.name, "async_enable": self.is_async}, status)

        @self.app.get("/")
        async def root() -> JSONResponse:
            """Where the documents are."""
            return JSONResponse({"docs": "/docs", "openapi": "/openapi.json"})

    def _add(self, endpoint: Endpoint) -> None:
        handler = self._form_handler(endpoint) if endpoint.input is None else self._json_handler(endpoint)
        method = getattr(self.service, endpoint.method)
        handler.__name__ = endpoint.method
        self.app.add_api_route(
            endpoint.path,
            handler,
            methods=["POST"],
            response_model=endpoint.output,
            description=inspect.getdoc(method) or "",
        )

    def _json_handler(self, endpoint: Endpoint) -> Callable[..., Any]:
        async def infer(request: Request, body: Any) -> Response:
            return await self._answer(endpoint, await request.body())

        infer.__annotations__["body"] = endpoint.input  # FastAPI checks the request with it, and describes it
        infer.__annotations__["request"] = Request
        return infer

    def _form_handler(self, endpoint: Endpoint) -> Callable[..., Any]:
        async def infer_form_data(**fields: Any) -> Response:
            return await self._answer(endpoint, {name: await _sent(value) for name, value in fields.items()})

        assert endpoint.form is not None
        infer_form_data.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what FastAPI reads
            [
                parameter.replace(kind=parameter.KEYWORD_ONLY)
                if parameter.annotation is File
                else parameter.replace(
                    kind=parameter.KEYWORD_ONLY,
                    default=Form(... if parameter.default is parameter.empty else parameter.default),
                )
                for parameter in endpoint.form.parameters.values()
            ]
        )
        return infer_form_data

    async def _answer(self, endpoint: Endpoint, body: Any) -> Response:
        began = time.perf_counter_ns()
        compute = self._compute
        if not self.is_running or compute is None:
            return JSONResponse({"status": self._state.name}, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1"})
        try:
            answer = await compute.answer(endpoint.method, body)
        except ServiceUnavailable:
            raise
        except Exception as error:  # the edge: what the method raised stands in the log, not in the answer
            logger.error("%s() failed: %s", endpoint.method, sentence(error), exc_info=not self.is_async)
            return PlainTextResponse("Internal Server Error", HTTPStatus.INTERNAL_SERVER_ERROR, self.response_headers)
        if "status" in answer:
            raise HTTPException(answer["status"], answer["detail"], answer["headers"])
        analytics = ResponseAnalytics(
            inference_time_ms=answer["milliseconds"], performance_time_ms=(time.perf_counter_ns() - began) / 1e6
        )
        written = b'%s,"%s":%s}' % (
            answer["output"][:-1],
            Endpoint.ANALYTICS.encode(),
            analytics.model_dump_json().encode(),
        )
        return Response(written, media_type="application/json", headers=self.response_headers)

    async def _refused(self, request: Request, error: Exception) -> Response:
        """An error of adapter's own: the process died, or it takes no call now."""
        content = {"status": self._state.name, "detail": str(error)}
        return JSONResponse(content, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1"})

    async def _invalid(self, request: Request, error: Exception) -> Response:
        """FastAPI's own answer; without the input where JSON cannot hold it, such as NaN."""
        assert isinstance(error, RequestValidationError)
        try:
            return await request_validation_exception_handler(request, error)
        except ValueError:
            problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
            content = json.dumps({"detail": problems})  # with escapes for half of a surrogate pair
            return Response(content, HTTPStatus.UNPROCESSABLE_ENTITY, media_type="application/json")

    async def _unreadable(self, request: Request, error: Exception) -> Response:
        """FastAPI's own answer; with the status of what kept it from reading the body, such as 413."""
        assert isinstance(error, starlette.exceptions.HTTPException)
        if isinstance(cause := error.__cause__, AdapterError):
            error = HTTPException(status_of(cause), message_of(cause))
        return await http_exception_handler(request, error)

    # ---- what else a person does with it ----------------------------------------------------------------------------

    def get_api_schema(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return self.app.openapi()

    def get_usage_examples(self, format: DocumentationFormat) -> MustacheGenerationResult:  # noqa: A002
        """An example of a call of `/infer`."""
        return generate_usage_examples(self.service, format)

    def store_assets(self) -> None:
        """Let the service store its assets."""
        self.service.store_assets()

    def run(
        self,
        port: int = DEFAULT_PORT,
        timeout_keep_alive: int = DEFAULT_KEEP_ALIVE_S,
        *,
        host: str = "127.0.0.1",
        drain_s: float = DEFAULT_DRAIN_S,
        tokens: Tokens | None = None,
    ) -> int:
        """Serve until SIGTERM or SIGINT; the exit code is 1 where the service could not be set up, else 0.

        After a signal, calls that run have `drain_s` seconds to end. Where there are `tokens`, every request but
        `/healthcheck` needs one.
        """
        if tokens is not None:
            self._document_tokens()
        said = Logging()
        edge = Edge(
            self.app,
            {},
            ApiServer(traffic=Traffic(timeout=LONGEST_S)),
            with_cors=lambda app: app,
            health=Health(Threads(1), self._not_ready),
            log=AccessLog("server", said.format, said.access),
            metrics=None,
            tracer=None,
            guard=Guard(tokens, health=frozenset({HEALTH})) if tokens is not None else None,
        )
        config = uvicorn.Config(
            edge,
            host=host,
            port=port,
            timeout_keep_alive=timeout_keep_alive,
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=math.ceil(drain_s) + 1,  # for requests that are no call yet, or none any more
        )
        running = _Uvicorn(config, self, drain_s)
        try:
            running.run()
        except SystemExit:  # of uvicorn, where setup() failed before HTTP is served, or the port is taken
            return 1
        return 0 if running.started and not self._failure else 1

    def _document_tokens(self) -> None:
        document = self.app.openapi()  # which FastAPI keeps
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"bearer": []}]
        for operation in document["paths"].get(HEALTH, {}).values():
            operation["security"] = []

    async def _not_ready(self) -> str:
        return "" if self.is_running else f"The server is {self._state.name}."

    def drain(self) -> None:
        """Take no new calls; what runs can end."""
        if self._state not in (self.State.SHUTTING_DOWN, self.State.STOPPED):
            self.state = self.State.SHUTTING_DOWN

    def kill(self) -> None:
        """End the call that runs, however long it would take; whoever waits for it gets 503."""
        if self._compute is not None:
            self._compute.kill()


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, server: Server, drain_s: float) -> None:
        super().__init__(config)
        self._server = server
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the server; uvicorn would raise them again afterwards, and end in another way."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            logger.info("Serving %s on http://%s:%s", type(self._server.service).__name__, host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._server.drain()
        with contextlib.suppress(RuntimeError):  # no loop: it has not started
            loop = asyncio.get_running_loop()
            delay = 0 if self.force_exit else self._drain_s
            loop.call_soon_threadsafe(loop.call_later, delay, self._server.kill)  # wakes a loop with nothing to do


async def _sent(value: Any) -> Any:
    """What travels of a field of a form."""
    if not isinstance(value, UploadFile):
        return value  # text, or None for a file that may be left out
    return {"content": await value.read(), "filename": value.filename, "headers": dict(value.headers)}


def main() -> None:
    """`python -m adapter.endpoint.server` is `adapter server`."""
    from adapter.cli.server import main as command

    command()


if __name__ == "__main__":
    main()

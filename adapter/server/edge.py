"""The outermost application of a front: what every request passes on its way in and out."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.exceptions import BodyTooLarge, DeadlineExceeded, RemoteException, TooManyRequests, sentence
from adapter.io.base import accept
from adapter.server.corked import LEFT
from adapter.server.endpoint import BrokenOff, error_response
from adapter.server.guard import Guard
from adapter.server.health import Health
from adapter.server.metrics import ServerMetrics
from adapter.server.tracing import Tracer
from adapter.services import API
from adapter.settings import ApiServer
from adapter.triton.request import SentId, deadline, request_id

logger = logging.getLogger("adapter.server")

REQUEST_ID = "x-adapter-request-id"
METRICS = "/metrics"
INFRASTRUCTURE = frozenset({"/", "/livez", "/healthz", "/readyz", METRICS, "/docs.json"})
STATIC = "/static_content/"
_REQUEST_ID, _TRACE_ID = REQUEST_ID.encode(), b"x-adapter-trace-id"
_LONGEST_ID = 128
_DISCONNECTED = 499  # in log and metrics, where the client went away before it was answered
ENDPOINT = "adapter.endpoint"  # the key in the scope of what was found for the path
_OTHER = "other"  # in metrics: a path that is no API, of which anybody can think up any number


class Log(Protocol):
    """The access log."""

    def record(
        self, scope: Scope, status: int, headers: Iterable[tuple[bytes, bytes]], seconds: float, identity: str
    ) -> None: ...


class Routed(Protocol):
    """What answers at a route: an endpoint, or a route of a task."""

    api: API

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Edge:
    """Names each request, limits it, finds its endpoint, answers what nobody else answered, counts and logs it.

    `endpoints` are the APIs by route. An API is found here, by its path, and not by the router of the application,
    whose layers would cost more than all that is done for a small request. `abandon` is told the id of a request whose
    client goes away before it has its answer. `guard` says who may call; all may where there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[str, Routed],
        settings: ApiServer,
        *,
        with_cors: Callable[[ASGIApp], ASGIApp],
        health: Health,
        log: Log | None,
        metrics: ServerMetrics | None,
        tracer: Tracer | None,
        abandon: Callable[[str], None] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.health = health
        self._abandon = abandon
        self._app = app
        self._guard = guard
        # chosen here, so that a request costs nothing more where everybody may call
        self._let_in = self._answer if guard is None else self._guarded
        self._beside = app if guard is None else guard.around(app)
        self._with_cors = with_cors
        self._traffic = settings.traffic
        self._shows_trace = settings.http.response.trace_id
        self._log = log
        self._metrics = metrics
        self._tracer = tracer
        self._fixed = {route: endpoint for route, endpoint in endpoints.items() if "{" not in route}
        self._patterns = [
            (*compile_path(route)[::2], endpoint) for route, endpoint in endpoints.items() if "{" in route
        ]
        self._busy = 0
        self._loop: tuple[asyncio.AbstractEventLoop | None, int] = (None, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._beside(scope, receive, send)
            return
        begun = time.perf_counter()
        path = scope["path"]
        if root := scope.get("root_path"):  # this application is mounted, or the server was told where a proxy has it
            path = path.removeprefix(root) or "/"
        endpoint = self._fixed.get(path)
        if endpoint is not None:
            label = path
        else:
            endpoint, label = self._find(scope, path)
        scope[ENDPOINT] = endpoint
        exchange = _Exchange(scope, receive, send, self._abandon)
        scope[LEFT] = exchange.left
        metrics = None if path == METRICS else self._metrics
        if metrics is not None:
            metrics.begun(label)
        try:
            if self._tracer is None:
                await self._let_in(scope, exchange, path)
            else:
                await self._traced(self._tracer, scope, exchange, path, label)
        finally:
            del scope[LEFT]  # it leads back here, and would leave each request to the garbage collector
            seconds = time.perf_counter() - begun
            status = exchange.status or _DISCONNECTED
            if metrics is not None:
                metrics.ended(label, status, seconds)
            if self._log is not None:
                self._log.record(scope, status, exchange.headers, seconds, exchange.identity)

    async def _traced(self, tracer: Tracer, scope: Scope, exchange: _Exchange, path: str, label: str) -> None:
        with tracer.request(scope, label) as span:
            if self._shows_trace:
                exchange.shown.append((_TRACE_ID, span.trace_id.encode()))
            await self._let_in(scope, exchange, path)
            span.answered(exchange.status or _DISCONNECTED)

    async def _guarded(self, scope: Scope, exchange: _Exchange, path: str) -> None:
        assert self._guard is not None
        refusal = self._guard.refusal(scope, path)
        if refusal is None:
            await self._answer(scope, exchange, path)
        else:  # by way of CORS, which answers what a browser asks before it sends a header
            await self._with_cors(refusal)(scope, exchange.receive, exchange.send)

    async def _answer(self, scope: Scope, exchange: _Exchange, path: str) -> None:
        try:
            if scope[ENDPOINT] is None and (path in INFRASTRUCTURE or path.startswith(STATIC)):
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await self._limited(scope, exchange)
        except Exception as error:  # the edge: a middleware or a mounted application failed
            if exchange.complete:
                return  # FastAPI answers an error, and raises it again
            if exchange.status:
                raise  # the server closes the connection, so that the client does not take a part for the whole
            # without its headers, a browser would keep the answer from the page that asked
            answer = self._with_cors(error_response(error))
            await answer(scope, exchange.receive, exchange.send)

    def _find(self, scope: Scope, path: str) -> tuple[Routed | None, str]:
        if path in INFRASTRUCTURE:
            return None, path
        if path.startswith(STATIC):
            return None, _OTHER
        for pattern, convertors, endpoint in self._patterns:
            match = pattern.match(path)
            if match is None:
                continue
            try:
                found = {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
            except ValueError:  # Python reads no number of thousands of digits
                continue
            scope["path_params"] = found
            return endpoint, endpoint.api.route
        return None, _OTHER

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this thread; asking asyncio for it is a system call before Python 3.12."""
        loop, thread = self._loop
        if loop is None or thread != threading.get_ident() or not loop.is_running():
            loop = asyncio.get_running_loop()
            self._loop = loop, threading.get_ident()
        return loop

    async def _limited(self, scope: Scope, exchange: _Exchange) -> None:
        most = self._traffic.max_concurrency
        if most is not None and self._busy >= most:
            raise TooManyRequests(f"This worker serves {most} requests already, which is its max_concurrency.")
        self._busy += 1
        try:
            await self._timed(scope, exchange)
        finally:
            self._busy -= 1

    async def _timed(self, scope: Scope, exchange: _Exchange) -> None:
        longest = self._traffic.max_body_bytes
        receive = exchange.receive
        if longest is not None:
            if exchange.length is None:
                receive = exchange.measured(longest)
            elif exchange.length > longest:
                raise BodyTooLarge(_too_long(f"{exchange.length} bytes", longest))
        limit = self._traffic.timeout
        deadline.set(time.monotonic() + limit)
        loop = self._running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        exchange.start_timer(loop, task, limit)
        try:
            await self._app(scope, receive, exchange.send)
        except asyncio.CancelledError as error:
            if not exchange.late:
                if hasattr(task, "cancelling") and not task.cancelling():  # raised by the code of the service itself
                    raise RemoteException(sentence(error)) from error
                if self.health.draining and exchange.status:
                    logger.warning("request %s to %s broke off: this server stops", exchange.identity, scope["path"])
                    raise BrokenOff from None
                raise
            if hasattr(task, "uncancel"):  # since Python 3.11
                task.uncancel()
            if exchange.status:
                raise
            raise DeadlineExceeded(f"{scope['path']} did not answer within {limit:g} seconds.") from None
        finally:
            exchange.stop_timer()


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "_abandon",
        "_send",
        "_timer",
        "complete",
        "headers",
        "identity",
        "late",
        "length",
        "receive",
        "shown",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, abandon: Callable[[str], None] | None = None
    ) -> None:
        self._abandon = abandon
        self.receive = receive
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self.late = False
        self.status = 0
        self.complete = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = 0
        identity = ""
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.length = int(value)
            elif name == b"transfer-encoding":
                self.length = None
            elif name == b"x-request-id":
                identity = SentId(_usable(value))
            elif name == b"accept" and value != b"*/*":
                accept.set(value.decode("latin-1"))
        self.identity = identity or f"{random.getrandbits(128):032x}"
        request_id.set(self.identity)
        self.shown = [(_REQUEST_ID, self.identity.encode("latin-1"))]

    def measured(self, longest: int) -> Receive:
        """`receive` for a body whose length was not announced; BodyTooLarge where it is longer than allowed."""
        received = 0

        async def receive() -> Message:
            nonlocal received
            message = await self.receive()
            received += len(message.get("body", b""))
            if received > longest:
                raise BodyTooLarge(_too_long("longer", longest))
            return message

        return receive

    def left(self) -> None:
        """The client has closed the connection."""
        if self._abandon is not None and not self.complete:
            self._abandon(self.identity)

    def start_timer(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seconds: float) -> None:
        self._timer = loop.call_later(seconds, self._expire, task)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, task: asyncio.Task[Any]) -> None:
        self._timer = None
        self.late = True
        task.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.stop_timer()  # a stream may last, and so may the calls that it makes of runners
            deadline.set(None)
            self.status = message["status"]
            self.headers = headers = [*message.get("headers", ()), *self.shown]
            message["headers"] = headers
        elif not message.get("more_body"):
            self.complete = True
        await self._send(message)


def _usable(value: bytes) -> str:
    text = value.decode("latin-1")
    return text if 0 < len(text) <= _LONGEST_ID and text.isprintable() and text.isascii() else ""


def _too_long(what: str, longest: int) -> str:
    return f"The body of the request is {what}; this server takes at most {longest} bytes."

"""Test services of your own: in this process without an engine, and with the fixture `served` against a real one."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.client import Options, SyncHTTPClient
from adapter.exceptions import InvalidArgument, StateException
from adapter.loader import load_service
from adapter.server.app import LocalRunners, create_app
from adapter.server.metrics import ServerMetrics
from adapter.services import Service
from adapter.settings import Settings
from adapter.tuning import tune

if TYPE_CHECKING:
    from typing_extensions import Unpack

_STOP_S = 10


class TestClient(SyncHTTPClient):
    """A client of a service that runs in this process, over real HTTP on 127.0.0.1, with its runners and no engine.

        with TestClient(svc) as client:
            assert client.classify([[5.9, 3, 5.1, 1.8]]) == [2]
            assert client.post("/classify", json="no array").status_code == 400

    Startup hooks run when it is made and shutdown hooks when it is closed; what a startup hook raises is raised here.
    Deployment hooks do not run, and calls are not batched. `get`, `post` and `request` send what they are given, once,
    and return httpx's response, whatever its status. It needs nothing that only Linux has.
    """

    __test__ = False  # pytest takes classes of such names for tests

    def __init__(
        self, service: Service | type | str, settings: Settings | None = None, **options: Unpack[Options]
    ) -> None:
        options.setdefault("retries", 0)
        if isinstance(service, type):
            raise InvalidArgument(f"{service.__name__} is a class without @adapter.service, so it is no service.")
        service = service if isinstance(service, Service) else load_service(service)
        settings = settings or Settings()
        tune(service, settings.runners)
        counted = settings.api_server.metrics
        metrics = ServerMetrics(service.name, counted) if counted.enabled else None
        self._server = _Server(create_app(service, LocalRunners(settings.triton), settings, metrics=metrics))
        self._stop = weakref.finalize(self, self._server.stop)
        try:
            super().__init__(self._server.url, **options)
        except BaseException:
            self._stop()
            raise

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def close(self) -> None:
        """Close the connections, run the shutdown hooks and stop the runners."""
        super().close()
        self._stop()


class _Server:
    """An application on a thread of its own; when this has been made, it takes requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._failure: BaseException | None = None
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = _Uvicorn(
            uvicorn.Config(
                self._watched,
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        self._thread = threading.Thread(target=self._run, args=(listener,), name="adapter-testing", daemon=True)
        self._thread.start()
        self._server.begun.wait()
        if not self._server.started:
            self._thread.join()
            raise self._failure or StateException("The service could not be started; its log says why.")

    def stop(self) -> None:
        self._server.should_exit = True
        if threading.current_thread() is not self._thread:  # where garbage happens to be collected
            self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        with listener:
            try:
                with contextlib.suppress(SystemExit):  # of uvicorn, where the application cannot start
                    self._server.run([listener])
            finally:
                self._server.begun.set()

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                self._failure = error  # uvicorn writes it into the log only
            raise


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

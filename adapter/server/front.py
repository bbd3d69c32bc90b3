"""One front process: `python -m adapter.server.front`, started by the launcher with its options in the environment."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType

import uvicorn

from adapter import models
from adapter.allocator import keep_freed_memory
from adapter.exceptions import AdapterError
from adapter.loader import load_service
from adapter.server import logs, tls, tracing
from adapter.server.app import LocalRunners, Runners, TritonRunners, create_app
from adapter.server.corked import CorkedHttpProtocol
from adapter.server.metrics import ServerMetrics
from adapter.settings import Settings
from adapter.triton.manifest import Manifest
from adapter.triton.notice import Notices
from adapter.tuning import tune

VARIABLE = "ADAPTER_FRONT"
STARTUP_FAILED = 3  # the exit code where the service could be imported, and its start-up failed
_PR_SET_PDEATHSIG = 1
_PARTING_S = 0.3
_OBJECTS_BEFORE_COLLECTION = 10_000  # a request makes dozens, nearly none of them in a cycle

logger = logging.getLogger("adapter.server")


@dataclass(frozen=True)
class FrontOptions:
    """What the launcher tells a front process, the `index`-th of them.

    `service` is the name of the service that `target` leads to, `store` whether there is a model store here, `engine`
    where a Triton of our own is, None where there is none. In `metrics_folder` the fronts keep their numbers together;
    `metrics_url` is Triton's own page of them. On the `board`, a file, and by the bell `bell_fd` the launcher tells
    what changes.
    """

    target: str
    service: str
    working_dir: str
    parent: int
    settings: Settings
    store: bool
    metrics_folder: str
    board: str
    tasks_folder: str
    metrics_url: str | None = None
    engine: str | None = None
    manifest: str | None = None
    index: int = 1
    listen_fd: int = -1
    ready_fd: int = -1
    bell_fd: int = -1

    def to_json(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**values, "settings": self.settings.to_json()})

    @classmethod
    def from_json(cls, text: str) -> FrontOptions:
        values = json.loads(text)
        return cls(**{**values, "settings": Settings.from_json(values["settings"])})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.health.draining = True  # type: ignore[union-attr]  # our own application
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # what has been imported stays: the collector need not look at it again and again
        gc.collect()
        gc.freeze()
        gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)
        if self.started:
            os.write(self._ready_fd, b"+")
        os.close(self._ready_fd)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, tell clients with their next answer that theirs ends, and close those that are left.

        Closing all idle ones at once would lose the requests that are on their way.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        until = time.monotonic() + _PARTING_S
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(_PARTING_S / 10)
        await super().shutdown(sockets)


def main() -> int:
    """Serve until told to stop; the exit code is 1 where the service cannot be imported, else STARTUP_FAILED."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a line is one write, and does not mix with those of other workers
            stream.reconfigure(line_buffering=True, write_through=False)
    options = FrontOptions.from_json(os.environ.pop(VARIABLE))
    settings = options.settings
    server = settings.api_server
    said = server.logging
    component = f"api:{options.index}"
    logs.set_up(component, format=said.format, level=said.level)
    keep_freed_memory()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != options.parent:
        return 0
    try:
        name, counted = options.service, server.metrics
        notices = Notices(Path(options.board), options.bell_fd)
        metrics = ServerMetrics(name, counted, engine=options.metrics_url, notices=notices) if counted.enabled else None
        log: logs.AccessLog | None = None
        if said.access.enabled:
            lost = metrics.lines_lost if metrics is not None else None
            log = logs.AccessLog(component, said.format, said.access, on_lost=lost)
        tracer = tracing.start(settings.tracing, name)
        runners: Runners = LocalRunners(settings.triton, metrics=metrics, tracer=tracer)
        manifest = Manifest.read(Path(options.manifest)) if options.manifest else None
        if manifest is not None:
            store = models.store() if options.store else None
            models.use_source(manifest.source(name, store))
            if options.engine is not None or settings.triton.elsewhere:
                runners = TritonRunners(
                    manifest, settings.triton, engine=options.engine, metrics=metrics, tracer=tracer, notices=notices
                )
        service = load_service(options.target, options.working_dir)
        tune(service, settings.runners)
        folder = Path(options.tasks_folder)
        app = create_app(service, runners, settings, log=log, metrics=metrics, tracer=tracer, tasks_folder=folder)
    except AdapterError as error:
        logger.error("%s", error)
        return 1
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http=CorkedHttpProtocol,
        backlog=server.backlog,  # the event loop calls listen() again
        timeout_graceful_shutdown=int(server.traffic.timeout) + 1,
        **tls.arguments(server.ssl),
    )
    running = _Server(config, options.ready_fd)
    running.run(sockets=[socket.socket(fileno=options.listen_fd)])
    return 0 if running.started else STARTUP_FAILED


if __name__ == "__main__":
    sys.exit(main())

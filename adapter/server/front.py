"""One front process: `python -m adapter.server.front`, started by the launcher with its options in the environment."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from adapter import models
from adapter.exceptions import AdapterError
from adapter.loader import load_service
from adapter.server import logs
from adapter.server.app import LocalRunners, Runners, TritonRunners, create_app
from adapter.triton.manifest import Manifest

VARIABLE = "ADAPTER_FRONT"
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger("adapter.server")


@dataclass(frozen=True)
class FrontOptions:
    """What the launcher tells a front process.

    `service` is the name of the service that `target` leads to, `store` whether there is a model store here, `url`
    where Triton is, None with local runners.
    """

    target: str
    service: str
    working_dir: str
    index: int
    parent: int
    listen_fd: int
    ready_fd: int
    timeout_s: float
    store: bool
    url: str | None = None
    manifest: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FrontOptions:
        return cls(**json.loads(text))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.draining = True  # type: ignore[union-attr]  # our own FastAPI application
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            os.write(self._ready_fd, b"+")
        os.close(self._ready_fd)


def main() -> int:
    """Serve until told to stop; the exit code is 1 where the service cannot start."""
    options = FrontOptions.from_json(os.environ.pop(VARIABLE))
    logs.set_up(f"api:{options.index}")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != options.parent:
        return 0
    try:
        runners: Runners = LocalRunners()
        manifest = Manifest.read(Path(options.manifest)) if options.manifest else None
        if manifest is not None:
            store = models.store() if options.store else None
            models.use_source(manifest.source(options.service, store))
            if options.url is not None:
                runners = TritonRunners(options.url, manifest)
        service = load_service(options.target, options.working_dir)
        app = create_app(service, runners, timeout_s=options.timeout_s)
    except AdapterError as error:
        logger.error("%s", error)
        return 1
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(options.timeout_s) + 1,
    )
    server = _Server(config, options.ready_fd)
    server.run(sockets=[socket.socket(fileno=options.listen_fd)])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())

"""Where a scenario is run: a folder, a model store, a model repository, and the servers on them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapter.triton.engine import Ports, command
from adapter.triton.environment import environment
from adapter.triton.installation import Installation, ensure
from benchmarks.exceptions import BenchmarkError
from benchmarks.server import HOST, Server, free_port

ROOT = Path(__file__).parents[1]
IRIS = ROOT / "examples" / "iris"
STUBS = Path(__file__).with_name("stubs")
_KEPT = ("ADAPTER_CACHE", "ADAPTER_TRITONSERVER", "ADAPTER_ENGINE_WHEEL")


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver that answers gRPC and HTTP."""

    server: Server
    grpc: str


@dataclass
class Stage:
    """Starts servers; whoever made the stage ends them with it."""

    folder: Path
    installation: Installation
    servers: list[Server] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Stage]:
        """A stage in a temporary folder; its servers, and the folder, are gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="adapter-benchmarks-") as folder:
            stage = cls(Path(folder), ensure(os.environ))
            stage.repository.mkdir()
            try:
                yield stage
            finally:
                for server in stage.servers:  # all at once, since each takes its time
                    server.terminate()
                for server in stage.servers:
                    server.wait_ended()

    @property
    def repository(self) -> Path:
        """The model repository that all services of this stage are exported to."""
        return self.folder / "repository"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of what is started here: no settings of the person's own, and a model store of its own."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTER_") or name in _KEPT}
        return {**plain, "ADAPTER_HOME": str(self.folder / "home")}

    def run(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        """Run a program to its end; BenchmarkError with what it printed where it fails."""
        ended = subprocess.run(
            arguments, cwd=folder, env={**self.environment, **(env or {})}, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise BenchmarkError(f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        port: int,
        ready: str,
        folder: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a server and wait until it answers `ready`."""
        server = Server(
            name,
            arguments,
            port=port,
            log=self.folder / f"{len(self.servers)}.log",
            env=self.environment if env is None else env,
            folder=folder,
        )
        self.servers.append(server)
        server.wait_ready(ready)
        return server

    def train_iris(self) -> None:
        """Save the model of the iris example."""
        self.run([sys.executable, "train.py"], IRIS)

    def adapter(self, target: str, *, working_dir: Path = ROOT, workers: int = 1) -> Server:
        """`adapter serve`, with everything on that is on by default, its log in a file."""
        port = free_port()
        program = str(Path(sys.executable).with_name("adapter"))
        options = [f"--working-dir={working_dir}", f"--port={port}", f"--api-workers={workers}"]
        arguments = [program, "serve", target, *options, f"--repository={self.repository}"]
        return self.start(f"adapter serve {target}", arguments, port=port, ready="/readyz")

    def export(self, target: str) -> None:
        """Write a service into the repository, for `triton`."""
        program = str(Path(sys.executable).with_name("adapter"))
        self.run([program, "export", target, f"--repository={self.repository}"], ROOT)

    def by_hand(self, entry: str, *, like: str, model: str) -> None:
        """Write an entry with the configuration of another, whose model.py is a file of `benchmarks/stubs/`."""
        folder = self.repository / entry
        (folder / "1").mkdir(parents=True)
        config = (self.repository / like / "config.pbtxt").read_text().replace(f'"{like}"', f'"{entry}"')
        (folder / "config.pbtxt").write_text(config)
        shutil.copyfile(STUBS / model, folder / "1" / "model.py")

    def uvicorn(self, app: str, *, workers: int = 1, env: Mapping[str, str] | None = None) -> Server:
        """uvicorn with the settings of our front processes, without an access log."""
        port = free_port()
        options = ["--host", HOST, "--port", str(port), "--workers", str(workers), "--loop", "uvloop"]
        options += ["--http", "httptools", "--no-access-log", "--no-server-header", "--log-level", "warning"]
        arguments = [sys.executable, "-m", "uvicorn", app, *options]
        return self.start(f"uvicorn {app}", arguments, port=port, ready="/", env={**self.environment, **(env or {})})

    def triton(self) -> TritonServer:
        """A tritonserver of the same installation on what has been exported, which answers HTTP as well.

        The one that `adapter serve` starts answers gRPC alone. Everything else is alike.
        """
        entries = sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))
        ports, http = Ports.free(), free_port()
        arguments = command(
            self.installation,
            self.repository,
            entries,
            backends=self.installation.backends(),
            ports=ports,
            server_id="benchmarks",
            key=secrets.token_hex(16),
        )
        arguments.remove("--allow-http=false")
        arguments += [f"--http-address={HOST}", f"--http-port={http}"]
        env = environment(self.installation, self.environment)
        server = self.start("tritonserver", arguments, port=http, ready="/v2/health/ready", env=env)
        return TritonServer(server, f"{HOST}:{ports.grpc}")

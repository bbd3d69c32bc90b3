"""A service served from a program: `adapter serve` as an object."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from adapter.client import Options, SyncHTTPClient
from adapter.exceptions import ConfigException, DeadlineExceeded, InvalidArgument, StateException
from adapter.layers import TOKENS
from adapter.services import Service
from adapter.settings import DEFAULT_HOST, DEFAULT_PORT
from adapter.triton import tether

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

DEFAULT_START_S = 120.0  # models may be large
DEFAULT_GRACE_S = 10.0
_KILL_S = 5.0
_POLL_S = 0.05
_ANSWER_S = 5.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what a client calls where a server listens everywhere


class HTTPServer:
    """Serve a service in processes of its own, as the command `adapter serve` does.

        with adapter.HTTPServer("service:svc", port=0).start() as client:
            client.classify([[5.9, 3, 5.1, 1.8]])

    `service` is what `adapter serve` takes, or a Service that is a global of a module: the processes import that
    module, so a script that starts a server does so under `if __name__ == "__main__":`. `port=0` is any free one.
    `timeout` is how long the service may take to be ready, in seconds; `production=False` is `--development`;
    `options` are further words for the command line (`["--timeout", "5"]`), `env` further environment variables. With
    `ssl_certfile` it speaks HTTPS, and its clients trust this very certificate. The processes end with this one.
    """

    def __init__(
        self,
        service: Service | str,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        api_workers: int | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_START_S,
        production: bool = True,
        ssl_certfile: str | os.PathLike[str] | None = None,
        ssl_keyfile: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.target = target_of(service)
        self.host = host
        self.port = port
        self.process: subprocess.Popen[Any] | None = None
        self._timeout = timeout
        self._env = dict(env or {})
        self._certificate = ssl_certfile
        named = {
            "--host": host,
            "--working-dir": working_dir,
            "--api-workers": api_workers,
            "--ssl-certfile": ssl_certfile,
            "--ssl-keyfile": ssl_keyfile,
        }
        given = [word for name, value in named.items() if value is not None for word in (name, str(value))]
        self._options = [*given, *([] if production else ["--development"]), *options]

    @property
    def url(self) -> str:
        """Where clients find the service; the port is known after `start`."""
        host = _ANYWHERE.get(self.host, self.host)
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    def start(self, *, stdout: Any = None, stderr: Any = None) -> Self:
        """Start the processes, and return this server, whose `with` block waits for them and gives a client.

        Their output goes where this process's goes, unless `stdout` and `stderr`, as for subprocess.Popen, say
        otherwise.
        """
        if self.process is not None and self.process.poll() is None:
            raise StateException(f"{self.target!r} is being served on {self.url} already: call stop() first.")
        with _reserved(self.host, self.port) as holder:
            self.port = int(holder.getsockname()[1])
            command = [sys.executable, "-m", "adapter", "serve", self.target, "--port", str(self.port), *self._options]
            begun: concurrent.futures.Future[subprocess.Popen[Any]] = concurrent.futures.Future()
            # the kernel ends what a thread has started when that thread ends, so this one is there for nothing else
            threading.Thread(
                target=_keep,
                args=(begun, command, {**_environment(), **self._env}, stdout, stderr),
                name="adapter-server",
                daemon=True,
            ).start()
            self.process = begun.result()
            try:
                self._wait(self.process)
            except BaseException:
                self.stop(0)
                raise
        return self

    def get_client(self, **options: Unpack[Options]) -> SyncHTTPClient:
        """A client of the service; `options` are those of SyncHTTPClient. It sends a token that the environment has."""
        if self._certificate is not None:
            trust = ssl.create_default_context(cafile=self._certificate)
            trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it
            options.setdefault("verify", trust)
        if tokens := self._env.get(TOKENS, os.environ.get(TOKENS)):
            options.setdefault("token", tokens.split(",")[0].strip())
        return SyncHTTPClient.from_url(self.url, **options)

    def stop(self, grace: float = DEFAULT_GRACE_S) -> int:
        """End the processes, and return the exit code, 0 when all went well.

        Requests that were accepted are answered first, for at most `grace` seconds.
        """
        if self.process is None:
            raise StateException(f"{self.target!r} is not being served: call start() first.")
        # after a second SIGTERM `adapter serve` waits for no request any more
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGTERM, _KILL_S)):
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(seconds)
        self.process.kill()
        return self.process.wait()

    def _wait(self, process: subprocess.Popen[Any]) -> None:
        until = time.monotonic() + self._timeout
        while not _answers(self.url):
            if process.poll() is not None:
                raise StateException(
                    f"Serving {self.target!r} ended with exit code {process.returncode} before it was ready; what it "
                    "printed says why."
                )
            if time.monotonic() > until:
                raise DeadlineExceeded(
                    f"{self.target!r} was not ready on {self.url} within {self._timeout:g} seconds; what it printed "
                    "may say why, and `timeout=` gives it longer."
                )
            time.sleep(_POLL_S)

    def __enter__(self) -> SyncHTTPClient:
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self._client = self.get_client()
        except BaseException:
            self.stop()
            raise
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self.stop()

    def __repr__(self) -> str:
        return f"HTTPServer({self.target!r}, url={self.url!r})"


def target_of(service: Service | str) -> str:
    """What another process can import a service by: `file.py:attribute`."""
    if not isinstance(service, Service):
        return str(service)
    found = {
        module.__name__: f"{Path(file).resolve()}:{name}"
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and (file := vars(module).get("__file__"))
        for name, value in list(vars(module).items())
        if value is service
    }
    for module in (getattr(api.func, "__module__", "") for api in service.apis.values()):
        if module in found:  # others import it from there
            return found[module]
    for target in found.values():
        return target
    raise InvalidArgument(
        f"The service {service.name!r} is no global of a module, so no other process can import it: write "
        "`svc = adapter.Service(…)` at the top level of a file."
    )


def _keep(
    begun: concurrent.futures.Future[subprocess.Popen[Any]],
    command: Sequence[str],
    env: Mapping[str, str],
    stdout: Any,
    stderr: Any,
) -> None:
    """Start a command that ends with this process at the latest, and stay until it has ended."""
    tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command]
    try:
        process = subprocess.Popen(tethered, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    except BaseException as error:  # noqa: BLE001  # handed to the thread that waits for it
        begun.set_exception(error)
        return
    begun.set_result(process)
    process.wait()


def _environment() -> dict[str, str]:
    """This process's environment, with the folders that it finds modules in, beside those of its Python."""
    own = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    found = [path for path in sys.path if path and Path(path).is_dir() and not own & set(Path(path).resolve().parents)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*given, *found]))}


def _reserved(host: str, port: int) -> socket.socket:
    """Keep a port, any free one for 0, from everybody but a process that means to listen on this very one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        holder = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as stack:
            stack.callback(holder.close)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
            stack.pop_all()
    except (OSError, OverflowError) as error:
        raise ConfigException(f"{host}:{port} cannot be listened on: {error}.") from error
    return holder


def _answers(url: str) -> bool:
    try:
        # nothing is told to whoever answers, so its certificate does not matter
        return httpx.get(f"{url}/readyz", timeout=_ANSWER_S, trust_env=False, verify=False).is_success
    except httpx.TransportError:
        return False

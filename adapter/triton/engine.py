"""The embedded engine: tritonserver as a child process that serves this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter.exceptions import EngineError
from adapter.triton import tether, worker_log
from adapter.triton.admin import CHANNEL_OPTIONS, Control, refusal
from adapter.triton.engine_log import ABORTED, NO_STUB, LogLine, parse_line
from adapter.triton.environment import environment
from adapter.triton.installation import Installation
from adapter.triton.plain_paths import PlainPaths
from adapter.triton.stub_memory import SHM_FOLDER
from adapter.triton.stubs import Stub, dead_children, mapped_regions, session, stub_of, stubs_of

logger = logging.getLogger("adapter.engine")

HOST = "127.0.0.1"
# The key of `--grpc-restricted-protocol`, and the metadata that Triton expects for it.
_KEY = "adapter-key"
METADATA_KEY = f"triton-grpc-protocol-{_KEY}"
# Health, metadata, configurations and inference stay open. Of the others, some can run code (model-repository) or were
# ways into other processes' memory (shared-memory, CVE-2025-23319).
RESTRICTED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
DEFAULT_EXIT_TIMEOUT_S = 5
DEFAULT_READY_TIMEOUT_S = 300.0
# Of each instance, and taken from /dev/shm at once; a container often has 64 MB there in all.
SHM_BYTES = 1 << 20
SHM_GROWTH_BYTES = 8 << 20

_PORT_ATTEMPTS = 3
_POLL_S = 0.05
_CALL_TIMEOUT_S = 1.0
_TAIL_LINES = 200
_SHOWN_LINES = 12
_LEFT_OVER_GRACE_S = 1.0
# Triton notices within two seconds that a stub which had begun its work is dead, and says which; of one that never
# began it notices nothing.
_DEAD_STUB_GRACE_S = 3.0
_ENTRY = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Ports:
    """Where one tritonserver listens."""

    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Choose ports that nobody has now; somebody else may take them before they are used."""
        with socket.socket() as one, socket.socket() as other:
            one.bind((HOST, 0))
            other.bind((HOST, 0))
            return cls(one.getsockname()[1], other.getsockname()[1])


def command(
    installation: Installation,
    repository: Path,
    entries: Iterable[str],
    *,
    backends: Path | None,
    ports: Ports,
    server_id: str,
    key: str,
    exit_timeout_s: int = DEFAULT_EXIT_TIMEOUT_S,
    traces_url: str | None = None,
) -> list[str]:
    """Make the command line of a tritonserver that only this machine can reach and that loads exactly `entries`.

    `key` can be read in the process list by whoever may see it there.
    """
    return [
        str(installation.tritonserver),
        f"--id={server_id}",
        f"--model-repository={repository}",
        *([f"--backend-directory={backends}"] if backends else []),
        "--model-control-mode=explicit",
        *(f"--load-model={entry}" for entry in entries),
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=true",
        "--allow-http=false",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports.grpc}",
        "--allow-metrics=true",
        f"--metrics-address={HOST}",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--grpc-restricted-protocol={','.join(RESTRICTED)}:{_KEY}={key}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
        *(_tracing(traces_url) if traces_url is not None else ()),
    ]


def _tracing(url: str) -> Iterator[str]:
    for option in ("mode=opentelemetry", "level=TIMESTAMPS", "rate=0", f"opentelemetry,url={url}"):
        yield f"--trace-config={option}"  # rate 0: only requests that come with the trace of a caller


class Engine:
    """A running tritonserver and everything that it started.

    It ends when this process ends, however that comes about, and is in a session of its own, so that a terminal's
    Ctrl-C does not reach it: its owner drains the front first and then calls `stop`. Its log goes to `adapter.engine`,
    what models print to `adapter.runner`.
    """

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        entries: Sequence[str],
        *,
        env: Mapping[str, str],
        exit_timeout_s: int = DEFAULT_EXIT_TIMEOUT_S,
        ports: Ports | None = None,
        traces_url: str | None = None,
        on_line: Callable[[LogLine], None] | None = None,
    ) -> None:
        """Start tritonserver on a model repository; it loads `entries` and no others. `wait_ready` comes next.

        `exit_timeout_s` bounds how long Triton finishes requests when it is stopped; `traces_url` takes, by OTLP over
        HTTP, the spans of requests that come with the trace of a caller; `on_line` gets each line of the log, on a
        thread of its own. Raises EngineError where the repository is no folder, an entry has a name that Triton cannot
        use, or the installation cannot run this Python.
        """
        if not repository.is_dir():
            raise EngineError(f"The model repository {repository} is not a folder: `adapter export` writes one.")
        for entry in entries:
            if not _ENTRY.fullmatch(entry):
                raise EngineError(
                    f"{entry!r} cannot be the name of an entry: use letters, digits, '.', '_' and '-', and no others."
                )
        self.installation = installation
        self.repository = repository
        self.entries = tuple(entries)
        """What it loads when it starts; whoever loads and unloads entries later keeps it true."""
        self.exit_timeout_s = exit_timeout_s
        self.traces_url = traces_url
        self._on_line = on_line
        self._id = f"adapter-{secrets.token_hex(4)}"
        self._key = secrets.token_hex(16)
        self._regions: set[str] = set()
        self._stopped = False
        self._paths = PlainPaths(env)
        try:
            self._environment = environment(installation, env, plain=self._paths.of)
            self._repository = self._paths.of(repository)
            backends = installation.backends()
            self._backends = None if backends is None else self._paths.of(backends)
            self._spawn(ports or Ports.free())
        except BaseException:
            self._paths.remove()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The gRPC address, `host:port`; read it after `wait_ready`, which may move to another port."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata that opens the restricted calls."""
        return ((METADATA_KEY, self._key),)

    @property
    def control(self) -> Control:
        return Control(self.url, self.metadata)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Return None while tritonserver runs, then its exit status, negative for the signal that killed it.

        It is not reaped before `stop`: until then its pid, by which what it started is found, stays its own.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stubs(self) -> list[Stub]:
        """List the live processes of the python backend. Call it after each load: `stop` removes what it has seen."""
        found = stubs_of(self.pid)
        self._regions.update(stub.region for stub in found)
        return found

    def tail(self, level: int = logging.WARNING) -> list[str]:
        """Return the last lines of the log of `level` or more, oldest first; of any level where there is none."""
        lines = list(self._tail)
        telling = [line for line in lines if line.level >= level]
        return [line.whole for line in (telling or lines)[-_SHOWN_LINES:]]

    def wait_ready(self, timeout_s: float = DEFAULT_READY_TIMEOUT_S, stopping: threading.Event | None = None) -> None:
        """Return when every entry can be called.

        Raises EngineError with Triton's own reason where an entry cannot be loaded, and with the last of the log where
        tritonserver ends, a stub dies unnoticed, or `timeout_s` is over; and when `stopping` is set. Call `stop` then,
        too.
        """
        deadline = time.monotonic() + timeout_s
        died: dict[int, float] = {}
        attempts, was_ready = 1, False
        while True:
            if stopping is not None and stopping.is_set():
                raise EngineError("tritonserver is not waited for any more")
            if self.poll() is not None:
                self._pump.join(_LEFT_OVER_GRACE_S)
                if attempts == _PORT_ATTEMPTS or not self._lost_its_port():
                    raise EngineError(_with_lines(f"tritonserver {_ending(self.poll())} at its start", self.tail()))
                attempts += 1
                logger.debug("A port was taken by another process; starting again on other ports.")
                self._clean_up()
                self._spawn(Ports.free())
            states = self._states()
            if states is not None:
                refused = [(entry, states.get(entry, (False, None))[1]) for entry in self.entries]
                failed = [(entry, reason) for entry, reason in refused if reason is not None or entry not in states]
                if failed:
                    raise EngineError(refusal(failed, len(self.entries)))
                ready = all(states[entry][0] for entry in self.entries)
                # Twice, since it answers a moment before it finds the metrics port taken, and is slow to end then; it
                # is also a moment before it listens there.
                if ready and was_ready and not self._lost_its_port() and self._shows_metrics():
                    self.stubs()
                    return
                was_ready = ready
            died = {pid: died.get(pid, time.monotonic()) for pid in dead_children(self.pid)}
            if states is None and self._lost_a_stub(died.values()):
                raise EngineError(_with_lines("Triton cannot start its python backend", self.tail(logging.INFO)))
            if time.monotonic() > deadline:
                raise EngineError(_with_lines(f"Triton was not ready within {timeout_s:g} seconds", self.tail()))
            time.sleep(_POLL_S)

    def _shows_metrics(self) -> bool:
        try:
            with socket.create_connection((HOST, self.ports.metrics), timeout=_POLL_S):
                return True
        except OSError:
            return False

    def stop(self, timeout_s: float | None = None) -> None:
        """End tritonserver in good order, or by force after `timeout_s`, and remove what it may have left behind.

        Call it for one that died, too; calling it again does nothing.
        """
        if self._stopped:
            return
        self._stopped = True
        stubs = self.stubs()
        self._regions.update(mapped_regions(self.pid))
        if self.poll() is None:
            deadline = time.monotonic() + (self.exit_timeout_s + 3.0 if timeout_s is None else timeout_s)
            self._process.terminate()
            # once its stubs have ended it only waits, for a second and more: what is left to do is done by `_clean_up`
            while self.poll() is None and not (stubs and not self.stubs()):
                if time.monotonic() > deadline:
                    logger.warning("tritonserver did not end in time and is killed.")
                    break
                time.sleep(_POLL_S / 2)
            self._process.kill()
            self._wait()
        self._clean_up()
        self._paths.remove()

    def _spawn(self, ports: Ports) -> None:
        self.ports = ports
        arguments = command(
            self.installation,
            self._repository,
            self.entries,
            backends=self._backends,
            ports=ports,
            server_id=self._id,
            key=self._key,
            exit_timeout_s=self.exit_timeout_s,
            traces_url=self.traces_url,
        )
        logger.debug("Starting %s", " ".join(arguments).replace(self._key, "…"))
        self._tail: deque[LogLine] = deque(maxlen=_TAIL_LINES)
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        # The thread that reads the log is also the one that starts the process: the kernel ends the child with it.
        self._pump = threading.Thread(
            target=_run,
            args=(arguments, self._environment, started, self._take),
            name="adapter-engine-log",
            daemon=True,
        )
        self._pump.start()
        process = started.get()
        if isinstance(process, OSError):
            raise EngineError(f"{sys.executable} cannot be started: {process.strerror}.") from process
        self._process = process

    def _take(self, text: str, before: LogLine | None) -> LogLine:
        """Read a line of the log and pass it on."""
        line = parse_line(self._paths.told(text), before=before)
        if not line.text:
            return line
        if line.block != "table":
            self._tail.append(line)
        if self._on_line is not None:
            self._on_line(line)
        logging.getLogger(line.logger).log(line.level, "%s", line.text, extra=line.extra)
        return line

    def _wait(self) -> None:
        while self.poll() is None:
            time.sleep(_POLL_S / 2)

    def _clean_up(self) -> None:
        """End what is left of the session of a tritonserver that has ended, and unlink its shared memory."""
        deadline = time.monotonic() + _LEFT_OVER_GRACE_S
        left = session(self.pid)
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = session(self.pid)
        for pid in left:
            stub = stub_of(pid)
            if stub is not None:
                self._regions.add(stub.region)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _LEFT_OVER_GRACE_S
        while session(self.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        for region in self._regions:
            (SHM_FOLDER / region).unlink(missing_ok=True)
        self._regions.clear()
        self._process.wait()
        self._pump.join(_LEFT_OVER_GRACE_S)

    def _lost_its_port(self) -> bool:
        return any("already in use" in line.text for line in list(self._tail) if line.level >= logging.ERROR)

    def _lost_a_stub(self, died: Iterable[float]) -> bool:
        """Tell whether a stub could not even begin: Triton waits for it without end. `died` are times of deaths."""
        said = [line.text for line in list(self._tail)]
        if any(text.startswith(NO_STUB) for text in said):
            return True
        grace = 0.0 if any(text.startswith(ABORTED) for text in said) else _DEAD_STUB_GRACE_S
        return any(time.monotonic() - moment >= grace for moment in died)

    def _states(self) -> dict[str, tuple[bool, str | None]] | None:
        """Return, for each entry that Triton tried, whether a version is ready and why not; None until it answers.

        Triton opens its port after it has loaded, or given up, what it starts with.
        """
        try:
            socket.create_connection((HOST, self.ports.grpc), timeout=1).close()
        except OSError:
            return None
        try:
            with grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS) as channel:
                triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                if triton.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=_CALL_TIMEOUT_S).name != self._id:
                    return None  # another Triton that took the port; ours ends when it finds out
                request = service_pb2.RepositoryIndexRequest()
                index: Any = triton.RepositoryIndex(request, metadata=self.metadata, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            raise EngineError(_with_lines(f"Triton has no models: {error.details()}", self.tail())) from error
        states: dict[str, tuple[bool, str | None]] = {}
        for row in index.models:
            ready, reason = states.get(row.name, (False, None))
            ready = ready or row.state == "READY"
            if row.state == "UNAVAILABLE" and row.reason != "unloaded":
                reason = self._paths.told(row.reason)
            elif not row.state and reason is None:  # not even tried: its config.pbtxt cannot be read
                reason = _with_lines("Triton did not try to load it", self.tail())
            states[row.name] = (ready, None if ready else reason)
        return states


def _run(
    arguments: list[str],
    env: Mapping[str, str],
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError],
    take: Callable[[str, LogLine | None], LogLine],
) -> None:
    tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *arguments]
    try:
        process = subprocess.Popen(
            tethered,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**env, worker_log.VARIABLE: "json"},
            start_new_session=True,
        )
    except OSError as error:
        started.put(error)
        return
    started.put(process)
    line: LogLine | None = None
    assert process.stdout is not None
    with process.stdout as output:
        for raw in output:
            line = take(raw.decode(errors="replace"), line)


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _with_lines(what: str, lines: Sequence[str]) -> str:
    if not lines:
        return f"{what}, and said nothing."
    return "\n".join([f"{what}. It said last:", *(f"  {part}" for line in lines for part in line.splitlines())])

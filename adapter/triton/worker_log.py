"""What the processes of an entry say, on Triton's own output: a line of text, or of JSON where `VARIABLE` asks for it.

The JSON is that of `adapter.server.logs`, so that a line can be told from what others print, however many lines its
message has, and names its entry and, where it runs one call only, the id of its HTTP request. `adapter serve` asks for
it and reads it; in a container, set ADAPTER_WORKER_LOG=json to have it in the log of Triton.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

VARIABLE = "ADAPTER_WORKER_LOG"
LOGGER = "adapter.runner"
COMPONENT = "runner"
_STDERR = 2
_LONGEST_PART = 64 * 1024  # of a line that does not end


@dataclass(frozen=True)
class Said:
    """One line, read; `logger` is the name of the logger in user code, LOGGER for a print and adapter's own."""

    level: int
    logger: str
    message: str
    entry: str
    request_id: str
    exception: str
    worker: Mapping[str, Any] | None = None
    """What has become of a worker process, told by its stub; see `worker_process.py`."""


@dataclass
class _Now:
    request_id: str = ""


running = _Now()
"""The id of the only request that is being worked on, "" where there are several or none."""


stream_id: ContextVar[str] = ContextVar("stream_id", default="")
"""The id of the request whose stream is being stepped; many take turns."""


def set_up(entry: str) -> None:
    """Write the log of this process, and as JSON also what it prints, to Triton's output."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Text())
    if _wants_json():
        handler = _Json(entry)
        for name in ("stdout", "stderr"):
            prints = _Prints(entry, getattr(sys, name))
            setattr(sys, name, prints)
            atexit.register(prints.end)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def say(entry: str, level: str, message: str, *, exception: str = "", worker: Mapping[str, Any] | None = None) -> None:
    """Say something of adapter's own without a logger: for Triton's stub, whose logging is not ours."""
    if _wants_json():
        _write(_line(entry, level, LOGGER, message, exception=exception, worker=worker))
    else:
        text = f"{message}:\n{exception}" if exception else message
        print(f"[{level}] [{LOGGER}] {text}", file=sys.stderr, flush=True)


def read(line: str) -> Said | None:
    """Read a line that was written as JSON; None for any other."""
    if not line.startswith('{"time": "'):
        return None
    try:
        found = json.loads(line)
        if found["component"] != COMPONENT:
            return None
        texts = {name: str(found.get(name, "")) for name in ("logger", "message", "entry", "request_id", "exception")}
        level = logging.getLevelName(found["level"])
        worker = found.get("worker")
    except (ValueError, KeyError, TypeError):
        return None
    level = level if isinstance(level, int) else logging.INFO  # a level of the user's own
    return Said(level=level, worker=worker if isinstance(worker, dict) else None, **texts)


def _wants_json() -> bool:
    return os.environ.get(VARIABLE) == "json"


def _line(
    entry: str,
    level: str,
    logger: str,
    message: str,
    *,
    request_id: str = "",
    exception: str = "",
    worker: Mapping[str, Any] | None = None,
) -> str:
    now = time.time()
    known = request_id or stream_id.get() or running.request_id
    parts = {"request_id": known, "entry": entry, "exception": exception, "worker": worker}
    return json.dumps(
        {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z",
            "level": level,
            "component": COMPONENT,
            "logger": logger,
            "message": message,
            **{name: value for name, value in parts.items() if value},
        }
    )


def _write(line: str) -> None:
    """Write in one go: a pipe takes that whole from every process, and nothing waits in a buffer when this one dies."""
    data = f"{line}\n".encode()
    while data:
        data = data[os.write(_STDERR, data) :]


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"[{record.levelname}] [{record.name}] {record.getMessage()}"
        exception = _exception(self, record)
        return f"{text}:\n{exception}" if exception else text


class _Json(logging.Handler):
    def __init__(self, entry: str) -> None:
        super().__init__()
        self._entry = entry
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _line(
                self._entry,
                record.levelname,
                record.name,
                record.getMessage(),
                request_id=getattr(record, "request_id", ""),
                exception=_exception(self._formatter, record),
            )
            _write(line)
        except Exception:  # noqa: BLE001  # as the handlers of logging do: a record that cannot be told ends nothing
            self.handleError(record)


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [getattr(record, "exception", "")]
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(part for part in parts if part)


class _Prints(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`: each whole line becomes one of the log."""

    def __init__(self, entry: str, stream: TextIO) -> None:
        self._entry = entry
        self._stream = stream
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            self._rest = rest.rpartition("\r")[2]  # what a progress bar has written over
            if len(self._rest) > _LONGEST_PART:
                lines.append(self._rest)
                self._rest = ""
        for line in lines:
            if shown := line.rstrip("\r").rpartition("\r")[2].rstrip():
                _write(_line(self._entry, "INFO", LOGGER, shown))
        return len(text)

    def end(self) -> None:
        """Write a last line that does not end."""
        if self._rest:
            self.write("\n")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a constant there
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # as above
        return "backslashreplace"

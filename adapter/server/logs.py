"""How every process of `adapter serve` writes its log: to stderr, as text or JSON, a line for each record.

Both say the same. As JSON: `time`, `level`, `component` (the process that speaks: `cli`, `api:1`, `engine`, `runner`),
`logger`, `message`, and where they are known `request_id`, `entry` (the entry of the model repository) and `exception`
(a traceback). A line of the access log has fields of its own besides.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import orjson
from starlette.types import Scope

from adapter.server.endpoint import BrokenOff
from adapter.settings import Access
from adapter.triton.request import request_id

Format = Literal["auto", "json", "text"]

ACCESS = "adapter.access"
_ATOMIC = select.PIPE_BUF  # what a pipe takes whole, so that lines of several processes do not mix
_FLUSH_S = 0.005
_MOST_WAITING = 8 << 20  # bytes for a reader that does not keep up
_LONGEST_END_S = 5.0


def set_up(component: str, *, format: Format = "auto", level: int | str = logging.INFO) -> None:  # noqa: A002
    """Write adapter's log to stderr: "text", "json", or with "auto" text for a terminal and JSON otherwise.

    `level` is the lowest that is shown. Loggers of other libraries and of user code are left as they are, but what
    nobody has set up is written the same way from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(component) if chosen(format) == "json" else _Text(component))
    logger = logging.getLogger("adapter")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    logger.propagate = False
    logging.captureWarnings(True)
    for name in ("uvicorn.error", "py.warnings"):
        other = logging.getLogger(name)
        other.handlers[:] = [handler]
        other.setLevel(logging.WARNING)
        other.propagate = False
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    last = logging.StreamHandler(sys.stderr)
    last.setFormatter(handler.formatter)
    last.setLevel(logging.WARNING)
    logging.lastResort = last


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BrokenOff))


def chosen(wanted: Format) -> Literal["json", "text"]:
    """The format that "auto" stands for here, or the one that was named."""
    if wanted == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return wanted


class _Formatter(logging.Formatter):
    """Finds out what a line says; each kind of it says how."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def _exception(self, record: logging.LogRecord) -> str:
        parts = [getattr(record, "exception", "")]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(part for part in parts if part)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        component, entry = getattr(record, "component", self._component), getattr(record, "entry", "")
        who = f"{component}:{entry}" if entry else component
        origin = getattr(record, "origin", "")
        text = f"[{origin}] {record.getMessage()}" if origin else record.getMessage()
        line = f"{_time(record.created)}+0000 [{record.levelname}] [{who}] {text}"
        exception = self._exception(record)
        return f"{line}\n{exception}" if exception else line


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        known = {
            "request_id": getattr(record, "request_id", "") or request_id.get(),
            "entry": getattr(record, "entry", ""),
            "exception": self._exception(record),
        }
        line = {
            "time": f"{_time(record.created)}.{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname,
            "component": getattr(record, "component", self._component),
            "logger": getattr(record, "origin", record.name),
            "message": record.getMessage(),
            **{name: value for name, value in known.items() if value},
        }
        return _dumps(line).decode()


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _dumps(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line)
    except orjson.JSONEncodeError:  # half of a surrogate pair, which text may hold and JSON may not
        return orjson.dumps({k: _whole(v) if isinstance(v, str) else v for k, v in line.items()})


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# ---- the access log -------------------------------------------------------------------------------------------------


class AccessLog:
    """A line for each request, on the event loop; `logging` would take longer than the rest of a small request.

    The lines of five milliseconds are written together. A reader of stderr that does not keep up never makes
    the loop wait: a thread waits for it then, and lines are dropped, and counted, only when 8 MB of them are waiting.
    `on_lost` is told how many. Silent while the level of the logger `adapter.access` is above INFO.
    """

    def __init__(
        self,
        component: str,
        wanted: Format,
        settings: Access,
        *,
        fd: int = 2,
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        self._component = component
        self._json = chosen(wanted) == "json"
        self._settings = settings
        self._asked_type, self._asked_length = settings.request_content_type, settings.request_content_length
        self._sent_type, self._sent_length = settings.response_content_type, settings.response_content_length
        self._logger = logging.getLogger(ACCESS)
        self._second, self._time = -1, ""
        self._writer = _Writer(fd, self._lost, on_lost)
        self._put = self._writer.put
        self.close = self._writer.close
        atexit.register(self.close)

    def record(
        self, scope: Scope, status: int, headers: Iterable[tuple[bytes, bytes]], seconds: float, identity: str
    ) -> None:
        """Note a request that has been answered with these `headers`, after so many seconds."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        asked_type = asked_length = sent_type = sent_length = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                asked_type = value
            elif name == b"content-length":
                asked_length = value
        for name, value in headers:
            if name == b"content-type":
                sent_type = value
            elif name == b"content-length":
                sent_length = value
        now = time.time()
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else scope["path"]
        client = scope.get("client")
        second = int(now)
        if second != self._second:
            self._second, self._time = second, _time(now)
        if self._json:
            self._put_json(
                now, scope, path, client, status, seconds, identity, (asked_type, asked_length, sent_type, sent_length)
            )
            return
        asked = f"scheme={scope['scheme']},method={scope['method']},path={path}"
        if self._asked_type:
            asked = f"{asked},type={asked_type.decode('latin-1')}"
        if self._asked_length:
            asked = f"{asked},length={asked_length.decode('latin-1')}"
        sent = f"status={status}"
        if self._sent_type:
            sent = f"{sent},type={sent_type.decode('latin-1')}"
        if self._sent_length:
            sent = f"{sent},length={sent_length.decode('latin-1')}"
        who = f"{client[0]}:{client[1]}" if client else "-"
        before = f"{self._time}+0000 [INFO] [{self._component}]"
        line = f"{before} {who} ({asked}) ({sent}) {seconds * 1000:.3f}ms (id={identity})"
        # a path or a header of the client's must not begin another line
        self._put((line if line.isprintable() else _escaped(line)).encode())

    def _put_json(
        self,
        now: float,
        scope: Scope,
        path: str,
        client: Sequence[Any] | None,
        status: int,
        seconds: float,
        identity: str,
        described: tuple[bytes, bytes, bytes, bytes],
    ) -> None:
        asked_type, asked_length, sent_type, sent_length = described
        line: dict[str, Any] = {
            "time": f"{self._time}.{int(now % 1 * 1000):03d}Z",
            "level": "INFO",
            "component": self._component,
            "logger": ACCESS,
            "message": f"{scope['method']} {path} {status}",
            "request_id": identity,
            "client": f"{client[0]}:{client[1]}" if client else None,
            "scheme": scope["scheme"],
            "method": scope["method"],
            "path": path,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
        }
        if self._asked_type:
            line["request_content_type"] = asked_type.decode("latin-1")
        if self._asked_length:
            line["request_content_length"] = _number(asked_length)
        if self._sent_type:
            line["response_content_type"] = sent_type.decode("latin-1")
        if self._sent_length:
            line["response_content_length"] = _number(sent_length)
        self._put(_dumps(line))

    def _lost(self, number: int) -> bytes:
        text = f"{number} lines of the access log were dropped: nobody read them."
        record = logging.LogRecord(ACCESS, logging.WARNING, "", 0, text, None, None)
        formatter = _Json(self._component) if self._json else _Text(self._component)
        return formatter.format(record).encode()


def _escaped(line: str) -> str:
    return line.encode("unicode_escape").decode("ascii")


def _number(length: bytes) -> int | None:
    return int(length) if length.isdigit() else None


class _Writer:
    """Writes lines to a file descriptor; the event loop never waits for its reader."""

    def __init__(self, fd: int, lost: Callable[[int], bytes], on_lost: Callable[[int], None] | None) -> None:
        self._fd = fd
        self._lost = lost
        self._on_lost = on_lost
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lines: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._waiting: collections.deque[bytes] = collections.deque()
        self._size = self._dropped = 0
        self._thread: threading.Thread | None = None

    def put(self, line: bytes) -> None:
        """Write a line, with others that come within a few milliseconds."""
        lines = self._lines
        # a loop that was closed before its time came writes nothing
        if not lines or self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(_FLUSH_S, self.flush)
        lines.append(line)

    def flush(self) -> None:
        """Write what was put; what nobody takes now is left to a thread."""
        lines, self._lines = self._lines, []
        for piece in _pieces(lines):
            if self._thread is None:
                piece = self._write(piece) if self._poll.poll(0) else piece
            if piece:
                self._leave(piece)

    def close(self) -> None:
        """Write everything; a reader that takes nothing is given five seconds."""
        self.flush()
        thread = self._thread
        if thread is not None:
            thread.join(_LONGEST_END_S)

    def _write(self, piece: bytes) -> bytes:
        """Write a piece; what is left of it."""
        try:
            return piece[os.write(self._fd, piece) :]
        except BlockingIOError:
            return piece
        except OSError:  # nobody will ever read it
            return b""

    def _leave(self, piece: bytes) -> None:
        with self._lock:
            if self._size + len(piece) > _MOST_WAITING:
                lines = piece.count(b"\n")
                self._dropped += lines
                if self._on_lost is not None:
                    self._on_lost(lines)
                return
            self._waiting.append(piece)
            self._size += len(piece)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="adapter-access-log", daemon=True)
                self._thread.start()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._waiting and self._dropped:
                    self._waiting.append(self._lost(self._dropped) + b"\n")
                    self._dropped = 0
                if not self._waiting:
                    self._thread = None
                    return
                piece = self._waiting[0]
            self._poll_once()
            left = self._write(piece)
            with self._lock:
                self._waiting.popleft()
                self._size -= len(piece) - len(left)
                if left:
                    self._waiting.appendleft(left)

    def _poll_once(self) -> None:
        poll = select.poll()  # not the event loop's own, which cannot be asked twice at once
        poll.register(self._fd, select.POLLOUT)
        poll.poll()


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many at a time as a pipe takes at once; a longer one is cut."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if len(line) >= _ATOMIC:
            line = line[: _ATOMIC - 4] + "…".encode()
        if size + len(line) + 1 > _ATOMIC:
            yield b"\n".join(piece) + b"\n"
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    if piece:
        yield b"\n".join(piece) + b"\n"

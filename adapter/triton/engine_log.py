"""Triton's log, line by line, as records of adapter's own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapter.triton import worker_log

ENGINE = "adapter.engine"
RUNNER = worker_log.LOGGER
_COMPONENT = "engine"
_OWN = ("adapter", "root")

# I1121 08:03:00.123456 4738 server.cc:604] "message"; the lines of gRPC's own library have nanoseconds and no quotes.
_LINE = re.compile(r"(?P<level>[VIWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<source>[^\s\]]+):\d+\] ?(?P<text>.*)")
_PROTOBUF = re.compile(r"\[libprotobuf (?P<level>[A-Z]+) \S+\] ?(?P<text>.*)")
# backend.py's and the worker's own log, and what may follow a line of it: more of its message, and tracebacks.
_WORKER = re.compile(r"\[(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\] \[(?P<name>[^\]\s]+)\] ?(?P<text>.*)")
_TRACE = "Traceback (most recent call last):"
_FOLLOWS = re.compile(
    rf"\s|$|{re.escape(_TRACE)}|During handling of the above |The above exception was |[\w.]+Error(: |$)"
)
_RAISED = re.compile(r"[^\W\d][\w.]*(: |$)")  # the line below the frames, whatever the exception's name
_CONTINUED = re.compile(r"\s|At:|$")  # an empty line, and the traceback that pybind11 puts below a message
_LEVELS = {"W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
# Said by a stub that could not begin; Triton tells nobody.
NO_STUB = "Failed to run python backend stub"
ABORTED = "terminate called"
# What Triton says at WARNING or ERROR on a machine without a GPU, and of an entry that it cannot load: four times with
# the traceback, which whoever asked for the load is told as well.
_NOISE = re.compile(
    r"NVML|DCGM|CudaDriverHelper|CUDA memory pool|[Pp]inned (system )?memory|pinned memory pool"
    r"|unable to create stream for|ERROR: Failed to create instance|[Ll]oad failed for model"
    r"|failed to (load|poll model) '|^Signal \(\d+\) received"
)


@dataclass(frozen=True)
class LogLine:
    """One line: `level` as in `logging`, `logger` its name there, `source` Triton's own file, "" for a plain print.

    What a worker says in JSON names its `entry`, and where they are known the `request_id` of the HTTP request, the
    `exception`, and as `origin` the logger in user code; its stub says what has become of the `worker`. `block` says
    what a line belongs to, or opens, over several lines: a "table", a "text" that Triton wrote raw, an entry of the
    worker's own "log", or a "traceback" in it.
    """

    level: int
    logger: str
    text: str
    source: str = ""
    block: Literal["", "table", "text", "log", "traceback"] = ""
    entry: str = ""
    request_id: str = ""
    exception: str = ""
    origin: str = ""
    worker: Mapping[str, Any] | None = None

    @property
    def whole(self) -> str:
        """What it says, with its traceback."""
        return f"{self.text}\n{self.exception}" if self.exception else self.text

    @property
    def extra(self) -> dict[str, Any]:
        """What a record of `logging` is told besides; see `adapter.server.logs`."""
        known = {"entry": self.entry, "request_id": self.request_id, "exception": self.exception, "origin": self.origin}
        component = worker_log.COMPONENT if self.logger == RUNNER else _COMPONENT
        return {"component": component, **{name: value for name, value in known.items() if value}}


def parse_line(line: str, *, before: LogLine | None = None) -> LogLine:
    """Read a line that tritonserver or a stub wrote; `before` is what the line before it was.

    Triton's own lines go to `adapter.engine`, its chatter at DEBUG. What a model says goes to `adapter.runner`: by
    a logger in the worker at its level, with the logger's name where that is not adapter's; by a print as it is.
    """
    line = line.rstrip()
    said = worker_log.read(line)
    if said is not None:
        return LogLine(
            said.level,
            RUNNER,
            said.message,
            entry=said.entry,
            request_id=said.request_id,
            exception=said.exception,
            worker=said.worker,
            origin="" if said.logger.partition(".")[0] in _OWN else said.logger,
        )
    match = _LINE.fullmatch(line)
    if match is None:
        return _plain(line, before)
    text, source = match["text"].strip(), match["source"]
    message = _unquoted(text)
    block: Literal["", "table", "text"] = "table" if not text else "text" if message is None else ""
    message = text if message is None else message
    if source.endswith(".py"):
        return LogLine(_LEVELS.get(match["level"], logging.INFO), RUNNER, message, source, block)
    level = logging.DEBUG if _NOISE.search(message) else _LEVELS.get(match["level"], logging.DEBUG)
    return LogLine(level, ENGINE, message, source, block)


def _plain(line: str, before: LogLine | None) -> LogLine:
    if before is not None and before.block == "table" and line:
        return LogLine(logging.DEBUG, ENGINE, line, block="table")
    if before is not None and before.block == "text" and _CONTINUED.match(line):
        return LogLine(before.level, before.logger, line, block="text")
    worker = _WORKER.fullmatch(line)
    if worker:
        own = worker["name"].partition(".")[0] in _OWN
        text = worker["text"] if own else f"[{worker['name']}] {worker['text']}"
        return LogLine(getattr(logging, worker["level"]), RUNNER, text, block="log")
    if before is not None and before.block in ("log", "traceback"):
        in_frames = before.block == "traceback"
        if _FOLLOWS.match(line) or (in_frames and _RAISED.match(line)):
            frames = line == _TRACE or (in_frames and line[:1].isspace())
            return LogLine(before.level, before.logger, line, block="traceback" if frames else "log")
    if line.startswith((NO_STUB, ABORTED)):
        return LogLine(logging.ERROR, ENGINE if line.startswith(NO_STUB) else RUNNER, line, block="log")
    protobuf = _PROTOBUF.fullmatch(line)
    if protobuf:
        return LogLine(logging.WARNING if protobuf["level"] == "WARNING" else logging.ERROR, ENGINE, protobuf["text"])
    if not line or _NOISE.search(line):
        return LogLine(logging.DEBUG, ENGINE, line)
    return LogLine(logging.INFO, RUNNER, line)


def _unquoted(text: str) -> str | None:
    """Return the message of a quoted line, None for one that is not quoted: by an older Triton, or a stub's first."""
    if text[:1] != '"':
        return None
    try:
        return str(json.loads(text)).rstrip()
    except ValueError:
        return None

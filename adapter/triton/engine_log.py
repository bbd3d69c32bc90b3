"""Triton's log, line by line, as records of adapter's own."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass

ENGINE = "adapter.engine"
RUNNER = "adapter.runner"

# I1121 08:03:00.123456 4738 server.cc:604] "message"; the lines of gRPC's own library have nanoseconds and no quotes.
_LINE = re.compile(r"(?P<level>[VIWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<source>[^\s\]]+):\d+\] ?(?P<text>.*)")
_PROTOBUF = re.compile(r"\[libprotobuf (?P<level>[A-Z]+) \S+\] ?(?P<text>.*)")
_LEVELS = {"W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
# What Triton says at WARNING or ERROR on a machine without a GPU, and of an entry that it cannot load: four times with
# the traceback, which whoever asked for the load is told as well.
_NOISE = re.compile(
    r"NVML|DCGM|CudaDriverHelper|CUDA memory pool|[Pp]inned (system )?memory|pinned memory pool"
    r"|ERROR: Failed to create instance|[Ll]oad failed for model|failed to (load|poll model) '|^Signal \(\d+\) received"
)


@dataclass(frozen=True)
class LogLine:
    """One line: `level` as in `logging`, `logger` its name there, `source` Triton's own file, "" for a plain print."""

    level: int
    logger: str
    text: str
    source: str = ""

    @property
    def opens_table(self) -> bool:
        """Whether lines of a table follow, up to an empty one."""
        return bool(self.source) and not self.text


def parse_line(line: str, *, in_table: bool = False) -> LogLine:
    """Read a line that tritonserver or a stub wrote.

    Triton's own lines go to `adapter.engine`, its chatter at DEBUG. What a model says, by Triton's logger or a print,
    goes to `adapter.runner` as it is.
    """
    line = line.rstrip()
    match = _LINE.fullmatch(line)
    if match is None and (protobuf := _PROTOBUF.fullmatch(line)):
        return LogLine(logging.WARNING if protobuf["level"] == "WARNING" else logging.ERROR, ENGINE, protobuf["text"])
    if match is None:
        if in_table or not line or _NOISE.search(line):
            return LogLine(logging.DEBUG, ENGINE, line)
        return LogLine(logging.INFO, RUNNER, line)
    text, source = _unquoted(match["text"].strip()), match["source"]
    if source.endswith(".py"):
        return LogLine(_LEVELS.get(match["level"], logging.INFO), RUNNER, text, source)
    level = logging.DEBUG if _NOISE.search(text) else _LEVELS.get(match["level"], logging.DEBUG)
    return LogLine(level, ENGINE, text, source)


def _unquoted(text: str) -> str:
    if text[:1] == '"':
        try:
            return str(json.loads(text)).rstrip()
        except ValueError:  # an older Triton writes messages raw
            pass
    return text

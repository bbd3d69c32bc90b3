"""How every process of `adapter serve` writes its log."""

from __future__ import annotations

import logging
import sys
import time


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(record.created))


def set_up(component: str, *, level: int = logging.INFO) -> None:
    """Write adapter's log to stderr, a line each: time, level, component, message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s [%(levelname)s] [{component}] %(message)s"))
    logger = logging.getLogger("adapter")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    logging.captureWarnings(True)
    for name in ("uvicorn.error", "py.warnings"):
        other = logging.getLogger(name)
        other.handlers[:] = [handler]
        other.setLevel(logging.WARNING)
        other.propagate = False

"""The machine that results come from: what of it makes them higher or lower."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

_LOOK_S = 1.0
LIBRARIES = (
    ("triton-adapter", "adapter"),
    *((name, name) for name in ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf")),
    *((name, name) for name in ("tritonclient", "numpy", "orjson", "pandas", "pillow", "scikit-learn")),
)


def describe(triton: str | None, wrk: str) -> dict[str, str]:
    """Describe this machine and what is measured on it, now; `busy before` tells whether it was quiet."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "CPU": cpu_model(Path("/proc/cpuinfo").read_text()) or platform.machine(),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Triton": triton or "unknown",
        "wrk": wrk,
        "libraries": libraries(importlib.metadata.version),
        "busy before": f"{_busy_now():.0%}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def busy(before: str, after: str) -> float:
    """The part of all CPU time between two readings of /proc/stat in which something else was running."""
    first, last = ([int(n) for n in text.split("\n", 1)[0].split()[1:9]] for text in (before, after))
    spent = [b - a for a, b in zip(first, last, strict=True)]
    idle = spent[3] + spent[4]  # waiting for a disk is idle, too
    return 1 - idle / sum(spent) if sum(spent) else 0.0


def _busy_now() -> float:
    before = Path("/proc/stat").read_text()
    time.sleep(_LOOK_S)
    return busy(before, Path("/proc/stat").read_text())


def cpu_model(cpuinfo: str) -> str:
    """The model in the text of /proc/cpuinfo; "" where it names none, as on ARM."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]).strip() if found else ""


def libraries(version: Callable[[str], str]) -> str:
    """The versions of the libraries that the results depend on."""
    found = []
    for distribution, name in LIBRARIES:
        try:
            found.append(f"{name} {version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def wrk_version(program: str) -> str:
    """What wrk calls itself."""
    # it knows no option for this, and ends with 1 after saying it
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"wrk (\S+)", said)
    return found[1] if found else "unknown"

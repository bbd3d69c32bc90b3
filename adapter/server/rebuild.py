"""Imports a service as it is now, exports it and loads what changed: `python -m adapter.server.rebuild`.

Started by `reload.py` with the pid of its parent and the file descriptor for its answer; what it shall do comes as one
line on its standard input.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from adapter.exceptions import AdapterError, StateException
from adapter.server import logs
from adapter.server.launch import load_recorded
from adapter.server.reload import RebuildOptions, Rebuilt
from adapter.server.watched import files_of
from adapter.settings import Settings
from adapter.triton.admin import Control
from adapter.triton.export import ExportPlan, Written, plan, write
from adapter.tuning import tailored

_PR_SET_PDEATHSIG = 1


def rebuild(options: RebuildOptions) -> Rebuilt:
    """Import, export and load; an error is a sentence of the answer."""
    planned: ExportPlan | None = None
    tags: Mapping[str, str] = {}
    settings = Settings.from_json(options.settings)
    try:
        service, tags = load_recorded(options.target, Path(options.working_dir), settings.runners)
        entries: dict[str, int] = {}
        loaded: list[str] = []
        if not options.development:
            planned = plan(service, folder=Path.cwd(), tags=tags)
            if planned.entries and options.url is None:
                raise StateException(
                    f"The service {service.name!r} has its first runner now: start `adapter serve` again, which starts "
                    "Triton for it."
                )
            if options.repository is not None:
                written = _write(planned, Path(options.repository))
                entries = {w.name: w.version for w in written}
                before = options.entries or {}
                loaded = [w.name for w in written if w.changed or before.get(w.name) != w.version]
        if loaded and options.url is not None:
            Control(options.url, options.metadata).load(loaded)
        told = tailored(settings, service).to_json()
        return Rebuilt(told, service.name, entries, tuple(loaded), _files(planned, tags))
    except AdapterError as error:
        return Rebuilt(options.settings, files=_files(planned, tags), error=error.message)


def _write(planned: ExportPlan, repository: Path) -> list[Written]:
    """Write the export, whole even where this process is told to end meanwhile."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        return write(planned, repository)
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked:
            signal.raise_signal(signal.SIGTERM)


def _files(planned: ExportPlan | None, tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(files_of(planned, tags)))


def main() -> int:
    """Wait for the word, rebuild, and answer."""
    parent, answer = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    line = sys.stdin.readline()
    if not line or os.getppid() != parent:
        return 0
    options = RebuildOptions.from_json(line)
    logging = Settings.from_json(options.settings).api_server.logging
    logs.set_up("reload", format=logging.format, level=logging.level)
    rebuilt = rebuild(options)
    with os.fdopen(answer, "w") as file:
        file.write(rebuilt.to_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The files that a service consists of while somebody works on it, and what tells that one of them changed."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from watchfiles import Change, watch

from adapter import models
from adapter.tag import Tag
from adapter.triton.export import ExportPlan
from adapter.triton.sources import own_source

logger = logging.getLogger("adapter.server")

SUFFIXES = (".py", ".yaml", ".yml")
_LEFT_OUT = ("__pycache__", "node_modules", "site-packages")
_ENVIRONMENT = "pyvenv.cfg"
_STEP_MS = 50  # files are written a few at a time, by editors and by `git checkout`: wait until none follows
_LONGEST_MS = 400
_ARMED_MS = 1_000

State = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Watched:
    """What counts as the service: Python and YAML files below `folder`, and `files` wherever they lie.

    A folder among `files` changes when something comes into it or goes.
    Hidden folders, those of virtual environments and the like, and `without` are left out.
    """

    folder: Path
    files: frozenset[str] = frozenset()
    without: Path | None = None

    def state(self) -> State:
        """The time and the size of each file; two are equal where nothing changed between them."""
        found: dict[str, tuple[int, int]] = {}
        for folder in self.folders_below():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                        _note(entry.path, found)
        for file in self.files:
            _note(file, found)
        return found

    def folders(self) -> frozenset[str]:
        """The folders in which such a file can change or appear."""
        places = (place for file in self.files for place in (file, os.path.dirname(file)))
        return frozenset([*self.folders_below(), *filter(os.path.isdir, places)])

    def folders_below(self) -> Iterator[str]:
        without = str(self.without) if self.without is not None else None
        for folder, names, files in os.walk(self.folder):
            if _ENVIRONMENT in files or folder == without:
                names.clear()
                continue
            names[:] = [n for n in names if not n.startswith(".") and n not in _LEFT_OUT]
            yield folder

    def concerns(self, path: str) -> bool:
        """Whether a change of this path can be one of the service; a folder's can be, since it may be new."""
        return path.endswith(SUFFIXES) or path in self.files or os.path.isdir(path)


def _note(path: str, found: dict[str, tuple[int, int]]) -> None:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        found[path] = status.st_mtime_ns, status.st_size


def changed(before: State, after: State) -> list[str]:
    """The files that differ between two states, in order."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def files_of(plan: ExportPlan | None, tags: Mapping[str, str]) -> frozenset[str]:
    """The files of a service that this process has imported, which count wherever they lie.

    They are the person's own modules, what the planned entries carry of the person's files, and in the model store the
    folder of each name that was asked for without its version.
    """
    modules = (own_source(name) for name in list(sys.modules) if name != "__main__")
    store = models.store().root
    carried = _carried(plan, store) if plan is not None else ()
    asked = (Tag.parse(tag) for tag, found in tags.items() if tag != found)
    versions = (store / tag.name for tag in asked)
    return frozenset(str(path) for path in (*filter(None, modules), *carried, *versions))


def _carried(plan: ExportPlan, store: Path) -> Iterable[Path]:
    for entry in plan.entries:
        for content in entry.files.values():
            if isinstance(content, Path) and not content.is_relative_to(store):  # a version there never changes
                yield content


class Watcher:
    """Makes `fd` readable when something of what is watched may have changed."""

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders: frozenset[str] = frozenset()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: Watched | None = None

    def watch(self, watched: Watched) -> None:
        """Watch this from now on."""
        folders = watched.folders()
        self._watched = watched
        if folders == self._folders:
            return
        self._end()
        self._folders, self._stop = folders, threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(folders, self._stop), name="adapter-reload", daemon=True
        )
        self._thread.start()

    def drain(self) -> bool:
        """Whether it was woken since it was asked last."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self.fd, 4096))
        return False

    def close(self) -> None:
        self._end()
        os.close(self.fd)
        os.close(self._wake)

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, folders: frozenset[str], stop: threading.Event) -> None:
        try:
            self._tell(folders, stop, polling=None)
        except FileNotFoundError:  # a folder that has just gone: whoever is woken looks again
            self._folders = frozenset()
            self.ring()
        except OSError as error:
            logger.warning(
                "The files of the service are looked at again and again, since the system does not tell of changes: %s",
                error,
            )
            self._tell(folders, stop, polling=True)

    def _tell(self, folders: frozenset[str], stop: threading.Event, *, polling: bool | None) -> None:
        armed = False
        for changes in watch(
            *folders,
            recursive=False,
            watch_filter=self._concerns,
            step=_STEP_MS,
            debounce=_LONGEST_MS,
            stop_event=stop,
            rust_timeout=_ARMED_MS,
            yield_on_timeout=True,
            force_polling=polling,
            ignore_permission_denied=True,
            raise_interrupt=False,
        ):
            if changes or not armed:  # what changed before it listened was not told
                self.ring()
            armed = True

    def _concerns(self, change: Change, path: str) -> bool:
        return self._watched is not None and self._watched.concerns(path)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"+")

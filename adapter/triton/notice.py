"""What the launcher tells the fronts of the engine: where it is now, and which entries cannot be called.

It lies in a file, whole at any moment, and each front has an eventfd that is rung when it has changed: the newest
notice is all that counts, so none can be missed, and nobody waits for a front that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

_FILE = "notice.json"


@dataclass(frozen=True)
class Number:
    """One number for the metrics page; `kind` is counter or gauge."""

    name: str
    text: str
    labels: tuple[tuple[str, str], ...] = ()
    value: float = 0.0
    kind: str = "counter"


@dataclass(frozen=True)
class Notice:
    """`url` and `metrics_url` say where Triton is, None where there is none of our own.

    Calls of the entries in `refused` would fail, for the reason beside each; those in `not_ready` may not, and wait.
    """

    url: str | None = None
    metrics_url: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    not_ready: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Notice:
        record = json.loads(text)
        numbers = tuple(
            Number(**{**number, "labels": tuple((name, value) for name, value in number["labels"])})
            for number in record.pop("numbers")
        )
        return cls(**record, numbers=numbers)


class Board:
    """Where the launcher puts up the newest notice; its threads share it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE
        self._lock = threading.Lock()
        self._notice = Notice()
        self._numbers: dict[tuple[str, tuple[tuple[str, str], ...]], Number] = {}
        self._bells: set[int] = set()
        self._write(self._notice)

    @property
    def notice(self) -> Notice:
        return self._notice

    def post(self, **changes: Any) -> None:
        """Put up the notice with some fields changed, and ring where that makes a difference."""
        with self._lock:
            notice = replace(self._notice, **changes, numbers=tuple(self._numbers.values()))
            if notice == self._notice:
                return
            rings = any(getattr(notice, f.name) != getattr(self._notice, f.name) for f in fields(notice)[:-1])
            self._write(notice)  # first: what could not be written is put up by the next call
            self._notice = notice
            if rings:
                for bell in self._bells:
                    os.eventfd_write(bell, 1)

    def count(self, name: str, text: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter; it is shown with the next `post`."""
        with self._lock:
            key = name, tuple(sorted(labels.items()))
            known = self._numbers.get(key) or Number(name, text, key[1])
            self._numbers[key] = replace(known, value=known.value + by)

    def level(self, name: str, text: str, value: float) -> None:
        """Set a gauge; it is shown with the next `post`."""
        with self._lock:
            self._numbers[name, ()] = Number(name, text, (), value, "gauge")

    def bell(self) -> int:
        """An eventfd for one front, which inherits it; end it with `silence`."""
        with self._lock:
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._bells.add(bell)
            return bell

    def silence(self, bell: int) -> None:
        with self._lock:
            self._bells.discard(bell)
            os.close(bell)

    def _write(self, notice: Notice) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(notice.to_json())
        part.replace(self.path)


class Notices:
    """A front's view of the board."""

    def __init__(self, path: Path, bell: int) -> None:
        self._path = path
        self._bell = bell

    def read(self) -> Notice:
        """The newest notice; an empty one where the launcher has gone."""
        try:
            return Notice.from_json(self._path.read_text())
        except OSError:
            return Notice()

    def follow(self, heard: Callable[[Notice], None]) -> None:
        """Call `heard` with the notice as it is now, and on the event loop whenever there is a new one."""
        asyncio.get_running_loop().add_reader(self._bell, self._rung, heard)
        heard(self.read())

    def leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._bell)

    def _rung(self, heard: Callable[[Notice], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        heard(self.read())

"""Folders that last as long as this process, and what is left of those of processes that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_OWNER = ".owner"


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that lasts as long as this process; those with the same prefix whose process was killed are removed."""
    _remove_leftovers(prefix)
    folder, owner = _owned(prefix)
    try:
        with owner:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owned(prefix: str) -> tuple[Path, IO[str]]:
    """A new folder, and the file in it that is locked; another process may take one without a lock for a leftover."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        with contextlib.suppress(FileNotFoundError):
            owner = (folder / _OWNER).open("w")
            fcntl.flock(owner, fcntl.LOCK_EX)
            if (folder / _OWNER).exists():
                return folder, owner
            owner.close()


def _remove_leftovers(prefix: str) -> None:
    """Nobody holds the lock of a folder whose process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (folder / _OWNER).open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)

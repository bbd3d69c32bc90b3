"""Folders under names that Triton can use: it passes some through a shell, unquoted, and others to code for ASCII."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from adapter.exceptions import EngineError

# What bash takes as it is: Triton hands it the paths of stub and entry without quotes. The stub itself reads no path
# that is not ASCII.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/+-]+")


class PlainPaths:
    """Other names, which a shell takes as they are, for the folders that need one; `remove` ends them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._parents = (env.get("TMPDIR") or "/tmp", "/tmp")
        self._folder: Path | None = None
        self._links: dict[str, str] = {}

    def of(self, path: Path) -> Path:
        """Return the path itself where it is plain, else a link to it; EngineError where none can be made."""
        for plain in (path.absolute(), path.resolve()):
            if _PLAIN_PATH.fullmatch(str(plain)):
                return plain
        if self._folder is None:
            self._folder = self._made(path)
        link = self._folder / str(len(self._links) + 1)
        link.symlink_to(path.absolute())
        self._links[str(link)] = str(path.absolute())
        return link

    def told(self, text: str) -> str:
        """Return what Triton or a model says with the names that people know."""
        for link, path in self._links.items():
            text = text.replace(link, path)
        return text

    def remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _made(self, path: Path) -> Path:
        for parent in map(os.path.abspath, self._parents):
            if _PLAIN_PATH.fullmatch(parent):
                with contextlib.suppress(OSError):
                    return Path(tempfile.mkdtemp(prefix="adapter-engine-", dir=parent))
        raise EngineError(
            f"Triton cannot use {str(path)!r}, whose name is more than plain letters, digits and ._/+-, and there is "
            "no folder for a link to it: set TMPDIR to a folder with a plain name that can be written."
        )

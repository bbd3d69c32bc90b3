"""`adapter serve --reload`: has the service rebuilt by a fresh process whenever its files change.

The launcher has imported the service as it was, so a process of its own imports it as it is now, exports it, and loads
what changed into the running engine (`rebuild.py`). It is started ahead: its own imports are done when it is needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from adapter.exceptions import ConfigException
from adapter.server.watched import State, Watched, Watcher, changed
from adapter.settings import Settings

logger = logging.getLogger("adapter.server")

KEPT = "The service goes on as it was before."
# The time in a .pyc file is of whole seconds: a file saved twice in one second would be read as it was at first.
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1"}
_END_S = 10.0
_SHOWN_FILES = 3


@dataclass(frozen=True)
class RebuildOptions:
    """What a rebuilding process needs to know.

    `settings` are as JSON; `repository` is None where runners are in the fronts or there are none; `url` and `metadata`
    open the engine; `entries` are those that are loaded there, with their versions.
    """

    target: str
    working_dir: str
    development: bool
    settings: str
    repository: str | None = None
    url: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    entries: Mapping[str, int] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RebuildOptions:
        record = json.loads(text)
        return cls(**{**record, "metadata": tuple((key, value) for key, value in record["metadata"])})


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuilding process did: the entries that the service has now, and those of them that it loaded.

    `settings` are those that it was told. `files` are the service's, wherever they lie. With an `error`, a sentence,
    nothing else changed.
    """

    settings: str
    service: str = ""
    entries: Mapping[str, int] | None = None
    loaded: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    error: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Rebuilt:
        record = json.loads(text)
        return cls(**{**record, "loaded": tuple(record["loaded"]), "files": tuple(record["files"])})


class Reloader:
    """Watches the files of a service and rebuilds it; its owner waits for `fds`, and calls `poll` then."""

    def __init__(
        self,
        options: RebuildOptions,
        files: frozenset[str],
        reread: Callable[[], Settings],
        environ: Mapping[str, str],
        engine: Callable[[], tuple[str, tuple[tuple[str, str], ...]]] | None = None,
    ) -> None:
        """`engine` tells where Triton is now, and what opens it."""
        self._options = options
        self._reread = reread
        self._engine = engine
        self._environ = {**environ, **ENVIRONMENT}
        without = Path(options.repository) if options.repository is not None else None
        self._watched = Watched(Path(options.working_dir), files, without)
        self._watcher = Watcher()
        self._watcher.watch(self._watched)
        self._seen: State = self._watched.state()
        self._next: _Rebuild | None = None
        self._running: _Rebuild | None = None
        self._old: set[str] = set()
        self._unused: set[str] = set()

    @property
    def fds(self) -> list[int]:
        return [self._watcher.fd, *([self._running.fd] if self._running is not None else [])]

    @property
    def changes(self) -> int:
        """A file descriptor that is readable when files may have changed."""
        return self._watcher.fd

    def look(self) -> bool:
        """Begin a rebuild where files have changed, and end one that is under way; whether they have."""
        if not self._watcher.drain():
            return False
        self._watcher.watch(self._watched)
        state = self._watched.state()
        differing = changed(self._seen, state)
        self._seen = state
        if differing:
            self._begin(differing)
        return bool(differing)

    def poll(self) -> Rebuilt | None:
        """Look for changes, and return what became of a rebuild when it is done and has made something new."""
        self.look()
        text = self._running.read() if self._running is not None else None
        if self._running is None or text is None:
            return None
        running, self._running = self._running, None
        running.end()
        return self._take(text)

    def prepare(self) -> None:
        """Start the process of the next rebuild, so that it has done its imports by then."""
        if self._next is None and self._running is None:
            self._next = _Rebuild(self._environ)

    def renewed(self) -> None:
        """Take note that no front is started any more that needs the entries of before."""
        self._unused |= self._old
        self._old.clear()

    def unused(self) -> list[str]:
        """The entries that are loaded and that no service needs any more; tells them once."""
        found = sorted(self._unused)
        self._unused.clear()
        return found

    def close(self) -> None:
        self._watcher.close()
        for process in (self._next, self._running):
            if process is not None:
                process.end()

    def _begin(self, differing: list[str]) -> None:
        logger.info("%s changed: the service is loaded anew.", _shown(differing, self._watched.folder))
        if self._running is not None:
            self._running.end()
            self._running = None
        try:
            self._options = replace(self._options, settings=self._reread().to_json())
            if self._engine is not None:
                url, metadata = self._engine()
                self._options = replace(self._options, url=url, metadata=metadata)
        except ConfigException as error:
            logger.error("%s %s", error, KEPT)
            return
        self._running, self._next = self._next or _Rebuild(self._environ), None
        self._running.begin(self._options)

    def _take(self, text: str) -> Rebuilt | None:
        try:
            rebuilt = Rebuilt.from_json(text)
        except ValueError:  # it died; what it printed stands above
            logger.error("The service cannot be loaded anew. %s", KEPT)
            return None
        self._follow(frozenset(rebuilt.files))
        if rebuilt.error:
            logger.error("%s%s%s", rebuilt.error, "\n" if "\n" in rebuilt.error else " ", KEPT)
            return None
        entries = dict(rebuilt.entries or {})
        self._old |= (self._options.entries or {}).keys()
        self._old -= entries.keys()
        self._unused -= entries.keys()
        self._options = replace(self._options, entries=entries)
        return rebuilt

    def _follow(self, files: frozenset[str]) -> None:
        """Watch what the service consists of now; files stay that it named before, since it may be broken."""
        self._watched = replace(self._watched, files=self._watched.files | files)
        self._watcher.watch(self._watched)
        state = self._watched.state()
        new = {path: state[path] for path in state.keys() & files if path not in self._seen}
        self._seen = {**self._seen, **new}
        if changed(self._seen, state):
            self._watcher.ring()


class _Rebuild:
    """A process that has done its own imports and waits for the word."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.fd, theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self._read = b""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adapter.server.rebuild", str(os.getpid()), str(theirs)],
                stdin=subprocess.PIPE,
                env=environ,
                pass_fds=(theirs,),
                start_new_session=True,  # CTRL+C reaches the launcher alone
            )
        finally:
            os.close(theirs)

    def begin(self, options: RebuildOptions) -> None:
        with contextlib.suppress(BrokenPipeError):
            stdin = self._stdin
            stdin.write(options.to_json().encode() + b"\n")
            stdin.close()

    def read(self) -> str | None:
        """What it answers, "" where it died without an answer, None until it is done."""
        while True:
            try:
                part = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return None
            self._read += part
            if not part or part.endswith(b"\n"):  # a process that it left behind may hold the pipe open
                return self._read.decode()

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self.fd)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def _shown(files: list[str], folder: Path) -> str:
    names = [os.path.relpath(f, folder) if Path(f).is_relative_to(folder) else f for f in files]
    more = len(names) - _SHOWN_FILES
    return ", ".join(names[:_SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")

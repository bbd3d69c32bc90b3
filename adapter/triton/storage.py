"""Where a model repository lies: a folder of this machine, or object storage. What is written is whole at any moment.

To add a kind of object storage, add a line to `_LIBRARIES`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adapter.exceptions import ConfigException, ExportError, MissingDependencyException, sentence
from adapter.triton.capture import file_digest
from adapter.triton.spec import FILE as SPEC

Content = bytes | Path | Callable[[], bytes]
Tell = Callable[[str], None]

# scheme -> the library that fsspec reads it with, and the extra that installs it
_LIBRARIES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
_SCHEME = re.compile(r"([a-z0-9+.-]+)://(.*)", re.IGNORECASE | re.DOTALL)
_LOCK, _OBJECT = ".adapter.lock", ".adapter.writer"  # two names, since a folder may be copied to a bucket, lock and all
# in a version folder of object storage: the digest of each file, so that it need not be sent again
_DIGESTS = ".adapter-files.json"
_SCRATCH = re.compile(r"\..+\.[0-9a-f]{32}")
_POLL_S = 0.5
_RENEW_S = 10.0
_LOST_S = 60.0  # a lock that was not renewed for so long is nobody's


class Storage(Protocol):
    """A model repository that is written; paths are relative to its root, with `/` between their parts.

    Every call raises ExportError where the storage cannot be reached or written.
    """

    place: str
    renames: bool
    """Whether a folder is there at once, and not file by file."""

    def lock(self, tell: Tell) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out; where one is at work, `tell` gets a sentence, and this waits."""
        ...

    def read(self, path: str) -> bytes | None:
        """A file; None where there is none."""
        ...

    def replace(self, path: str, content: bytes) -> None:
        """Write a file, whole at any moment."""
        ...

    def names(self, folder: str) -> list[str] | None:
        """What lies in a folder, but for what is hidden; None where there is no such folder."""
        ...

    def digests(self, folder: str) -> Mapping[str, str]:
        """The digest of each file below a folder that `put` has written; nothing where there is none."""
        ...

    def put(self, folder: str, files: Mapping[str, Content], last: Sequence[str], like: str = "") -> None:
        """Write a folder that is not there yet, or not whole.

        `last` are the files without which the others are not looked at, and `like` is a folder that may have some of
        them already.
        """
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy a folder."""
        ...

    def move(self, source: str, target: str) -> None:
        """Rename a folder; the files of it that `put` takes as last come last."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or a folder, where there is one."""
        ...

    def sweep(self, folder: str = "") -> None:
        """Remove what writers that were killed have left in a folder."""
        ...


def storage(place: str | Path) -> Storage:
    """The storage at a path, or at an address such as `s3://bucket/prefix`.

    ConfigException where there is no such kind, MissingDependencyException where its library is not installed.
    """
    if isinstance(place, str) and (address := _SCHEME.fullmatch(place)):
        return Bucket(place, address[1].lower(), address[2])
    return Folder(Path(place))


def digest(content: Content) -> str:
    """What differs where a file does."""
    if isinstance(content, Path):
        return file_digest(content)
    return hashlib.sha256(content() if callable(content) else content).hexdigest()


class Folder:
    """A repository in a folder of this machine."""

    renames = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    @contextlib.contextmanager
    def lock(self, tell: Tell) -> Iterator[None]:
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / _LOCK).open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"{self.place} is being written by another process; this one waits until that is done.")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, path: str) -> bytes | None:
        with self._writing():
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def replace(self, path: str, content: bytes) -> None:
        target = self.root / path
        scratch = _beside(target)
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
            scratch.replace(target)

    def names(self, folder: str) -> list[str] | None:
        path = self.root / folder
        with self._writing():
            return sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else None

    def digests(self, folder: str) -> Mapping[str, str]:
        path = self.root / folder
        with self._writing():
            files = [file for file in path.rglob("*") if file.is_file()]
            return {file.relative_to(path).as_posix(): file_digest(file) for file in files}

    def put(self, folder: str, files: Mapping[str, Content], last: Sequence[str], like: str = "") -> None:
        target = self.root / folder
        scratch = _beside(target)  # on the same file system, so that the rename is atomic
        with self._writing():
            try:
                for name, content in files.items():
                    file = scratch / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if isinstance(content, Path):
                        shutil.copyfile(content, file)
                    else:
                        file.write_bytes(content() if callable(content) else content)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def copy(self, source: str, target: str) -> None:
        with self._writing():
            shutil.copytree(self.root / source, self.root / target, copy_function=_link)

    def move(self, source: str, target: str) -> None:
        with self._writing():
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            (self.root / source).rename(self.root / target)

    def remove(self, path: str) -> None:
        target = self.root / path
        with self._writing():
            if target.is_dir():
                # nobody, such as Triton, finds a half of it
                hidden = _beside(target)
                target.rename(hidden)
                shutil.rmtree(hidden)
            else:
                target.unlink(missing_ok=True)

    def sweep(self, folder: str = "") -> None:
        for path in (self.root / folder).glob(".*"):
            if _SCRATCH.fullmatch(path.name):
                self.remove(path.relative_to(self.root).as_posix())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExportError(f"{self.place} cannot be written: {error}. Name another with --repository.") from error


class Bucket:
    """A repository in object storage, by way of fsspec.

    Nothing there can be renamed, so a folder is complete when its last files are there.
    """

    renames = False

    def __init__(self, place: str, scheme: str, path: str) -> None:
        if scheme not in _LIBRARIES:
            known = ", ".join(f"{name}://bucket/prefix" for name in _LIBRARIES)
            raise ConfigException(f"{place!r} cannot be a model repository: it is a folder, or one of {known}.")
        bucket = path.partition("/")[0]
        if not bucket or ":" in bucket:
            raise ConfigException(
                f"{place!r} names no bucket: write {scheme}://bucket/prefix; the address of another server than the "
                "provider's comes from the environment, such as AWS_ENDPOINT_URL."
            )
        library, extra = _LIBRARIES[scheme]
        try:
            importlib.import_module(library)
            import fsspec
        except ImportError as error:
            raise MissingDependencyException(library, extra=extra, feature=f"a repository at {scheme}://…") from error
        self.place = place.rstrip("/")
        self._root = path.strip("/")
        with self._reaching():
            self._files = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)

    @contextlib.contextmanager
    def lock(self, tell: Tell) -> Iterator[None]:
        owner = f"{socket.gethostname()} process {os.getpid()} {uuid.uuid4().hex}"
        seen, since, told = "", time.monotonic(), False
        while not self._take_lock(f"{owner} 0"):
            found = (self.read(_OBJECT) or b"").decode(errors="replace")
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > _LOST_S:  # its owner was killed
                self.remove(_OBJECT)
                continue
            if not told:
                told = True
                who = found.rpartition(" ")[0].rpartition(" ")[0]
                tell(f"{self.place} is being written by {who or 'another process'}; this one waits until that is done.")
            time.sleep(_POLL_S)
        done = threading.Event()
        keeper = threading.Thread(target=self._keep_lock, args=(owner, done), name="adapter-lock", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            self.remove(_OBJECT)

    def _take_lock(self, content: str) -> bool:
        with self._reaching():
            try:
                self._files.pipe_file(self._at(_OBJECT), content.encode(), mode="create")
            except FileExistsError:
                return False
        return True

    def _keep_lock(self, owner: str, done: threading.Event) -> None:
        number = 0
        while not done.wait(_RENEW_S):
            number += 1
            with contextlib.suppress(ExportError):  # the next one may succeed
                self.replace(_OBJECT, f"{owner} {number}".encode())

    def read(self, path: str) -> bytes | None:
        with self._reaching():
            try:
                found: bytes = self._files.cat_file(self._at(path))
                return found
            except FileNotFoundError:
                return None

    def replace(self, path: str, content: bytes) -> None:
        with self._reaching():
            self._files.pipe_file(self._at(path), content)

    def names(self, folder: str) -> list[str] | None:
        root = self._at(folder)
        with self._reaching():
            try:
                found = self._files.ls(root, detail=False)
            except FileNotFoundError:
                return None
        names = {path.rstrip("/").rpartition("/")[2] for path in found if path.startswith(f"{root}/")}
        return sorted(name for name in names if not name.startswith("."))

    def digests(self, folder: str) -> Mapping[str, str]:
        found: Mapping[str, str] = json.loads(self.read(f"{folder}/{_DIGESTS}") or b"{}")
        return found

    def put(self, folder: str, files: Mapping[str, Content], last: Sequence[str], like: str = "") -> None:
        stale = [name for name in self._listed(folder) if name not in (*files, _DIGESTS)]
        before = self.digests(like) if like else {}
        digests = {name: digest(content) for name, content in files.items()}
        order = [*(name for name in files if name not in last), *(name for name in last if name in files)]
        with self._reaching():
            self._files.pipe_file(self._at(f"{folder}/{_DIGESTS}"), json.dumps(digests, indent=1).encode())
            for name in order:
                target, content = self._at(f"{folder}/{name}"), files[name]
                if before.get(name) == digests[name]:
                    self._files.cp_file(self._at(f"{like}/{name}"), target)
                elif isinstance(content, Path):
                    self._files.put_file(str(content), target)
                else:
                    self._files.pipe_file(target, content() if callable(content) else content)
            for name in stale:  # of a writer that was killed
                self._files.rm_file(self._at(f"{folder}/{name}"))

    def copy(self, source: str, target: str) -> None:
        names = self._listed(source)
        with self._reaching():
            for name in sorted(names, key=lambda n: n.rpartition("/")[2] == SPEC):
                self._files.cp_file(self._at(f"{source}/{name}"), self._at(f"{target}/{name}"))

    def move(self, source: str, target: str) -> None:
        self.remove(target)
        self.copy(source, target)
        self.remove(source)

    def remove(self, path: str) -> None:
        names = self._listed(path)
        with self._reaching():
            # the record of a version goes first: without it the others are not looked at
            for name in sorted(names, key=lambda n: n.rpartition("/")[2] != SPEC):
                self._files.rm_file(self._at(f"{path}/{name}"))
            if not names:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._at(path))

    def sweep(self, folder: str = "") -> None:
        """Nothing: what is not complete is written again under the same name."""

    def _listed(self, folder: str) -> list[str]:
        """The files below a folder, relative to it."""
        root = self._at(folder)
        with self._reaching():
            try:
                found = self._files.find(root)
            except FileNotFoundError:
                return []
        return [path[len(root) + 1 :] for path in found if path.startswith(f"{root}/")]

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (ExportError, FileExistsError):
            raise
        except Exception as error:  # the libraries behind fsspec have errors of their own, without a base
            raise ExportError(
                f"{self.place} cannot be reached: {sentence(error)}. Its credentials and its server come from the "
                "environment, as its library reads them."
            ) from error


def hidden(name: str) -> str:
    """Another name, that `sweep` knows again; Triton loads by name, so it does not look there."""
    return f".{name}.{uuid.uuid4().hex}"


def _beside(target: Path) -> Path:
    return target.with_name(hidden(target.name))


def _link(source: str, target: str) -> None:
    """Give a file a second name; on a file system that cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

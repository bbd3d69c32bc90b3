"""What of a person's code goes with a Runnable into an entry: its pickle, its modules, its files, its requirements.

A module that makes a Service, or gets runners and saved models, cannot be imported inside Triton (it would look for
them there), so what a Runnable uses of it travels by value, with cloudpickle. Other modules of the person's own travel
as source files, and are imported there. Fingerprints are taken of sources, never of pickles, which change with the
hash seed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from adapter.model import Model
from adapter.requirements import requirements_of
from adapter.runnable import Runnable
from adapter.triton.pickler import dump
from adapter.triton.sources import Sources
from adapter.triton.worker import path_in_entry

FILES, CODE = "files", "code"


@dataclass(frozen=True)
class Capture:
    """What one Runnable takes with it.

    `code` and `files` map places inside the entry to files of the service's folder, `models` are all saved models that
    it names, `requirements` are lines of `requirements.txt`, `fingerprint` is the same while its source is.
    """

    runnable: type[Runnable]
    init_params: Mapping[str, Any]
    code: Mapping[str, Path]
    files: Mapping[str, Path]
    models: tuple[Model, ...]
    requirements: tuple[str, ...]
    fingerprint: str
    by_value: tuple[str, ...] = field(compare=False)

    def pickle(self) -> bytes:
        """The Runnable class and its init parameters; ExportError names what cannot travel."""
        return dump((self.runnable, self.init_params), self.by_value)[0]


def capture(runnable: type[Runnable], init_params: Mapping[str, Any], models: Sequence[Model], folder: Path) -> Capture:
    """Find what a Runnable of a service in `folder` needs elsewhere."""
    sources = Sources()
    sources.visit(runnable)
    files: dict[str, Path] = {}
    parameters = {name: _take_files(value, folder, files) for name, value in init_params.items()}
    sources.visit_value("init parameters", parameters)
    code = {f"{CODE}/{place}": path for place, path in sources.files().items()}
    by_value = tuple(sorted(sources.by_value))
    _, named = dump((runnable, parameters), by_value)
    every = {m.tag: m for m in (*models, *named)}
    digest = hashlib.sha256()
    parts = [*sorted(sources.texts), *(f"model {tag}" for tag in sorted(every))]
    parts += [f"{place} {file_digest(path)}" for place, path in sorted({**code, **files}.items())]
    for part in parts:
        digest.update(part.encode() + b"\0")
    return Capture(
        runnable=runnable,
        init_params=parameters,
        code=code,
        files=files,
        models=tuple(every[tag] for tag in sorted(every)),
        requirements=tuple(sorted(requirements_of(sources.third_party))),
        fingerprint=digest.hexdigest(),
        by_value=by_value,
    )


def file_digest(path: Path) -> str:
    """The SHA-256 of one file."""
    known = path.stat()
    return _digest_of(path, known.st_mtime_ns, known.st_size)


@cache
def _digest_of(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


class _PathInEntry:
    """Stands among the init parameters for an absolute path of the service's folder."""

    def __init__(self, relative: str, kind: str) -> None:
        self._relative = relative
        self._kind = kind

    def __reduce__(self) -> Any:
        return path_in_entry, (self._relative, self._kind)


def _take_files(value: Any, folder: Path, files: dict[str, Path]) -> Any:
    """The init parameter as it travels: files of the service's folder that it names are noted in `files`.

    A relative path stays as it is, since the worker's working directory is where the files lie; an absolute one is
    replaced. A bare word that names a folder is taken for a word.
    """
    if type(value) is dict:
        return {key: _take_files(item, folder, files) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take_files(item, folder, files) for item in value)
    if not isinstance(value, (str, Path)) or not str(value) or len(str(value)) > 4096 or "\0" in str(value):
        return value
    path = (folder / value).resolve()
    try:
        relative = path.relative_to(folder.resolve()).as_posix()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (ValueError, OSError):
        return value
    if is_file:
        files[f"{FILES}/{relative}"] = path
    elif is_folder and relative != "." and (isinstance(value, Path) or os.sep in value):
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            files[f"{FILES}/{relative}/{inner.relative_to(path).as_posix()}"] = inner
    else:
        return value
    if not Path(value).is_absolute():
        return value
    return _PathInEntry(f"{FILES}/{relative}", "Path" if isinstance(value, Path) else "str")

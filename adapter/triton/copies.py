"""Folders of entries that exist already, and their copies in the repository that a service is exported to."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.exceptions import ConfigException, EngineError, ExportError
from adapter.runner import RunnerSpec
from adapter.triton.capture import file_digest

CONFIG = "config.pbtxt"
_CONVERTS = re.compile(r"\.as_numpy\(|\bTensor\((?!\))")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


@dataclass(frozen=True)
class Copy:
    """An entry of a folder that a runner calls as it is."""

    name: str
    runner: str
    folder: Path

    @property
    def version(self) -> int:
        """The highest of its versions."""
        return max((int(p.name) for p in self.folder.iterdir() if p.name.isdecimal()), default=1)

    @property
    def content(self) -> str:
        """What differs where its files do."""
        return digest(self.folder)


def is_address(place: str) -> bool:
    """Whether a place of entries is a Triton, and not a folder."""
    return place.startswith("grpc://")


def entries_in(folder: Path) -> list[str]:
    """The names of the entries in a model repository."""
    return sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}") if not file.parent.name.startswith("."))


def read_config(folder: Path, entry: str) -> Any:
    """The ModelConfig of an entry in a folder; ConfigException where it cannot be read."""
    file = folder / entry / CONFIG
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigException(f"{file} cannot be read as the configuration of an entry: {error}.") from error


def copies_of(runner: RunnerSpec) -> Iterator[Copy]:
    """What a runner's folder brings into the repository: all its entries, since one may call another.

    ExportError where there is no such folder, or nothing in it.
    """
    place = runner.existing
    if place is None or is_address(place):
        return
    folder = Path(place)
    names = entries_in(folder) if folder.is_dir() else []
    if not names:
        raise ExportError(
            f"The runner {runner.name!r} calls entries in {folder}, where there are none: each is a folder with a "
            f"{CONFIG}."
        )
    for name in names:
        yield Copy(name, runner.name, folder / name)


def write_copy(copy: Copy, repository: Path, *, owned: bool) -> bool:
    """Copy an entry, whole at any moment; whether that was needed. `owned` lets it replace one of other content."""
    target = repository / copy.name
    there = target.is_dir()
    if there and digest(target) == copy.content:
        return False
    if there and not owned:
        raise ExportError(
            f"{target} is another entry than {copy.folder}, which the runner {copy.runner!r} calls: rename one of "
            "them, or export to another repository."
        )
    scratch, before = (repository / f".{copy.name}.{uuid.uuid4().hex}" for _ in range(2))
    try:
        shutil.copytree(copy.folder, scratch, ignore=_LEFT_OUT)
        (scratch / str(copy.version)).mkdir(exist_ok=True)  # an ensemble's is empty, which git does not keep
        if there:
            target.rename(before)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return True


def refuse_wrong_numbers(copies: Iterable[Copy]) -> None:
    """Refuse what Triton 2.51's python backend would read, or answer, wrongly under NumPy 2 without any error.

    EngineError where the code of a hand-written model has arrays converted by Triton.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    for copy in copies:
        for file in copy.folder.glob("*/*.py"):
            if found := _CONVERTS.search(file.read_text(encoding="utf-8", errors="replace")):
                raise EngineError(
                    f"{copy.name}/{file.relative_to(copy.folder)} calls {found[0]}…), which gives wrong numbers in "
                    f"Triton 2.51 under NumPy {np.__version__}: install 'numpy<2', use np.from_dlpack(tensor) and "
                    "pb_utils.Tensor.from_dlpack(name, …) there, or name a newer Triton with --triton."
                )


def digest(folder: Path) -> str:
    """The content of an entry's folder, as `write_copy` copies it."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in name.parts):
            found.update(f"{name.as_posix()} {file_digest(file)}\0".encode())
    return found.hexdigest()[:16]

"""Folders of entries that exist already, and their copies in the repository that a service is exported to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.exceptions import ConfigException, EngineError, ExportError
from adapter.runner import RunnerSpec
from adapter.triton.address import is_address
from adapter.triton.capture import file_digest
from adapter.triton.storage import Content, Storage, hidden

CONFIG = "config.pbtxt"
_CONVERTS = re.compile(r"\.as_numpy\(|\bTensor\((?!\))")


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
        return content_of({name: file_digest(self.folder / name) for name in _files_in(self.folder)})


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


def write_copy(copy: Copy, repository: Storage, *, owned: bool) -> bool:
    """Copy an entry, whole at any moment; whether that was needed. `owned` lets it replace one of other content."""
    there = repository.digests(copy.name)
    if there and content_of(there) == copy.content:
        return False
    if there and not owned:
        raise ExportError(
            f"{repository.place}/{copy.name} is another entry than {copy.folder}, which the runner {copy.runner!r} "
            "calls: rename one of them, or export to another repository."
        )
    files: dict[str, Content] = {name: copy.folder / name for name in _files_in(copy.folder)}
    if not any(name.startswith(f"{copy.version}/") for name in files):
        files[f"{copy.version}/.keep"] = b""  # an ensemble's is empty, which neither git nor object storage keeps
    scratch = hidden(copy.name)
    repository.put(scratch, files, (CONFIG,))
    repository.remove(copy.name)
    repository.move(scratch, copy.name)
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


def content_of(digests: Mapping[str, str]) -> str:
    """What differs where any file does, of those that are no hidden ones."""
    text = "".join(f"{name} {digests[name]}\0" for name in sorted(digests) if _is_copied(name))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files_in(folder: Path) -> list[str]:
    """The files of an entry that are copied, relative to its folder."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(filter(_is_copied, names))


def _is_copied(name: str) -> bool:
    return not any(part == "__pycache__" or part.startswith(".") for part in name.split("/"))

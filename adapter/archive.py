"""Saved models outside a store: one file, or one folder, that can be passed on and taken into another store."""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import yaml

from adapter import migration
from adapter.exceptions import AdapterError, AlreadyExists, InvalidArgument, NotFound, StateException, sentence
from adapter.model import Model, ModelInfo
from adapter.store import RECORD, Loader, ModelStore

DEFAULT_FORMAT = "adaptermodel"
# format -> what the name of a file of it ends with; the first is the one that is written
FORMATS: Mapping[str, tuple[str, ...]] = {
    "adaptermodel": (".adaptermodel",),
    "tar": (".tar",),
    "gz": (".tar.gz", ".tgz", ".gz"),
    "xz": (".tar.xz", ".txz", ".xz"),
    "bz2": (".tar.bz2", ".tbz2", ".bz2"),
    "zip": (".zip",),
    "folder": ("",),
}
# gzip at its fastest for our own: weights hardly shrink, and xz takes minutes for a gigabyte of them
_FASTEST = 1
_UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, ValueError),  # zipfile: a compression that it lacks, a password, a name
)


def export(model: Model, path: str | os.PathLike[str] | None = None, output_format: str | None = None) -> Path:
    """Write a saved model to a file or a folder, which is there whole or not at all, and return where it is.

    `path` may be a folder that exists: the file in it is then called `<name>-<version>.adaptermodel`. Without
    `output_format` the end of the name tells the format. Raises AlreadyExists where there is something already.
    """
    target, form = destination(f"{model.tag.name}-{model.info.version}", path, output_format)
    if os.path.lexists(target):
        raise AlreadyExists(f"{target} exists already: remove it, or name another file.")
    scratch = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex}")
    try:
        _write(model.folder, scratch, form)
        scratch.rename(target)
    except OSError as error:
        raise StateException(f"{target} cannot be written: {error}.") from error
    finally:
        _remove(scratch)
    return target


def destination(
    name: str, path: str | os.PathLike[str] | None = None, output_format: str | None = None
) -> tuple[Path, str]:
    """Where a model called `name` is written, and in which format."""
    if output_format is not None and output_format not in FORMATS:
        raise InvalidArgument(f"{output_format!r} is no format of a saved model: there are {', '.join(FORMATS)}.")
    given = "" if path is None else os.fspath(path)
    if "://" in given:
        raise InvalidArgument(f"{given!r} is no path of this machine: export to a file, and copy that there.")
    folder = Path(given).expanduser()
    if not given or given.endswith(os.sep) or folder.is_dir():
        form = output_format or DEFAULT_FORMAT
        return folder.absolute() / f"{name}{FORMATS[form][0]}", form
    form = output_format or _form_of(folder.name)
    named = folder.name.endswith(FORMATS[form])
    return folder.absolute().with_name(folder.name if named else f"{folder.name}{FORMATS[form][0]}"), form


def _form_of(name: str) -> str:
    for form, suffixes in FORMATS.items():
        if form != "folder" and name.endswith(suffixes):
            return form
    return DEFAULT_FORMAT


def _write(folder: Path, target: Path, form: str) -> None:
    if form == "folder":
        shutil.copytree(folder, target)
        return
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    if form == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, True, _FASTEST, strict_timestamps=False) as made:
            for name, path in files:
                made.write(path, name)
        return
    with _tar(target, form) as tar:
        for name, path in files:
            tar.add(path, name, filter=_nobodys)


def _tar(target: Path, form: str) -> tarfile.TarFile:
    if form in ("adaptermodel", "gz"):
        return tarfile.open(target, "w:gz", compresslevel=_FASTEST)
    modes: Mapping[str, Literal["w", "w:xz", "w:bz2"]] = {"tar": "w", "xz": "w:xz", "bz2": "w:bz2"}
    return tarfile.open(target, modes[form])


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name and the number of whoever wrote it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def take_in(store: ModelStore, path: str | os.PathLike[str]) -> Model:
    """Take a model into a store from a file or a folder that `export`, or BentoML, wrote.

    A file or a model in it that is unfit leaves nothing behind: InvalidArgument says why. AlreadyExists where the
    store has this version. A model of BentoML's is loaded once, to learn what its methods take and return.
    """
    given = os.fspath(path)
    if "://" in given:
        raise InvalidArgument(f"{given!r} is no path of this machine: copy the model here first.")
    source = Path(given).expanduser()
    if not source.exists():
        raise NotFound(f"There is no file or folder {given!r} to import a model from.")

    def fill(folder: Path) -> ModelInfo:
        try:
            _unpack(source, folder)
        except _UNREADABLE as error:
            raise InvalidArgument(f"{given} cannot be read as a saved model: {sentence(error)}.") from error
        record = _record(folder / RECORD, given)
        try:
            if migration.is_foreign(record):
                return migration.migrated(record, folder)
            return ModelInfo.from_dict(record)
        except (KeyError, TypeError, ValueError, AttributeError, AdapterError) as error:
            if isinstance(error, AdapterError) and not isinstance(error, InvalidArgument):
                raise
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InvalidArgument(f"The {RECORD} of {given} cannot be used: {reason}") from error

    return store.add(fill)


def _record(file: Path, source: str) -> Mapping[str, Any]:
    try:
        record = yaml.load(file.read_bytes(), Loader=Loader)
    except FileNotFoundError:
        raise InvalidArgument(
            f"{source} holds no saved model: there is no {RECORD} in it. Name the file that `adapter models export` "
            "or `bentoml models export` wrote, or the folder of one version."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"The {RECORD} of {source} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(record, Mapping):
        raise InvalidArgument(f"The {RECORD} of {source} is not the record of a saved model.")
    return record


# ---- reading archives -----------------------------------------------------------------------------------------------


def _unpack(source: Path, folder: Path) -> None:
    """Write the files of an archive, or of another folder, into a folder."""
    if source.is_dir():
        _copy(source, folder)
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for entry in archive.infolist():
                mode = entry.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused(source, entry.filename, "is a link or a device")
                if not entry.is_dir():
                    with archive.open(entry) as content:
                        _put(source, folder, entry.filename, content)
    elif source.is_file():
        with tarfile.open(source, "r:*") as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise _refused(source, member.name, "is a link or a device")
                extracted = tar.extractfile(member)
                if extracted is not None:
                    with extracted:
                        _put(source, folder, member.name, extracted)
    else:
        raise InvalidArgument(f"{source} is neither a file nor a folder.")


def _copy(source: Path, folder: Path) -> None:
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise InvalidArgument(f"{source} cannot be copied: {sentence(error)}.") from error


def _put(source: Path, folder: Path, name: str, content: IO[bytes]) -> None:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise _refused(source, name, "lies outside it")
    target = folder / place
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while part := _part(content):
                file.write(part)
    except FileExistsError:
        raise _refused(source, name, "is in it twice") from None
    except OSError as error:
        raise StateException(f"{name!r} of {source} cannot be written: {error}.") from error


def _part(content: IO[bytes]) -> bytes:
    try:
        return content.read(1 << 20)
    except OSError as error:  # what gzip and bz2 say of broken data
        raise EOFError(str(error)) from error


def _refused(source: Path, name: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{source} is not taken in, since {name!r} {reason}: export the model again.")


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()

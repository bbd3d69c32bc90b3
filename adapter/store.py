"""The model store: saved models in a folder, one folder for each version.

    <root>/<name>/<version>/model.yaml   and the files that the framework wrote
    <root>/<name>/latest                 the version that was saved last
    <root>/.saving-…/                    what is being saved or deleted; left by a crash, the next save removes it
    <root>/.lock                         held while a version comes into being or goes

A version appears by one rename, whole or not at all, so readers need no lock and a store may be read-only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
import uuid
from builtins import list as List  # noqa: N812  # ModelStore has a method of this name
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

import yaml

from adapter.exceptions import AdapterError, AlreadyExists, InvalidArgument, NotFound, StateException
from adapter.model import Model, ModelInfo
from adapter.tag import LATEST, Tag

logger = logging.getLogger(__name__)

RECORD = "model.yaml"
_STAGING = ".saving-"
_MOST_NAMES = 12

# libyaml's loader is ten times as fast; a PyYAML built without it has the other
Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NewModel(Model):
    """A model that is being saved: its files go into `path`, and its record is what `info` is in the end.

    After the `with` block it is the saved model.
    """

    def moved(self, folder: Path) -> None:
        self._folder = folder


class ModelStore:
    """The saved models in one folder; it need not exist before the first is saved."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- reading --------------------------------------------------------------------------------------------------

    def get(self, tag: Tag) -> Model:
        """The model of a tag: no version or `latest` means the one saved last, and the beginning of a version will do.

        Raises NotFound where there is none, and InvalidArgument where several versions begin so.
        """
        return self._read(self._find(tag))

    def list(self, name: str | None = None) -> List[Model]:
        """All versions of all models, or of one name, newest first; a damaged one is left out with a warning."""
        found = []
        for each in self._names() if name is None else [name]:
            for version in self._versions(each):
                try:
                    found.append(self._read(Tag(each, version)))
                except AdapterError as error:
                    logger.warning("%s", error)
        return sorted(found, key=lambda m: (m.creation_time, m.tag), reverse=True)

    def resolve(self, tag: Tag) -> List[Tag]:
        """The full tags that a tag means: all versions of a name alone, one version otherwise; NotFound for none."""
        found = self._find(tag)
        return [found] if tag.version is not None else [Tag(tag.name, v) for v in self._versions(tag.name)]

    def _names(self) -> List[str]:
        names = (p.name for p in _folders(self.root))
        return sorted(n for n in names if self._versions(n))

    def _versions(self, name: str) -> List[str]:
        return sorted(p.name for p in _folders(self.root / name) if (p / RECORD).is_file())

    def _find(self, tag: Tag) -> Tag:
        """The full tag that `tag` means."""
        versions = self._versions(tag.name)
        if not versions:
            raise NotFound(self._no_model(tag.name))
        if tag.version in (None, LATEST):
            return Tag(tag.name, self._latest(tag.name, versions))
        if tag.version in versions:
            return tag
        matching = [v for v in versions if v.startswith(str(tag.version))]
        if len(matching) > 1:
            raise InvalidArgument(
                f"Several versions of {tag.name!r} begin with {tag.version!r}: {_some(matching)}. Write more of it."
            )
        if not matching:
            raise NotFound(
                f"The model {tag.name!r} has no version {tag.version!r} in {self.root}; its versions are "
                f"{_some(versions)}, and '{tag.name}:{LATEST}' is the newest."
            )
        return Tag(tag.name, matching[0])

    def _no_model(self, name: str) -> str:
        names = self._names()
        saved = f"saved are: {_some(names)}" if names else "no model is saved there yet"
        return (
            f"There is no model {name!r} in {self.root}: {saved}. Save one with, for example, "
            f"`adapter.sklearn.save_model({name!r}, model)`, or set ADAPTER_HOME if your models lie elsewhere."
        )

    def _latest(self, name: str, versions: List[str]) -> str:
        """The version that was saved last. A crash may leave `latest` naming one that never came to be."""
        with contextlib.suppress(OSError):
            noted = (self.root / name / LATEST).read_text(encoding="utf-8").strip()
            if noted in versions:
                return noted
        models = self.list(name)
        return models[0].info.version if models else versions[-1]

    def _read(self, tag: Tag) -> Model:
        folder = self._place(tag)
        file = folder / RECORD
        try:
            record = yaml.load(file.read_bytes(), Loader=Loader)
        except FileNotFoundError:
            raise NotFound(f"The model {tag} was deleted just now.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _damaged(file, tag, " ".join(str(error).split())) from error
        try:
            info = ModelInfo.from_dict(record)
        except (KeyError, TypeError, ValueError, AttributeError, AdapterError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise _damaged(file, tag, reason) from error
        if info.tag != tag:
            raise _damaged(file, tag, f"it is the record of {info.tag}")
        return Model(info, folder)

    def _place(self, tag: Tag) -> Path:
        return self.root / tag.name / str(tag.version)

    # ---- writing --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def create(self, info: ModelInfo) -> Iterator[NewModel]:
        """Save a model whose files the `with` block writes; when the block raises, nothing of it remains.

        Raises AlreadyExists where the version is taken. The time of creation is that of the end of the block.
        """
        if info.tag.version in (None, LATEST):
            raise InvalidArgument(f"A model cannot be saved as {info.tag}: write '{info.tag.name}' for a new version.")
        self._refuse_taken(info.tag)
        with self._staging() as staging:
            draft = staging / "model"
            draft.mkdir()
            model = NewModel(info, draft)
            yield model
            with self._lock():
                self._refuse_taken(info.tag)
                model.info = dataclasses.replace(model.info, creation_time=datetime.now(timezone.utc))
                self._publish(model.info, draft, staging, latest=True)
                model.moved(self._place(info.tag))

    def add(self, fill: Callable[[Path], ModelInfo]) -> Model:
        """Take in a model that was saved elsewhere: `fill` writes its files into a folder, and returns its record.

        It becomes `latest` unless a version that is here was created after it. Raises AlreadyExists where the version
        is taken; when `fill` raises, nothing remains.
        """
        with self._staging() as staging:
            draft = staging / "model"
            draft.mkdir()
            info = fill(draft)
            if info.tag.version in (None, LATEST):
                raise InvalidArgument(f"A model cannot be saved as {info.tag}: its record names no version.")
            with self._lock():
                self._refuse_taken(info.tag)
                later = [m for m in self.list(info.name) if m.creation_time > info.creation_time]
                self._publish(info, draft, staging, latest=not later)
        return Model(info, self._place(info.tag))

    def _publish(self, info: ModelInfo, draft: Path, staging: Path, *, latest: bool) -> None:
        """Let the version in `draft` appear."""
        record = yaml.safe_dump(info.to_dict(), sort_keys=False, allow_unicode=True)
        (draft / RECORD).write_text(record, encoding="utf-8")
        if latest:
            # before the rename: until then it names no version, and readers go by the time of creation
            self._note_latest(info.tag, staging)
        else:
            (self.root / info.name).mkdir(exist_ok=True)
        draft.rename(self._place(info.tag))

    def delete(self, tag: Tag) -> List[Tag]:
        """Delete a version, or all of them where the tag has none; returns the tags that are gone.

        Raises NotFound where there is none. When the newest goes, `latest` is the newest of those that remain.
        """
        self.resolve(tag)  # before a store is made only to find nothing in it
        with self._staging() as staging, self._lock():
            gone = self.resolve(tag)
            for i, each in enumerate(gone):
                self._place(each).rename(staging / str(i))
            folder = self.root / tag.name
            remaining = self._versions(tag.name)
            if remaining:
                self._note_latest(Tag(tag.name, self._latest(tag.name, remaining)), staging)
            else:
                (folder / LATEST).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # something that is not a model lies there
                    folder.rmdir()
        return gone

    def _refuse_taken(self, tag: Tag) -> None:
        place = self._place(tag)
        if (place / RECORD).is_file():
            raise AlreadyExists(
                f"The model {tag} exists already in {self.root}, and a version never changes: save it as {tag.name!r} "
                f"for a new version, or delete this one with `adapter models delete {tag}`."
            )
        if place.exists():
            raise AlreadyExists(f"{place} is in the way of saving {tag}, but is no model (no {RECORD}): remove it.")

    def _note_latest(self, tag: Tag, staging: Path) -> None:
        folder = self.root / tag.name
        folder.mkdir(exist_ok=True)
        written = staging / LATEST
        written.write_text(f"{tag.version}\n", encoding="utf-8")
        written.replace(folder / LATEST)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A folder beside the models, gone afterwards; its lock, which ends with this process, says it is in use."""
        staging = self.root / f"{_STAGING}{uuid.uuid4().hex}"
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with self._lock():
                    self._remove_leftovers()
                    # a plain mkdir, not tempfile's: its folders, and so the model, could be read by this user only
                    staging.mkdir()
                    stack.callback(shutil.rmtree, staging, ignore_errors=True)
                    in_use = stack.enter_context((staging / "lock").open("w"))
                    fcntl.flock(in_use, fcntl.LOCK_EX)
            except OSError as error:
                raise StateException(
                    f"The model store {self.root} cannot be written: {error}. Set ADAPTER_HOME to a folder that can."
                ) from error
            yield staging

    def _remove_leftovers(self) -> None:
        for folder in self.root.glob(f"{_STAGING}*"):
            with contextlib.suppress(FileNotFoundError), (folder / "lock").open("a") as lock:
                if not _locked(lock):
                    continue
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folders(folder: Path) -> List[Path]:
    """The folders that a name or a version can be; hidden ones are the store's own."""
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _some(names: List[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _damaged(file: Path, tag: Tag, reason: str) -> AdapterError:
    return AdapterError(
        f"{file} is damaged ({reason}): repair it, or delete the model with `adapter models delete {tag}`."
    )

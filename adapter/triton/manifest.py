"""The manifest of a model repository: which entry each runner calls, and what is known of the models inside.

With it a front needs neither the model store nor the framework: `adapter.<framework>.get(…)` answers from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter import __version__
from adapter.exceptions import ConfigException, ExportError, NotFound
from adapter.model import Model, ModelInfo
from adapter.models import ModelSource
from adapter.tag import LATEST, Tag
from adapter.triton.native import Native
from adapter.triton.storage import storage

FILE = "manifest.json"
HISTORY = 10  # what a service was before is kept so many times


def served(record: Mapping[str, Any]) -> dict[str, int]:
    """The version of each entry of a service."""
    return {name: entry["version"] for name, entry in record["entries"].items()}


def fetch(place: str, folder: Path) -> Path:
    """Copy the manifest of a repository in object storage, or at an address there, into a folder.

    ConfigException where there is none, or it cannot be reached.
    """
    root, name = place.rsplit("/", 1) if place.endswith(".json") else (place, FILE)
    try:
        content = storage(root).read(name)
    except ExportError as error:
        raise ConfigException(f"The manifest cannot be read. {error.message}") from error
    if content is None:
        raise ConfigException(
            f"There is no manifest at {root}/{name}: write one with `adapter export`, and name it with `--manifest`."
        )
    Manifest.parse(content, f"{root}/{name}")
    file = folder / FILE
    file.write_bytes(content)
    return file


class RecordingModels:
    """Answers from another source and remembers how each tag was resolved."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.tags: dict[str, str] = {}

    def get(self, tag: Tag) -> Model:
        model = self._source.get(tag)
        self.tags[str(tag)] = str(model.tag)
        return model

    def list(self, name: str | None = None) -> list[Model]:
        return self._source.list(name)


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, read."""

    place: str
    services: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> str:
        record = {"adapter": __version__, "services": self.services, "models": self.models}
        return json.dumps(record, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest, or that of a repository; ConfigException says what to do where there is none."""
        file = path / FILE if path.is_dir() else path
        try:
            return cls.parse(file.read_bytes(), str(file))
        except FileNotFoundError:
            raise ConfigException(
                f"There is no manifest at {file}: write one with `adapter export`, and name it with `--manifest`."
            ) from None

    @classmethod
    def parse(cls, content: bytes, place: str) -> Manifest:
        """Read what lies at a place; ConfigException where it is no manifest."""
        try:
            record = json.loads(content)
            return cls(place, record["services"], record["models"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigException(f"{place} is not a manifest of adapter: {error!r}. Export again.") from error

    def with_service(
        self, name: str, record: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Manifest:
        """The same with another record of a service, and of these models beside those that are known.

        Where its entries have other versions now, what was said of it before goes into its `history`, latest first.
        """
        before = dict(self.services.get(name, {}))
        history = before.pop("history", [])
        if before and served(before) != served(record):
            history = [before, *history][:HISTORY]
        return self.replaced(name, {**record, **({"history": history} if history else {})}, models or {})

    def replaced(
        self, name: str, record: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Manifest:
        """The same with exactly this record of a service, without models that no service names any more."""
        services = {**self.services, name: record}
        named = [r for s in services.values() for r in (s, *s.get("history", []))]
        needed = {tag for record in named for tag in record["models"]}
        known = {**self.models, **(models or {})}
        return Manifest(self.place, services, {tag: model for tag, model in known.items() if tag in needed})

    def entries(self, service: str, runner: str) -> Mapping[str, str]:
        """The entry of each method of a runner."""
        runners = self._service(service)["runners"]
        if runner not in runners:
            raise ConfigException(
                f"The manifest {self.place} has no runner {runner!r} of the service {service!r}: the service has "
                "changed since; run `adapter export` again."
            )
        found: Mapping[str, str] = runners[runner]
        return found

    def natives(self, service: str) -> Mapping[str, Native]:
        """The entries of a service that other backends than the python one serve, and how."""
        entries = self.services.get(service, {}).get("entries", {})
        return {name: Native.from_dict(e["native"]) for name, e in entries.items() if e.get("native") is not None}

    def _service(self, name: str) -> Mapping[str, Any]:
        if name not in self.services:
            known = ", ".join(self.services) or "none"
            raise ConfigException(
                f"The manifest {self.place} has no service {name!r} (it has: {known}): run `adapter export` for it."
            )
        return self.services[name]

    def source(self, service: str | None = None, store: ModelSource | None = None) -> ModelSource:
        """Saved models as a service asked for them when it was exported; None is any of them, before it is known.

        `store` lends the files of a model where it has them; without it only the record is known.
        """
        asked = self.services.values() if service is None else [self._service(service)]
        tags: dict[str, str] = {}
        for record in asked:
            tags |= record["tags"]
        return _ManifestModels(self, tags, store)


class _ManifestModels:
    def __init__(self, manifest: Manifest, tags: Mapping[str, str], store: ModelSource | None) -> None:
        self._manifest = manifest
        self._tags = tags
        self._store = store

    def get(self, tag: Tag) -> Model:
        found = self._tags.get(str(tag))
        if found is None and self._store is not None:  # asked for when the service runs, not when it was imported
            return self._store.get(tag)
        if found is None:
            versions = [Tag.parse(t) for t in self._manifest.models]
            wanted = "" if tag.version in (None, LATEST) else tag.version or ""
            fitting = [t for t in versions if t.name == tag.name and (t.version or "").startswith(wanted)]
            if len(fitting) != 1:
                raise NotFound(
                    f"The manifest {self._manifest.place} does not know the model {tag}: run `adapter export` again."
                )
            found = str(fitting[0])
        return self._model(Tag.parse(found))

    def list(self, name: str | None = None) -> list[Model]:
        if self._store is not None:
            return self._store.list(name)
        tags = [Tag.parse(t) for t in self._manifest.models]
        return [self._model(t) for t in tags if name in (None, t.name)]

    def _model(self, tag: Tag) -> Model:
        if self._store is not None:
            try:
                return self._store.get(tag)
            except NotFound:
                pass
        return Model(ModelInfo.from_dict(self._manifest.models[str(tag)]), None)

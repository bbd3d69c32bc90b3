from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from adapter.exceptions import ConfigException, NotFound, StateException
from adapter.model import Model, ModelInfo, Signature
from adapter.tag import Tag
from adapter.triton.manifest import FILE, Manifest, RecordingModels


def info(name: str, version: str) -> ModelInfo:
    return ModelInfo(
        Tag(name, version),
        "adapter.picklable_model",
        signatures={"predict": Signature(batchable=True)},
        creation_time=datetime(2024, 1, 1, tzinfo=timezone.utc),
    )


class Models:
    """A source with some models."""

    def __init__(self, *models: Model) -> None:
        self._models = models

    def get(self, tag: Tag) -> Model:
        for model in self._models:
            if model.tag.name == tag.name and tag.version in (None, "latest", model.tag.version):
                return model
        raise NotFound(f"no {tag}")

    def list(self, name: str | None = None) -> list[Model]:
        return [m for m in self._models if name in (None, m.tag.name)]


def manifest() -> Manifest:
    def service(tags: dict[str, str]) -> dict[str, Any]:
        return {
            "runners": {"m": {"predict": "m.predict"}},
            "tags": tags,
            "models": [],
            "entries": {"m.predict": {"interface": "abc", "content": "def", "version": 2}},
        }

    services = {
        "one": service({"m:latest": "m:v1", "n": "n:v1"}),
        "two": service({"m:latest": "m:v2"}),
    }
    models = {str(i.tag): i.to_dict() for i in (info("m", "v1"), info("m", "v2"), info("n", "v1"))}
    return Manifest("place", services, models)


def test_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = manifest()
    (tmp_path / FILE).write_text(written.to_json())
    for path in (tmp_path, tmp_path / FILE):
        read = Manifest.read(path)
        assert (read.services, read.models) == (written.services, written.models)
        assert read.place == str(tmp_path / FILE)
        assert read.to_json() == written.to_json()


def test_missing_manifest_is_told_with_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "other.json"):
        with pytest.raises(ConfigException, match=r"There is no manifest at .*: write one with `adapter export`"):
            Manifest.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", '{"services": {}}', "\x00"])
def test_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigException, match=r"is not a manifest of adapter: .* Export again"):
        Manifest.read(tmp_path)


def test_entries_of_a_runner_are_looked_up() -> None:
    assert manifest().entries("one", "m") == {"predict": "m.predict"}


@pytest.mark.parametrize(
    ("service", "runner", "message"),
    [
        ("three", "m", r"has no service 'three' \(it has: one, two\): run `adapter export` for it"),
        ("one", "other", "has no runner 'other' of the service 'one': the service has changed since"),
    ],
)
def test_unknown_service_or_runner_is_told_with_what_to_do(service: str, runner: str, message: str) -> None:
    with pytest.raises(ConfigException, match=message):
        manifest().entries(service, runner)


def test_models_of_a_service_that_was_not_exported_are_refused() -> None:
    with pytest.raises(ConfigException, match="has no service 'three'"):
        manifest().source("three")


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "tag", "expected"),
    [
        ("one", "m:latest", "m:v1"),
        ("two", "m:latest", "m:v2"),
        ("one", "m:v2", "m:v2"),
        ("one", "n", "n:v1"),
        ("one", "n:latest", "n:v1"),
        ("two", "n:v", "n:v1"),
        (None, "n", "n:v1"),
        (None, "m:v1", "m:v1"),
    ],
)
def test_tag_is_what_it_was_when_the_service_was_exported(service: str | None, tag: str, expected: str) -> None:
    assert str(manifest().source(service).get(Tag.parse(tag)).tag) == expected


@pytest.mark.parametrize("tag", ["m", "m:v", "other", "n:v2"])
def test_tag_that_was_not_exported_is_not_found(tag: str) -> None:
    with pytest.raises(NotFound, match=f"The manifest place does not know the model {tag}: run `adapter export` again"):
        manifest().source("two").get(Tag.parse(tag))


def test_models_are_listed() -> None:
    source = manifest().source("one")
    assert [str(m.tag) for m in source.list()] == ["m:v1", "m:v2", "n:v1"]
    assert [str(m.tag) for m in source.list("m")] == ["m:v1", "m:v2"]


def test_model_without_its_files_makes_a_runner_but_cannot_be_loaded() -> None:
    model = manifest().source("one").get(Tag("m", "latest"))
    assert model.info == info("m", "v1")
    assert [m.name for m in model.to_runner().runner_methods] == ["predict"]
    with pytest.raises(StateException, match="not on this machine"):
        model.load_model()


def test_store_lends_the_files_where_it_has_them(tmp_path: Path) -> None:
    source = manifest().source("one", Models(Model(info("m", "v1"), tmp_path)))
    assert source.get(Tag("m", "latest")).folder == tmp_path
    with pytest.raises(StateException, match="not on this machine"):
        _ = source.get(Tag("n")).folder


def test_recording_remembers_how_tags_were_resolved(tmp_path: Path) -> None:
    source = RecordingModels(Models(Model(info("m", "v1"), tmp_path)))
    assert source.get(Tag.parse("m:latest")).tag == Tag("m", "v1")
    with pytest.raises(NotFound):
        source.get(Tag("other"))
    assert source.tags == {"m:latest": "m:v1"}
    assert len(source.list()) == 1

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml

from adapter.exceptions import AdapterError, AlreadyExists, InvalidArgument, NotFound, StateException
from adapter.model import Model, ModelInfo, Signature
from adapter.store import ModelStore
from adapter.tag import Tag
from adapter.tensor import TensorSpec

LONG_AGO = datetime(2001, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def save(store: ModelStore, tag: str, text: str = "weights") -> Model:
    with store.create(ModelInfo(Tag.parse(tag), "adapter.sklearn")) as model:
        Path(model.path_of("file")).write_text(text)
    return model


def listed(store: ModelStore, name: str | None = None) -> list[str]:
    return [str(m.tag) for m in store.list(name)]


def hidden(store: ModelStore) -> list[str]:
    """What saving has left beside the models."""
    return sorted(p.name for p in store.root.iterdir() if p.name.startswith(".") and p.name != ".lock")


def test_layout_when_a_model_was_saved(store: ModelStore) -> None:
    model = save(store, "iris:v1")
    assert model.path == str(store.root / "iris" / "v1")
    assert sorted(p.name for p in model.folder.iterdir()) == ["file", "model.yaml"]
    assert (store.root / "iris" / "latest").read_text() == "v1\n"
    assert hidden(store) == []
    # as readable as any other folder that this user makes: Triton may run as another one
    expected = store.root.parent / "other"
    expected.mkdir()
    assert stat.S_IMODE(model.folder.stat().st_mode) == stat.S_IMODE(expected.stat().st_mode)


def test_get_when_the_record_is_full(store: ModelStore) -> None:
    info = ModelInfo(
        Tag("iris", "v1"),
        "adapter.sklearn",
        labels={"team": "Größe"},
        options={"partial_kwargs": {"predict": {"verbose": False}}},
        metadata={"accuracy": 0.97, "classes": ["a", "b"], "yes": "no"},
        context={"framework_versions": {"scikit-learn": "1.5"}},
        signatures={"predict": Signature(True, (0, 1), (TensorSpec("float64", (-1, 4), "X"),))},
        creation_time=LONG_AGO,
    )
    with store.create(info) as model:
        pass
    found = store.get(Tag("iris", "v1"))
    assert found.info == model.info
    # the time of creation is that of the end of the block
    assert datetime.now(timezone.utc) - found.creation_time < timedelta(minutes=1)
    assert list(yaml.safe_load((found.folder / "model.yaml").read_text("utf-8"))) == list(info.to_dict())


def test_get_when_the_beginning_of_a_version_is_given(store: ModelStore) -> None:
    for version in ("abc1", "abd2", "ab", "xyz"):
        save(store, f"m:{version}")
    expected = {"xyz": "xyz", "x": "xyz", "abc": "abc1", "ab": "ab", "latest": "xyz", None: "xyz"}
    for given, version in expected.items():
        assert store.get(Tag("m", given)).info.version == version
    with pytest.raises(InvalidArgument, match="begin with 'a': ab, abc1, abd2"):
        store.get(Tag("m", "a"))


def test_get_when_there_is_no_such_model(store: ModelStore) -> None:
    with pytest.raises(NotFound, match=r"no model 'iris' in .*: no model is saved there yet. Save one with"):
        store.get(Tag("iris"))
    assert not store.root.exists()
    save(store, "wine:v1")
    save(store, "apple:v1")
    with pytest.raises(NotFound, match=r"no model 'iris' in .*: saved are: apple, wine. Save one"):
        store.get(Tag("iris"))
    with pytest.raises(NotFound, match=r"'wine' has no version 'v2' in .*; its versions are v1"):
        store.get(Tag("wine", "v2"))


def test_create_when_the_version_is_taken(store: ModelStore) -> None:
    save(store, "iris:v1", "first")
    with pytest.raises(AlreadyExists, match="iris:v1 exists already"):
        save(store, "iris:v1", "second")
    assert Path(store.get(Tag("iris", "v1")).path_of("file")).read_text() == "first"
    assert hidden(store) == []


def test_create_when_the_version_is_taken_meanwhile(store: ModelStore) -> None:
    def slow() -> None:
        with store.create(ModelInfo(Tag("iris", "v1"), "")):
            save(store, "iris:v1", "quick")

    with pytest.raises(AlreadyExists):
        slow()
    assert Path(store.get(Tag("iris", "v1")).path_of("file")).read_text() == "quick"


def test_create_when_a_folder_is_in_the_way(store: ModelStore) -> None:
    (store.root / "iris" / "v1").mkdir(parents=True)
    with pytest.raises(AlreadyExists, match=r"is no model \(no model.yaml\)"):
        save(store, "iris:v1")


@pytest.mark.parametrize("tag", ["iris", "iris:latest"])
def test_create_when_no_version_is_named(store: ModelStore, tag: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be saved as"):
        save(store, tag)


def test_create_when_the_block_raises(store: ModelStore) -> None:
    def fail() -> None:
        with store.create(ModelInfo(Tag("iris", "v1"), "")) as model:
            Path(model.path_of("half")).write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert listed(store) == []
    assert [p.name for p in store.root.iterdir()] == [".lock"]


def test_create_when_the_store_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(StateException, match=r"cannot be written: .* Set ADAPTER_HOME"):
        save(ModelStore(tmp_path / "models"), "iris:v1")


def test_list_when_there_are_several(store: ModelStore) -> None:
    assert listed(store) == []
    for tag in ("b:v1", "a:v1", "b:v2"):
        save(store, tag)
    assert listed(store) == ["b:v2", "a:v1", "b:v1"]
    assert listed(store, "b") == ["b:v2", "b:v1"]
    assert listed(store, "c") == []


def test_latest_when_versions_are_deleted(store: ModelStore) -> None:
    for version in ("v1", "v2", "v3"):
        save(store, f"m:{version}")
    assert store.delete(Tag("m", "v2")) == [Tag("m", "v2")]
    assert store.get(Tag("m")).info.version == "v3"
    assert store.delete(Tag("m", "latest")) == [Tag("m", "v3")]
    assert store.get(Tag("m", "latest")).info.version == "v1"
    assert (store.root / "m" / "latest").read_text() == "v1\n"
    assert store.delete(Tag("m", "v1")) == [Tag("m", "v1")]
    assert not (store.root / "m").exists()
    assert hidden(store) == []


def test_latest_when_its_file_is_missing_or_wrong(store: ModelStore) -> None:
    save(store, "m:v2")
    save(store, "m:v1")
    latest = store.root / "m" / "latest"
    latest.write_text("v7\n")
    assert store.get(Tag("m")).info.version == "v1"
    latest.unlink()
    assert store.get(Tag("m")).info.version == "v1"


def test_delete_when_a_name_alone_is_given(store: ModelStore) -> None:
    for tag in ("m:v1", "m:v2", "n:v1"):
        save(store, tag)
    assert store.resolve(Tag("m")) == [Tag("m", "v1"), Tag("m", "v2")]
    assert store.delete(Tag("m")) == [Tag("m", "v1"), Tag("m", "v2")]
    assert listed(store) == ["n:v1"]
    for missing in (Tag("m"), Tag("n", "v2")):
        with pytest.raises(NotFound):
            store.delete(missing)


def test_delete_when_foreign_files_lie_beside(store: ModelStore) -> None:
    save(store, "m:v1")
    (store.root / "m" / "notes.txt").write_text("mine")
    store.delete(Tag("m"))
    assert [p.name for p in (store.root / "m").iterdir()] == ["notes.txt"]
    assert listed(store) == []


_RECORD = "name: m\nversion: v1\nmodule: x\ncreation_time: 2026-01-01 00:00:00+00:00\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: [", "while parsing"),
        ("", "NoneType"),
        ("name: m\nversion: v1\n", "it has no 'module'"),
        ("name: m\nversion: v9\nmodule: x\ncreation_time: 2026-01-01 00:00:00+00:00\n", "it is the record of m:v9"),
        ("name: m\nversion: v1\nmodule: x\ncreation_time: soon\n", "soon"),
        ("\x00", "special characters|unacceptable"),
        (f"{_RECORD}signatures: {{predict: {{batchable: true, batch_dim: [0]}}}}\n", "batch_dim is a number"),
        (f"{_RECORD}context: {{framework_versions: [numpy]}}\n", "framework_versions is"),
    ],
)
def test_get_when_model_yaml_is_damaged(
    store: ModelStore, text: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, "m:v1")
    save(store, "n:v1")
    (store.root / "m" / "v1" / "model.yaml").write_text(text)
    with pytest.raises(AdapterError, match=reason) as caught:
        store.get(Tag("m"))
    assert "is damaged" in caught.value.message
    assert "\n" not in caught.value.message
    # the others are still listed, and the damaged one can be deleted
    with caplog.at_level(logging.WARNING):
        assert listed(store) == ["n:v1"]
    assert "is damaged" in caplog.text
    assert store.delete(Tag("m")) == [Tag("m", "v1")]


def test_list_when_a_folder_is_half_written(store: ModelStore) -> None:
    save(store, "m:v1")
    (store.root / "m" / "v2").mkdir()
    (store.root / "m" / "v2" / "file").write_text("no model.yaml here")
    (store.root / "k" / "v1").mkdir(parents=True)
    assert listed(store) == ["m:v1"]
    with pytest.raises(NotFound):
        store.get(Tag("k"))


SAVING = """
import sys, time
from pathlib import Path
from adapter.model import ModelInfo
from adapter.store import ModelStore
from adapter.tag import Tag

store, count = ModelStore(Path(sys.argv[1])), int(sys.argv[2])
for _ in range(count):
    with store.create(ModelInfo(Tag("m").with_new_version(), "")) as model:
        Path(model.path_of("file")).write_text(str(model.tag))
        if len(sys.argv) > 3:
            print("saving", flush=True)
            time.sleep(60)
    print(model.tag, flush=True)
"""


def saving(store: ModelStore, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SAVING, str(store.root), *arguments], stdout=subprocess.PIPE, text=True
    )


def test_create_when_two_processes_save_at_once(store: ModelStore) -> None:
    processes = [saving(store, "20"), saving(store, "20")]
    tags = []
    for process in processes:
        tags += process.communicate(timeout=60)[0].split()
        assert process.returncode == 0
    assert len(set(tags)) == 40
    assert sorted(listed(store)) == sorted(tags)
    for model in store.list():
        assert Path(model.path_of("file")).read_text() == str(model.tag)
    # the newest of all, whichever process it is from
    assert store.get(Tag("m")) == store.list()[0]
    assert (store.root / "m" / "latest").read_text().strip() == store.list()[0].info.version
    assert hidden(store) == []


def test_create_when_the_process_is_killed(store: ModelStore) -> None:
    save(store, "other:v1")
    killed, busy = saving(store, "1", "slow"), saving(store, "1", "slow")
    try:
        for process in (killed, busy):
            assert process.stdout is not None
            assert process.stdout.readline() == "saving\n"
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(timeout=10)
        assert listed(store) == ["other:v1"]
        assert len(hidden(store)) == 2
        # the next save clears away what the dead process left, and leaves alone what is being saved
        save(store, "other:v2")
        assert len(hidden(store)) == 1
    finally:
        for process in (killed, busy):
            process.kill()
            process.communicate()


def taken_in(store: ModelStore, tag: str, created: datetime) -> Model:
    def fill(folder: Path) -> ModelInfo:
        (folder / "file").write_text(tag)
        return ModelInfo(Tag.parse(tag), "adapter.sklearn", creation_time=created)

    return store.add(fill)


def test_add_keeps_the_time_and_is_latest_where_it_is_newest(store: ModelStore) -> None:
    taken_in(store, "m:a", LONG_AGO)
    assert str(store.get(Tag("m")).tag) == "m:a"
    taken_in(store, "m:c", LONG_AGO + timedelta(days=2))
    model = taken_in(store, "m:b", LONG_AGO + timedelta(days=1))
    assert str(store.get(Tag("m")).tag) == "m:c"
    assert listed(store) == ["m:c", "m:b", "m:a"]
    assert Path(model.path_of("file")).read_text() == "m:b"
    assert store.get(Tag("m", "b")).info == model.info
    with pytest.raises(AlreadyExists):
        taken_in(store, "m:b", LONG_AGO)
    assert hidden(store) == []


def test_add_leaves_nothing_when_it_raises(store: ModelStore) -> None:
    def fill(folder: Path) -> ModelInfo:
        (folder / "file").write_text("x")
        raise InvalidArgument("no model")

    with pytest.raises(InvalidArgument):
        store.add(fill)
    assert (hidden(store), listed(store)) == ([], [])

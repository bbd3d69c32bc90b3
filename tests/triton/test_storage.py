"""Model repositories in folders and in object storage: what is written is whole, and no more than is needed."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from adapter.exceptions import ConfigException, ExportError, MissingDependencyException
from adapter.triton import storage as module
from adapter.triton.export import write
from adapter.triton.manifest import FILE, Manifest, fetch
from adapter.triton.storage import Bucket, Folder, Storage, storage
from tests.triton.project import Project

SOURCE = """
import adapter
WORD = "one"
class R(adapter.Runnable):
    def __init__(self, path):
        self.path = path
    @adapter.Runnable.method
    def f(self, x):
        return WORD
runner = adapter.Runner(R, name="r", runnable_init_params={"path": "weights.bin"})
svc = adapter.Service("s", runners=[runner])
"""


def bucket(prefix: str = "models") -> Bucket:
    found = storage(f"s3://bucket/{prefix}")
    assert isinstance(found, Bucket)
    return found


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "repository")
    request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def repository(place: str) -> Storage:
    return storage(place)


def test_folder_that_was_put_is_read_copied_moved_and_removed(repository: Storage, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"heavy")
    assert (repository.read("a/1/x"), repository.names("a")) == (None, None)
    repository.put("a/1", {"deep/x": b"one", "spec.json": lambda: b"{}", "w": tmp_path / "weights"}, ("spec.json",))
    assert repository.read("a/1/deep/x") == b"one"
    assert repository.names("a") == ["1"]
    assert repository.names("a/1") == ["deep", "spec.json", "w"]
    repository.copy("a/1", "b/2")
    repository.move("a/1", "c/3")
    repository.replace("c/3/w", b"light")
    repository.replace("c/config.pbtxt", b"config")
    assert (repository.read("b/2/w"), repository.read("c/3/w"), repository.read("a/1/w")) == (b"heavy", b"light", None)
    repository.remove("c/3")
    repository.remove("c/3")
    repository.remove("c/config.pbtxt")
    assert not repository.names("c")
    assert repository.read("b/2/deep/x") == b"one"


def test_names_like_another_folder_are_not_taken_for_it(repository: Storage) -> None:
    repository.put("a/1", {"x": b"one"}, ())
    repository.put("a/10", {"x": b"ten"}, ())
    repository.put("ab/1", {"x": b"other"}, ())
    repository.remove("a/1")
    assert (repository.names("a"), repository.names("ab")) == (["10"], ["1"])
    assert repository.digests("a/10").keys() == {"x"}


def test_second_writer_waits_for_the_first(place: str) -> None:
    told: list[str] = []
    order: list[str] = []
    began = threading.Event()

    def tell(sentence: str) -> None:
        told.append(sentence)
        began.set()

    def second() -> None:
        with storage(place).lock(tell):
            order.append("second")

    with storage(place).lock(told.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert began.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert len(told) == 1
    assert "is being written by" in told[0]
    with storage(place).lock(told.append):
        assert len(told) == 1


def test_lock_of_a_writer_that_was_killed_is_taken_over(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOST_S", 0.5)
    monkeypatch.setattr(module, "_RENEW_S", 0.1)
    repository = bucket("killed")
    repository.replace(".adapter.writer", b"host process 7 abc 0")
    told: list[str] = []
    with repository.lock(told.append):
        assert told == ["s3://bucket/killed is being written by host process 7; this one waits until that is done."]
        time.sleep(0.6)  # longer than a lock that is not renewed is believed
        with pytest.raises(TimeoutError):
            _lock_within(bucket("killed"), 0.2)
    assert repository.read(".adapter.writer") is None


def _lock_within(repository: Bucket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if repository._take_lock("other 0"):
            return
        time.sleep(0.05)
    raise TimeoutError


def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    repository = Folder(tmp_path)
    left = tmp_path / f".a.{'0' * 32}"
    (left / "1").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    repository.put("a/1", {"x": b"one"}, ())
    repository.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".git", "a"]


# ---- what an export writes there ------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Project(tmp_path / "code").write({"$service.py": SOURCE, "weights.bin": "weights" * 1000})
    yield made
    made.forget()


@pytest.fixture
def puts(s3: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The objects that are written, in order, and how."""
    found: list[tuple[str, str]] = []
    make = fsspec.filesystem

    def noted(scheme: str, **options: Any) -> Any:
        files = make(scheme, **options)
        for how, argument in (("pipe_file", 0), ("put_file", 1), ("cp_file", 1)):
            setattr(files, how, functools.partial(_note, found, how, argument, getattr(files, how)))
        return files

    monkeypatch.setattr(fsspec, "filesystem", noted)
    return found


def _note(
    found: list[tuple[str, str]], how: str, argument: int, act: Callable[..., Any], *given: Any, **more: Any
) -> Any:
    found.append((how, given[argument].split("/", 2)[2]))
    return act(*given, **more)


def test_export_to_a_bucket_shows_no_half_of_an_entry(
    project: Project, puts: list[tuple[str, str]], tmp_path: Path
) -> None:
    place = f"s3://bucket/{tmp_path.name}"
    written = write(project.plan(), place)
    assert [(w.name, w.version, w.changed) for w in written] == [("s.r", 1, True)]
    names = [name for how, name in puts if name != ".adapter.writer"]
    assert names[-4:] == ["s.r/1/spec.json", "s.r/1/config.pbtxt", "s.r/config.pbtxt", FILE]
    assert "s.r/1/files/weights.bin" in names[:-4]
    puts.clear()
    assert [w.changed for w in write(project.plan(), place)] == [False]
    assert [name for _, name in puts if name != ".adapter.writer"] == []


def test_next_version_in_a_bucket_sends_only_what_changed(
    project: Project, puts: list[tuple[str, str]], tmp_path: Path
) -> None:
    place = f"s3://bucket/{tmp_path.name}"
    write(project.plan(), place)
    puts.clear()
    project.write({"$service.py": SOURCE.replace('"one"', '"two"')})
    assert [(w.version, w.changed) for w in write(project.plan(), place)] == [(2, True)]
    copied = {name for how, name in puts if how == "cp_file"}
    assert copied >= {"s.r/2/files/weights.bin", "s.r/2/runtime.zip", "s.r/2/model.py"}
    assert {name for how, name in puts if how != "cp_file"} & copied == set()
    repository = storage(place)
    assert repository.read("s.r/2/files/weights.bin") == b"weights" * 1000
    assert b"versions: 2" in (repository.read("s.r/config.pbtxt") or b"")


def test_version_that_was_not_sent_to_its_end_is_written_again(project: Project, s3: str, tmp_path: Path) -> None:
    place = f"s3://bucket/{tmp_path.name}"
    repository = storage(place)
    repository.replace("s.r/1/model.py", b"half")
    assert [(w.version, w.changed) for w in write(project.plan(), place)] == [(1, True)]
    assert repository.read("s.r/1/model.py") != b"half"
    repository.replace("s.r/2/left", b"half")
    project.write({"$service.py": SOURCE.replace('"one"', '"two"')})
    assert [(w.version, w.changed) for w in write(project.plan(), place)] == [(2, True)]
    assert repository.read("s.r/2/left") is None


def test_manifest_is_fetched_from_a_bucket(project: Project, s3: str, tmp_path: Path) -> None:
    place = f"s3://bucket/{tmp_path.name}"
    with pytest.raises(ConfigException, match=r"There is no manifest at s3://bucket/.*/manifest\.json: write one"):
        fetch(place, tmp_path)
    write(project.plan(), place)
    for named in (place, f"{place}/manifest.json"):
        assert Manifest.read(fetch(named, tmp_path)).entries("s", "r") == {"f": "s.r"}


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ftp://host/models", "it is a folder, or one of s3://bucket/prefix, gs://bucket/prefix"),
        ("s3://", "names no bucket: write s3://bucket/prefix"),
        ("s3:///prefix", "names no bucket"),
        ("s3://https://minio:9000/bucket", "such as AWS_ENDPOINT_URL"),
        ("s3://minio:9000/bucket", "such as AWS_ENDPOINT_URL"),
    ],
)
def test_address_that_is_none_is_refused(address: str, sentence: str) -> None:
    with pytest.raises(ConfigException) as caught:
        storage(address)
    assert sentence in caught.value.message


def test_missing_library_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(MissingDependencyException, match=r"gcsfs .* run `pip install 'triton-adapter\[gcs\]'`"):
        storage("gs://bucket/models")


def test_bucket_that_is_not_there_is_told(s3: str) -> None:
    with pytest.raises(ExportError, match=r"s3://nobucket/models cannot be reached: .*credentials"):
        storage("s3://nobucket/models").replace("x", b"")


def test_server_that_is_not_there_is_told(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ExportError, match=r"s3://bucket/models cannot be reached: "):
        storage("s3://bucket/models").read("manifest.json")
    with pytest.raises(ConfigException, match=r"The manifest cannot be read\. s3://bucket/models cannot be reached: "):
        fetch("s3://bucket/models", tmp_path)

from __future__ import annotations

import functools
import io
import json
import operator
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import adapter
from adapter.exceptions import ExportError
from adapter.model import Model, ModelInfo, Signature
from adapter.runnable import Runnable
from adapter.runner import Runner
from adapter.services import Service
from adapter.tag import Tag
from adapter.triton.export import PlannedEntry, Written, plan, runtime_zip, write
from adapter.triton.manifest import FILE, Manifest
from adapter.triton.spec import EntrySpec
from tests.triton.project import MACHINE, Project, called

SOURCE = """
import adapter
from adapter import Runnable
from $helper import helper
WORDS = {"one", "two", "three", "four", "five"}
TABLE = {word: len(word) for word in sorted(WORDS)}
class R(Runnable):
    def __init__(self, given, path):
        self.given = given
        with open(path) as file:
            self.text = file.read()
    @Runnable.method
    def f(self, x):
        return [helper(x), sorted(WORDS), TABLE, sorted(self.given), self.text]
    @Runnable.method(batchable=True)
    def g(self, x):
        return x
runner = adapter.Runner(R, name="r", runnable_init_params={"given": {"a", "b", "c"}, "path": "data.txt"})
svc = adapter.Service("s", runners=[runner])
"""
SOURCES = {"$service.py": SOURCE, "$helper.py": "def helper(x):\n    return x + 1\n", "data.txt": "text"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Project(tmp_path / "code").write(SOURCES)
    yield made
    made.forget()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def listed(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".adapter.lock"
    )


def state(folder: Path) -> Mapping[str, tuple[int, bytes]]:
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in listed(folder)}


# ---- what is planned ------------------------------------------------------------------------------------------------


class Echo(Runnable):
    @Runnable.method
    def echo(self, x: Any) -> Any:
        return x


class Threads(Echo):
    SUPPORT_CPU_MULTI_THREADING = True


def names(service: Service, folder: Path, **options: Any) -> list[str]:
    return [e.name for e in plan(service, folder=folder, machine=MACHINE, **options).entries]


def test_entries_are_named_after_service_and_runner_or_model_and_method(tmp_path: Path) -> None:
    saved = adapter.picklable_model.save_model(
        "exported", functools.partial(operator.mul, 2), signatures={"__call__": {"batchable": True}}
    )
    runners = [Runner(Echo), saved.to_runner(), Runner(Threads, embedded=True)]
    service = Service("svc", runners=runners)
    assert names(service, tmp_path) == ["svc.echo", "exported.__call__"]
    assert names(service, tmp_path, prefix="team") == ["team.svc.echo", "team.exported.__call__"]


def test_generators_have_an_entry_of_their_own_beside_other_methods(tmp_path: Path) -> None:
    class Both(Runnable):
        @Runnable.method
        def whole(self) -> str:
            return ""

        @Runnable.method
        def pieces(self) -> Iterator[str]:
            yield ""

        @Runnable.method
        async def more(self) -> Any:
            yield ""

    class Pieces(Runnable):
        @Runnable.method
        def pieces(self) -> Iterator[str]:
            yield ""

    service = Service("s", runners=[Runner(Both, name="a"), Runner(Pieces, name="b")])
    found = {p.name: [m.name for m in p.entry.methods] for p in plan(service, folder=tmp_path, machine=MACHINE).entries}
    assert found == {"s.a": ["whole"], "s.a.stream": ["pieces", "more"], "s.b": ["pieces"]}
    service = Service("s", runners=[Runner(Both, name="a"), Runner(Pieces, name="a.stream")])
    with pytest.raises(ExportError, match=r"would both be the entry 's\.a\.stream'"):
        plan(service, folder=tmp_path, machine=MACHINE)


def test_plan_of_an_unchanged_service_is_equal(project: Project) -> None:
    first, second = project.plan(), project.plan()
    assert [(e.entry, e.spec) for e in first.entries] == [(e.entry, e.spec) for e in second.entries]
    assert replace(first, entries=()) == replace(second, entries=())


def test_plan_writes_nothing(project: Project, tmp_path: Path) -> None:
    before = listed(tmp_path)
    project.plan()
    assert [f for f in listed(tmp_path) if "__pycache__" not in f] == before


def test_runner_that_is_not_isolated_says_so_in_its_spec_and_keeps_its_interface(tmp_path: Path) -> None:
    def spec(**options: Any) -> EntrySpec:
        service = Service("s", runners=[Runner(Echo, name="r", **options)])
        (entry,) = plan(service, folder=tmp_path, machine=MACHINE).entries
        return entry.spec

    usual, here = spec(), spec(isolated=False)
    assert (usual.isolated, here.isolated) == (True, False)
    assert not EntrySpec.parse(here.to_json().encode(), "", "").isolated
    assert (here.interface, here.content == usual.content) == (usual.interface, False)


# ---- what is written ------------------------------------------------------------------------------------------------


def test_entry_of_a_runnable_has_all_that_it_needs(project: Project, repository: Path) -> None:
    assert project.export(repository) == {"s.r": 1}
    assert listed(repository) == sorted(
        [
            "manifest.json",
            "s.r/config.pbtxt",
            *(
                f"s.r/1/{name}"
                for name in (
                    "config.pbtxt",
                    "model.py",
                    "runtime.zip",
                    "requirements.txt",
                    "spec.json",
                    "runnable.pkl",
                    f"code/{project.mark}helper.py",
                    "files/data.txt",
                )
            ),
        ]
    )
    shutil.rmtree(project.folder)
    words = ["five", "four", "one", "three", "two"]
    expected = [2, words, {w: len(w) for w in words}, ["a", "b", "c"], "text"]
    assert called(repository / "s.r" / "1", "f", 1) == expected


def test_entry_of_a_saved_model_has_its_files(project: Project, repository: Path) -> None:
    saved = adapter.picklable_model.save_model("written", functools.partial(operator.mul, 2))
    source = "import adapter\nsvc = adapter.Service('s', runners=[adapter.models.get('written:latest').to_runner()])\n"
    project.write({"$service.py": source})
    assert project.export(repository, tags={"written:latest": str(saved.tag)}) == {"written.__call__": 1}
    version = repository / "written.__call__" / "1"
    assert sorted(p.name for p in (version / "model").iterdir()) == ["model.yaml", "saved_model.pkl"]
    assert "cloudpickle==" in (version / "requirements.txt").read_text()
    spec = EntrySpec.read(version)
    assert (spec.entry, spec.pickle, spec.typed, spec.batched) == ("written.__call__", None, False, False)
    assert [m["info"]["version"] for m in spec.models] == [saved.info.version]
    assert called(version, "__call__", 21) == 42
    record = json.loads((repository / FILE).read_text())
    assert record["services"]["s"]["tags"] == {"written:latest": str(saved.tag)}
    assert list(record["models"]) == [str(saved.tag)]


def test_runtime_is_complete_and_always_the_same() -> None:
    with zipfile.ZipFile(io.BytesIO(runtime_zip())) as archive:
        found = set(archive.namelist())
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {"adapter/__init__.py", "adapter/triton/worker.py", "adapter/payload.py", "cloudpickle/__init__.py"} <= found
    assert not {n for n in found if "server" in n or "/io/" in n or "services" in n}
    runtime_zip.cache_clear()
    first = runtime_zip()
    runtime_zip.cache_clear()
    assert runtime_zip() == first


def test_manifest_tells_entries_and_versions(project: Project, repository: Path) -> None:
    project.export(repository)
    manifest = Manifest.read(repository)
    assert manifest.entries("s", "r") == {"f": "s.r", "g": "s.r"}
    spec = EntrySpec.read(repository / "s.r" / "1")
    assert manifest.services["s"]["entries"]["s.r"] == {
        "interface": spec.interface,
        "content": spec.content,
        "version": 1,
    }


def test_unchanged_service_writes_nothing_again(project: Project, repository: Path) -> None:
    first = write(project.plan(), repository)
    before = state(repository)
    second = write(project.plan(), repository)
    assert first == [Written("s.r", 1, changed=True)]
    assert second == [Written("s.r", 1, changed=False)]
    assert state(repository) == before


def test_unchanged_service_writes_nothing_under_another_hash_seed(project: Project, repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from adapter.loader import load_service\n"
        "from adapter.triton.export import Machine, plan, write\n"
        "svc = load_service(sys.argv[1], sys.argv[2])\n"
        "print(write(plan(svc, folder=Path(sys.argv[2]), machine=Machine(2, 0)), Path(sys.argv[3])))\n"
    )
    states = []
    for seed in ("0", "1", "12345"):
        target = [f"{project.mark}service:svc", str(project.folder), str(repository)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code, *target], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"version=1, changed={seed == '0'}" in done.stdout
        states.append(state(repository))
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize(
    "change",
    [
        {"$helper.py": "def helper(x):\n    return x + 2\n"},
        {"data.txt": "other"},
        {"$service.py": SOURCE.replace('"five"', '"six"')},
        {"$service.py": SOURCE.replace("return x\n", "return x[:]\n")},
    ],
)
def test_changed_content_is_the_next_version_and_the_old_one_stays(
    project: Project, repository: Path, change: dict[str, str]
) -> None:
    project.export(repository)
    before = state(repository)
    assert project.write(change).export(repository) == {"s.r": 2}
    after = state(repository)
    assert {n: s for n, s in after.items() if n.startswith("s.r/1/")} == {
        n: s for n, s in before.items() if n.startswith("s.r/1/")
    }
    assert sorted(p.name for p in (repository / "s.r").iterdir()) == ["1", "2", "config.pbtxt"]
    assert Manifest.read(repository).services["s"]["entries"]["s.r"]["version"] == 2
    assert project.export(repository) == {"s.r": 2}


def test_content_that_changes_back_is_one_more_version(project: Project, repository: Path) -> None:
    project.export(repository)
    project.write({"data.txt": "other"}).export(repository)
    assert project.write({"data.txt": "text"}).export(repository) == {"s.r": 3}


def test_changed_interface_gets_an_entry_of_its_own(project: Project, repository: Path) -> None:
    project.export(repository)
    before = state(repository)
    project.write(
        {"$service.py": SOURCE.replace("def g(self, x)", "def g(self, y)").replace("return x\n", "return y\n")}
    )
    ((name, version),) = project.export(repository).items()
    spec = EntrySpec.read(repository / name / "1")
    assert (name, version, spec.entry) == (f"s.r.{spec.interface[:8]}", 1, name)
    assert f'name: "{name}"' in (repository / name / "config.pbtxt").read_text()
    assert {n: s for n, s in state(repository).items() if n.startswith("s.r/")} == {
        n: s for n, s in before.items() if n.startswith("s.r/")
    }
    assert Manifest.read(repository).entries("s", "r") == {"f": name, "g": name}
    after = state(repository)
    assert project.export(repository) == {name: 1}
    assert state(repository) == after
    assert project.write({"data.txt": "other"}).export(repository) == {name: 2}
    assert project.write(SOURCES).export(repository) == {"s.r": 1}


def test_number_of_instances_changes_the_config_alone(project: Project, repository: Path) -> None:
    project.export(repository)
    project.write({"$service.py": SOURCE.replace('name="r"', 'name="r", cpu=1')})
    assert project.export(repository) == {"s.r": 1}
    assert "count: 1" in (repository / "s.r" / "config.pbtxt").read_text()


# ---- several services in one repository -----------------------------------------------------------------------------


def service_of(model: Any, name: str) -> Service:
    return Service(name, runners=[model.to_runner("shared")])


def test_two_services_share_an_entry_of_the_same_content(tmp_path: Path, repository: Path) -> None:
    saved = adapter.picklable_model.save_model("shared", functools.partial(operator.mul, 2))
    for name in ("one", "two"):
        written = write(plan(service_of(saved, name), folder=tmp_path, machine=MACHINE), repository)
        assert written == [Written("shared.__call__", 1, changed=name == "one")]
    assert set(Manifest.read(repository).services) == {"one", "two"}


def test_entry_of_another_service_with_other_content_is_refused(tmp_path: Path, repository: Path) -> None:
    first, second = (adapter.picklable_model.save_model("shared", functools.partial(operator.mul, n)) for n in (2, 3))
    write(plan(service_of(first, "one"), folder=tmp_path, machine=MACHINE), repository)
    before = state(repository)
    with pytest.raises(
        ExportError,
        match=r"'shared\.__call__' belongs to the service 'one' and has other content there: .*`--prefix two`",
    ):
        write(plan(service_of(second, "two"), folder=tmp_path, machine=MACHINE), repository)
    assert state(repository) == before
    written = write(plan(service_of(second, "two"), folder=tmp_path, machine=MACHINE, prefix="two"), repository)
    assert [w.name for w in written] == ["two.shared.__call__"]
    assert set(Manifest.read(repository).models) == {str(first.tag), str(second.tag)}


def test_models_that_no_service_needs_any_more_leave_the_manifest(tmp_path: Path, repository: Path) -> None:
    first, second = (adapter.picklable_model.save_model("gone", functools.partial(operator.mul, n)) for n in (2, 3))
    for saved in (first, second):
        write(plan(service_of(saved, "one"), folder=tmp_path, machine=MACHINE), repository)
    manifest = Manifest.read(repository)
    assert set(manifest.models) == {str(first.tag), str(second.tag)}  # for a rollback
    record = {name: part for name, part in manifest.services["one"].items() if name != "history"}
    assert set(manifest.replaced("one", record).models) == {str(second.tag)}


@pytest.mark.parametrize("content", [["config.pbtxt"], ["1/model.onnx", "config.pbtxt"], []])
def test_folder_that_adapter_did_not_write_is_refused(project: Project, repository: Path, content: list[str]) -> None:
    (repository / "s.r").mkdir(parents=True)
    for name in content:
        (repository / "s.r" / name).parent.mkdir(exist_ok=True)
        (repository / "s.r" / name).write_text("foreign")
    before = state(repository)
    with pytest.raises(
        ExportError, match=r"s\.r is not an entry that adapter wrote: remove it, or export with `--prefix`"
    ):
        project.export(repository)
    assert state(repository) == before


# ---- when things go wrong -------------------------------------------------------------------------------------------


def failing(planned: PlannedEntry, *, at: str) -> PlannedEntry:
    def fail() -> bytes:
        raise OSError("No space left on device")

    return replace(planned, files={**planned.files, at: fail})


@pytest.mark.parametrize("at", ["runnable.pkl", "zzz_last"])
def test_write_that_fails_half_way_leaves_no_entry(project: Project, repository: Path, at: str) -> None:
    planned = project.plan()
    broken = replace(planned, entries=tuple(failing(e, at=at) for e in planned.entries))
    with pytest.raises(ExportError, match="No space left"):
        write(broken, repository)
    assert [p.name for p in repository.iterdir()] == [".adapter.lock"]
    assert project.export(repository) == {"s.r": 1}


def test_write_that_fails_half_way_leaves_the_versions_that_there_are(project: Project, repository: Path) -> None:
    project.export(repository)
    before = state(repository)
    planned = project.write({"data.txt": "other"}).plan()
    broken = replace(planned, entries=tuple(failing(e, at="zzz_last") for e in planned.entries))
    with pytest.raises(ExportError, match="No space left"):
        write(broken, repository)
    assert state(repository) == before


def test_several_exports_at_once_make_one_version_each(project: Project, repository: Path) -> None:
    plans = []
    for text in ("a", "b", "a", "b", "c", "c"):
        # the content of a file is read when it is written, so each plan has a file of its own
        planned = project.write({"data.txt": text}).plan()
        (entry,) = planned.entries
        held = {name: (text.encode() if name == "files/data.txt" else c) for name, c in entry.files.items()}
        plans.append(replace(planned, entries=(replace(entry, files=held),)))
    errors: list[BaseException] = []

    def export(planned: Any) -> None:
        try:
            write(planned, repository)
        except BaseException as error:  # noqa: BLE001  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=export, args=(p,)) for p in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    versions = sorted(int(p.name) for p in (repository / "s.r").iterdir() if p.is_dir())
    assert versions == list(range(1, len(versions) + 1))
    assert 3 <= len(versions) <= 6
    for version in versions:
        folder = repository / "s.r" / str(version)
        assert EntrySpec.read(folder).content in {e.spec.content for p in plans for e in p.entries}
        assert (folder / "files" / "data.txt").read_text() in "abc"
    assert not list(repository.glob(".s.r.*"))
    Manifest.read(repository)


def test_two_runners_with_one_entry_name_are_refused(tmp_path: Path) -> None:
    class Other(adapter.Runnable):
        @adapter.Runnable.method
        def f(self) -> int:
            return 1

    folder = tmp_path / "model"
    folder.mkdir()
    info = ModelInfo(tag=Tag("clash", "v1"), module="adapter.picklable_model", signatures={"f": Signature()})
    saved = Model(info, folder).to_runner()
    service = adapter.Service("clash", runners=[saved, adapter.Runner(Other, name="f")])
    with pytest.raises(ExportError, match=r"'clash' and 'f' would both be the entry 'clash\.f'"):
        plan(service, folder=tmp_path, machine=MACHINE)

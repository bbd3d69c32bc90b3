from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.server.watched import Watched, Watcher, changed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("service.py", "package/words.py", "adapter.yaml", "data.csv", "other/inner/late.yml"):
        write(tmp_path / name)
    for name in (".git/hook.py", "package/__pycache__/words.py", "venv/pyvenv.cfg", "venv/lib/x.py", "repository/m.py"):
        write(tmp_path / name)
    write(tmp_path / ".hidden.py")
    return tmp_path


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def watched(folder: Path, *files: Path) -> Watched:
    return Watched(folder, frozenset(map(str, files)), without=folder / "repository")


def test_state_is_of_the_files_that_a_service_consists_of(folder: Path) -> None:
    found = watched(folder, folder / "data.csv", folder / "absent.txt").state()
    names = {str(Path(path).relative_to(folder)) for path in found}
    assert names == {"service.py", "package/words.py", "adapter.yaml", "data.csv", "other/inner/late.yml"}


def test_folders_are_those_in_which_one_can_change(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    found = watched(folder, elsewhere / "latest", Path("/nowhere/at/all.txt")).folders()
    assert {Path(f) for f in found} == {
        folder,
        folder / "package",
        folder / "other",
        folder / "other/inner",
        elsewhere,
    }


def test_folder_among_the_files_changes_with_its_content(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    versions = tmp_path_factory.mktemp("iris_clf")
    plan = watched(folder, versions)
    assert str(versions) in plan.folders()
    before = plan.state()
    (versions / "v2").mkdir()
    assert changed(before, plan.state()) == [str(versions)]


def test_changed_names_what_differs_came_and_went(folder: Path) -> None:
    before = watched(folder).state()
    write(folder / "service.py", "changed")
    write(folder / "package/new.py")
    (folder / "adapter.yaml").unlink()
    write(folder / "data.csv", "not watched")
    names = [str(Path(path).relative_to(folder)) for path in changed(before, watched(folder).state())]
    assert names == ["adapter.yaml", "package/new.py", "service.py"]
    assert changed(before, before) == []


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    found = Watcher()
    yield found
    found.close()


def woken(watcher: Watcher) -> bool:
    """Whether it tells of a change, after those of before are taken."""
    return bool(select.select([watcher.fd], [], [], 20)[0]) and watcher.drain()


def test_watcher_wakes_when_a_file_changes(folder: Path, watcher: Watcher) -> None:
    watcher.watch(watched(folder))
    assert woken(watcher)  # it listens now
    write(folder / "service.py", "changed")
    assert woken(watcher)
    scratch = folder / "scratch"
    scratch.write_text("saved as editors do")
    scratch.rename(folder / "package/words.py")
    assert woken(watcher)
    assert not watcher.drain()


def test_watcher_wakes_when_a_folder_comes(folder: Path, watcher: Watcher) -> None:
    watcher.watch(watched(folder))
    assert woken(watcher)
    write(folder / "fresh/more.py")
    assert woken(watcher)
    watcher.watch(watched(folder))
    assert woken(watcher)
    write(folder / "fresh/more.py", "changed")
    assert woken(watcher)

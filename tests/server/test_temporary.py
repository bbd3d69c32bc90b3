"""Folders that last as long as their process, made by many at once."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import pytest

from adapter.server.temporary import temporary_folder


def make_many(parent: str) -> None:
    tempfile.tempdir = parent
    for n in range(200):
        with temporary_folder("adapter-test-") as folder:
            (folder / "file").write_text(str(n))
            assert (folder / "file").read_text() == str(n)


def test_no_process_takes_the_new_folder_of_another_for_a_leftover(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make_many, args=(str(tmp_path),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_a_process_that_was_killed_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "adapter-test-left"
    left.mkdir()
    (left / ".owner").touch()
    with temporary_folder("adapter-test-") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []

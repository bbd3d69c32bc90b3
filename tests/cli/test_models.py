from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from adapter import models
from adapter.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["models", *arguments], input=answer)


def save(*tags: str) -> None:
    for tag in tags:
        with models.create(tag, module="adapter.sklearn") as model:
            Path(model.path_of("weights")).write_bytes(bytes(2048))


def test_list_when_nothing_is_saved(home: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert result.output.startswith(f"No models are saved in {home / 'models'} yet. Save one with")
    assert json.loads(run("list", "-o", "json").output) == []


def test_list_when_there_are_models() -> None:
    save("iris:v1", "wine:v1", "iris:v2")
    lines = run("list").output.splitlines()
    assert lines[0].split() == ["Tag", "Module", "Size", "Creation", "Time"]
    assert [line.split()[0] for line in lines[1:]] == ["iris:v2", "wine:v1", "iris:v1"]
    assert lines[1].split()[1] == "adapter.sklearn"
    assert lines[1].split()[3] == "KiB"
    assert [line.split()[0] for line in run("list", "iris").output.splitlines()[1:]] == ["iris:v2", "iris:v1"]


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_list_when_another_format_is_asked(output: str, read: object) -> None:
    save("iris:v1")
    assert callable(read)
    (row,) = read(run("list", "-o", output).output)
    assert (row["tag"], row["module"]) == ("iris:v1", "adapter.sklearn")
    assert row["size"] == models.get("iris").file_size > 2048


def test_get_when_the_model_exists(home: Path) -> None:
    save("iris:v1")
    record = models.get("iris").info.to_dict()
    assert yaml.safe_load(run("get", "iris:latest").output) == record
    assert json.loads(run("get", "iris", "-o", "json").output) == record
    assert run("get", "iris:v", "-o", "path").output == f"{home / 'models' / 'iris' / 'v1'}\n"


@pytest.mark.parametrize(
    "arguments", [("get", "iris"), ("delete", "-y", "iris:v7"), ("list", "iris"), ("get", "a b"), ("export", "iris")]
)
def test_command_when_the_tag_is_wrong(arguments: tuple[str, ...]) -> None:
    save("wine:v1")
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_delete_when_the_answer_is_no_and_yes() -> None:
    save("iris:v1", "iris:v2", "wine:v1")
    result = run("delete", "iris", answer="n\n")
    assert result.exit_code == 0
    assert "Delete iris:v1, iris:v2? [y/N]" in result.output
    assert len(models.list()) == 3
    run("delete", "iris", answer="y\n")
    assert [str(m.tag) for m in models.list()] == ["wine:v1"]


def test_delete_when_several_are_named() -> None:
    save("a:v1", "a:v2", "b:v1", "c:v1")
    # one wrong tag, and nothing goes
    assert run("delete", "-y", "a:v1", "d").exit_code == 1
    assert len(models.list()) == 4
    result = run("delete", "--yes", "a:v1,b", "c:latest")
    assert result.output == "Deleted a:v1.\nDeleted b:v1.\nDeleted c:v1.\n"
    assert [str(m.tag) for m in models.list()] == ["a:v2"]


def test_export_and_import(tmp_path: Path) -> None:
    save("iris:v1", "iris:v2", "wine:v1")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out"
    assert run("export", "iris", str(out)).output == f"iris:v2 is in {out}/iris-v2.adaptermodel.\n"
    assert run("export", "wine:v1", str(out / "mine"), "-o", "zip").output == f"wine:v1 is in {out}/mine.zip.\n"
    assert run("export", "iris:v1", str(out / "folder"), "--output-format", "folder").exit_code == 0
    run("delete", "-y", "iris", "wine")
    result = run("import", *(str(out / name) for name in ("iris-v2.adaptermodel", "mine.zip", "folder")))
    assert result.output == "".join(f"Imported {tag} (adapter.sklearn).\n" for tag in ("iris:v2", "wine:v1", "iris:v1"))
    assert [str(m.tag) for m in models.list()] == ["wine:v1", "iris:v2", "iris:v1"]
    assert (models.get("iris").tag.version, models.get("wine").tag.version) == ("v2", "v1")


@pytest.mark.parametrize("arguments", [("import", "nothing.adaptermodel"), ("import", "/dev/null"), ("export", "wine")])
def test_export_and_import_when_it_cannot_be(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1

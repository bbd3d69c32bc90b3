from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click import UsageError
from click.testing import CliRunner, Result

from adapter.cli import main
from adapter.cli.deploy import _Tritons
from adapter.exceptions import ConfigException
from adapter.layers import load
from adapter.server import launch
from tests.triton.project import Project

EMPTY = """
import adapter
svc = adapter.Service("nothing")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Project(tmp_path / "code").write({"$service.py": EMPTY})


def run(project: Project, *arguments: str, **env: str) -> Result:
    command, *rest = arguments
    place = ("--working-dir", str(project.folder))
    return CliRunner().invoke(main, [command, f"{project.mark}service:svc", *place, *rest], env=env)


@pytest.mark.parametrize("command", ["deploy", "rollback"])
def test_tritons_must_be_named(project: Project, command: str) -> None:
    result = run(project, command)
    assert result.exit_code == 2
    assert "It is not said which Tritons are meant: give --triton grpc://host:8001, or set triton.url." in result.output


def test_tritons_and_repository_may_come_from_the_environment(project: Project, tmp_path: Path) -> None:
    result = run(project, "deploy", ADAPTER_TRITON="grpc://127.0.0.1:9", ADAPTER_REPOSITORY=str(tmp_path / "models"))
    assert (result.exit_code, result.output) == (0, "nothing has no entries in Triton: there is nothing to deploy.\n")
    assert (tmp_path / "models" / "manifest.json").exists()


def test_version_without_its_entry_is_refused(project: Project) -> None:
    result = run(project, "rollback", "--to", "3", "--triton", "grpc://127.0.0.1:9")
    assert result.exit_code == 2
    assert "--to is the version of one entry: name it with --entry." in result.output


def test_rollback_by_name_needs_no_code(project: Project, tmp_path: Path) -> None:
    given = ["rollback", "other", "--repository", str(tmp_path / "models"), "--triton", "grpc://127.0.0.1:9"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1
    assert "manifest.json has no service 'other'; it has: none." in result.output


@pytest.mark.parametrize("command", ["export", "deploy"])
def test_repository_of_an_unknown_kind_is_refused(project: Project, command: str) -> None:
    given = ("--triton", "grpc://127.0.0.1:9") if command == "deploy" else ()
    result = run(project, command, "--repository", "ftp://host/models", *given)
    assert result.exit_code == 1
    assert "'ftp://host/models' cannot be a model repository: it is a folder, or one of s3://" in result.output


def test_engine_of_serve_has_its_models_from_a_folder() -> None:
    with (
        pytest.raises(ConfigException, match="leave out --repository, or name a Triton that reads them there"),
        launch._repository("s3://bucket/models"),
    ):
        pass


def test_runner_with_tritons_of_its_own_is_deployed_there(tmp_path: Path) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text("triton: {url: 'grpc://all:8001', headers: {key: v}, runners: {big: {url: 'dns:///big:8001'}}}")
    tritons = _Tritons(load(file, {}).settings)
    assert [str(tritons(runner)) for runner in ("small", "big")] == ["grpc://all:8001", "dns:///big:8001"]
    assert tritons("big").metadata == (("key", "v"),)
    file.write_text("triton: {runners: {big: {url: 'grpc://big:8001'}}}")
    with pytest.raises(UsageError, match="where the Tritons of the runner 'small' are: give --triton"):
        _Tritons(load(file, {}).settings)("small")

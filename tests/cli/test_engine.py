from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapter.cli import main
from adapter.cli.engine import DownloadBar
from adapter.triton.installation import CONTAINER_PREFIX, TRITON_VERSION, engine_folder, running_python

without_container = pytest.mark.skipif(CONTAINER_PREFIX.exists(), reason="this machine has Triton's container")


def _runner(cache: Path, **env: str | None) -> CliRunner:
    unset: dict[str, str | None] = {"ADAPTER_TRITONSERVER": None, "ADAPTER_ENGINE_WHEEL": None}
    return CliRunner(env={**unset, "ADAPTER_CACHE": str(cache), "PATH": os.defpath, **env})


@without_container
def test_info_when_there_is_none(tmp_path: Path) -> None:
    result = _runner(tmp_path).invoke(main, ["engine", "info"])
    assert "There is no tritonserver here." in result.output
    assert str(engine_folder({"ADAPTER_CACHE": str(tmp_path)})) in result.output


def test_info_when_one_is_named(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "TRITON_VERSION").write_text("2.70.0")
    result = _runner(tmp_path, ADAPTER_TRITONSERVER=str(program)).invoke(main, ["engine", "info"])
    assert result.exit_code == 0, result.output
    assert [line.split(maxsplit=1)[-1] for line in result.output.splitlines()] == [
        "2.70.0",
        str(program),
        "by:  ADAPTER_TRITONSERVER",
        "its own",
        running_python(),
    ]


def test_info_when_named_one_is_missing(tmp_path: Path) -> None:
    result = _runner(tmp_path, ADAPTER_TRITONSERVER="/nonexistent").invoke(main, ["engine", "info"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ADAPTER_TRITONSERVER is '/nonexistent', which is not a program")


def test_install_when_wheel_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "some.whl").write_text("no")
    runner = _runner(tmp_path, ADAPTER_ENGINE_WHEEL=str(tmp_path / "some.whl"))
    result = runner.invoke(main, ["engine", "install"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: some.whl has the sha256 ")


def test_install_when_it_is_installed(tmp_path: Path) -> None:
    program = engine_folder({"ADAPTER_CACHE": str(tmp_path)}) / "pytriton/tritonserver/bin/tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    result = _runner(tmp_path).invoke(main, ["engine", "install"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Triton {TRITON_VERSION} is installed in {program.parent.parent}")


def test_download_bar_when_told_of_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with DownloadBar() as bar:
        bar(25_000_000, 50_000_000)
        bar(50_000_000, 50_000_000)
    assert f"Downloading Triton {TRITON_VERSION} (50 MB)" in capsys.readouterr().err

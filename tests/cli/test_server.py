"""`adapter server`: its commands, its exit codes, and that what it prints can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.endpoint.server import Server, load_service
from adapter.exceptions import AdapterError

SERVICE = """
import os
from adapter.endpoint import Service

class Echo(Service):
    def setup(self) -> None:
        print("set up")

    def infer(self, text: str, times: int) -> str:
        return text * times
"""
STORING = (
    SERVICE
    + """
    def store_assets(self) -> None:
        print("cache", os.environ.get("TORCH_HOME"), SEEN)

SEEN = os.environ.get("TORCH_HOME")  # as a library does when it is imported
"""
)


def server(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapter.endpoint.server", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endpoint")
    (folder / "service.py").write_text(SERVICE)
    (folder / "storing.py").write_text(STORING)
    return folder


def test_the_schema_that_is_printed_is_json(folder: Path) -> None:
    done = server(folder, "api-schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["paths"]["/infer"]["post"]
    assert "adapter server" in done.stderr
    assert server(folder, "api-schema", "--output-file", "schema.json").stdout == ""
    assert json.loads((folder / "schema.json").read_text()) == json.loads(done.stdout)


def test_examples_are_templates_and_values(folder: Path) -> None:
    done = server(folder, "generate-usage-examples", "--format", "CURL", "--no-render")
    made = json.loads(done.stdout)
    assert made["template_hash"]["fields"] == {"text": '"text"', "times": "1"}
    assert "{{{endpoint}}}" in made["generated_template"]


def test_setup_runs_here(folder: Path) -> None:
    done = server(folder, "setup-service")
    assert (done.returncode, done.stdout) == (0, "set up\n")


def test_assets_are_stored_into_the_volume(folder: Path) -> None:
    env = {"ADAPTER_VOLUME_PATH": "/volume"}
    assert server(folder, "store-assets", "--check-is-needed").returncode == 11
    assert server(folder, "--service-module", "storing", "store-assets", "--check-is-needed").returncode == 10
    done = server(folder, "--service-module", "storing", "store-assets", env=env)
    assert (done.returncode, done.stdout) == (0, "cache /volume/torch_home /volume/torch_home\n")
    assert server(folder, "store-assets", env=env).returncode == 0  # nothing to store


def test_a_service_that_cannot_be_loaded_is_one_sentence_and_1(folder: Path) -> None:
    (folder / "nothing.py").write_text("")
    done = server(folder, "--service-module", "nothing", "api-schema")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The module 'nothing' has no class that extends")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Load services of the folder in this process, and forget their modules."""
    before = set(sys.modules)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken", "import nothing_like_it\n", "imports 'nothing_like_it', which is not installed"),
        ("wrong", "x = \n", "cannot be imported: SyntaxError"),
        ("empty", "", "no class that extends adapter.endpoint.Service"),
        ("two", SERVICE + SERVICE.replace("Echo", "Other"), r"several services \(Echo, Other\)"),
        ("bare", SERVICE.replace("text: str", "text"), "says no type for 'text'"),
        ("lacking", SERVICE.replace("infer", "_infer"), r"no infer\(\) method"),
        ("raising", SERVICE.replace("setup", "__init__").replace('print("set up")', "1 / 0"), "ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_service_is_told(here: Path, name: str, text: str, said: str) -> None:
    (here / f"{name}.py").write_text(text)
    with pytest.raises(AdapterError, match=said):
        Server(load_service(name))


@pytest.mark.parametrize("command", ["run", "store-assets"])
def test_a_missing_module_ends_every_command_with_one_sentence(folder: Path, command: str) -> None:
    done = server(folder, "--service-module", "service_missing", command)
    assert done.returncode == 1
    assert "There is no module 'service_missing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_class_is_named(here: Path) -> None:
    (here / "pair.py").write_text(SERVICE + SERVICE.replace("Echo", "Other"))
    assert type(load_service("pair", "Other")).__name__ == "Other"
    with pytest.raises(AdapterError, match="no class 'Nobody'"):
        load_service("pair", "Nobody")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("reexporting", "from written import Echo", "Echo"),
        ("extending", "from written import Echo\nclass Louder(Echo):\n    pass", "Louder"),
        ("renaming", "import written\nclass Mine(written.Echo):\n    pass\nService = Mine", "Mine"),
    ],
)
def test_the_one_class_is_found(here: Path, name: str, text: str, found: str) -> None:
    (here / "written.py").write_text(SERVICE)
    (here / f"{name}.py").write_text(text)
    assert type(load_service(name)).__name__ == found


def test_a_triton_elsewhere_is_refused(folder: Path) -> None:
    done = server(folder, "run", "--triton", "grpc://127.0.0.1:8001")
    assert done.returncode == 2
    assert "one process on this machine" in done.stderr

"""The README's code runs, and its curl line gets the answer that it shows; so do the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Serve

README = (ROOT / "README.md").read_text()
CODE: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE: list[str] = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def block(containing: str) -> str:
    (found,) = [code for code in CODE if containing in code]
    return found


def test_running_server_stands_above_line_50() -> None:
    lines = README.splitlines()
    (curl,) = [number for number, line in enumerate(lines, 1) if line.startswith("$ curl")]
    assert curl < 50


def test_model_is_saved_and_the_service_answers_the_curl_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block("save_model"))
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    (tmp_path / "service.py").write_text(block("async def classify"))
    served = serve("service:svc", working_dir=tmp_path)
    (console,) = [c for c in CONSOLE if "$ curl" in c]
    command, shown = console.removeprefix("$ ").strip().split("\n")
    done = subprocess.run(
        command.replace("http://127.0.0.1:3000", served.url).replace("curl", "curl -s"),
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == shown


def test_runnable_of_the_readme_answers(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(block("class Shouter"))
    served = serve("service.py", "--api-workers", "1", working_dir=tmp_path)
    assert served.post("/shout", content="grüße").json() == ["GRÜSSE!"]


def test_routes_context_and_mounts_of_the_readme_work(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(block("mount_asgi_app"))
    served = serve("service.py", "--development", working_dir=tmp_path)
    answer = served.post("/users/Ada/greeting", json={"word": "hello"})
    assert (answer.text, answer.headers["x-model"], answer.cookies["seen"]) == ("hello, Ada!", "none", "yes")
    assert served.get("/dashboard/openapi.json").status_code == 200


def test_service_runs_without_a_server(tmp_path: Path, iris: str) -> None:
    (tmp_path / "service.py").write_text(block("async def classify"))
    script = re.sub(r"^(asyncio\.run\(.*\))  #.*", r"print(\1)", block("init_local()"), flags=re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "[2]\n"


@pytest.mark.parametrize("target", ["service.py:svc", "service:svc"])
def test_sentiment_example_answers_as_seed_003_shows(serve: Serve, target: str) -> None:
    served = serve(target, "--api-workers", "1", working_dir=ROOT / "examples" / "sentiment")
    headers = {"content-type": "application/text"}
    assert served.post("/analysis", content="BentoML is great", headers=headers).text == '{"is_positive":true}'
    assert served.post("/analysis", content="This is awful. I hate it.", headers=headers).json() == {
        "is_positive": False
    }


COMMANDS: list[list[str]] = [["serve"], ["export"], ["models", "list"], ["models", "get"], ["models", "delete"]]


@pytest.mark.parametrize("command", [*COMMANDS, ["engine", "install"], ["engine", "info"], ["server", "run"]])
def test_commands_of_the_reference_exist(
    run_adapter: Callable[..., subprocess.CompletedProcess[str]], command: list[str]
) -> None:
    done = run_adapter(*command, "--help")
    assert done.returncode == 0
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `adapter {command[0]} ")]
    for option in re.findall(r"--[a-z-]+", row):
        assert option in done.stdout

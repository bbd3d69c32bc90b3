from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import adapter
from adapter.cli import COMMANDS, main
from adapter.cli.settings import SERVER
from adapter.layers import load
from adapter.settings import Settings, flat

FILE = """
api_server:
  workers: 2
  traffic: {timeout: "${SECONDS:-1}"}
  ssl: {certfile: cert.pem, keyfile_password: hush}
runners:
  batching: {max_batch_size: 7}
  iris_clf:
    cpu: 500m
    runnable_method_configs: {predict: {max_latency_ms: 5}}
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def show(cli: CliRunner, *arguments: str, **env: str) -> dict[str, tuple[Any, str]]:
    """Value and source of each line of `adapter config show`, by dotted keys."""
    result = cli.invoke(main, ["config", "show", *arguments], env=env)
    assert result.exit_code == 0, result.output
    found: dict[str, tuple[Any, str]] = {}
    above: list[str] = []
    for line in result.output.splitlines():
        match = re.fullmatch(r"( *)(.+?):(?: (.*?) +# (.*))?", line)
        assert match, line
        keys = [*above[: len(match[1]) // 2], match[2]]
        if match[4] is None:
            above = keys
        else:
            found[".".join(keys)] = (yaml.safe_load(match[3]), match[4])
    return found


def test_show_tells_each_value_and_where_it_is_from(cli: CliRunner) -> None:
    Path("adapter.yaml").write_text(FILE)
    env = {
        "ADAPTER_CONFIG_OPTIONS": "runners.iris_clf.batching.enabled=false",
        "ADAPTER_BACKLOG": "9",
        "ADAPTER_DEBUG": "1",
        "SECONDS": "2",
    }
    found = show(cli, "-p", "80", "--ssl-keyfile", "key.pem", **env)
    expected = {
        "api_server.workers": (2, "adapter.yaml:3"),
        "api_server.traffic.timeout": (2.0, "adapter.yaml:4 with SECONDS"),
        "api_server.traffic.max_concurrency": (None, "default"),
        "api_server.backlog": (9, "environment ADAPTER_BACKLOG"),
        "api_server.logging.level": ("debug", "environment ADAPTER_DEBUG"),
        "api_server.http.port": (80, "--port"),
        "api_server.ssl.enabled": (True, "adapter.yaml:5"),
        "api_server.ssl.keyfile": (str(Path.cwd() / "key.pem"), "--ssl-keyfile"),
        "api_server.ssl.keyfile_password": ("********", "adapter.yaml:5"),
        "runners.batching.max_batch_size": (7, "adapter.yaml:7"),
        "runners.batching.max_latency_ms": (60000, "default"),
        "runners.iris_clf.resources.cpu": (0.5, "adapter.yaml:9"),
        "runners.iris_clf.batching.enabled": (False, "environment ADAPTER_CONFIG_OPTIONS"),
        "runners.iris_clf.runnable_method_configs.predict.max_latency_ms": (5.0, "adapter.yaml:10"),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert {".".join(keys) for keys in flat(Settings())} <= found.keys()


def test_what_is_shown_is_a_file_of_the_same_settings(cli: CliRunner, tmp_path: Path) -> None:
    Path("adapter.yaml").write_text(FILE.replace("hush", "'********'"))
    shown = cli.invoke(main, ["config", "show"]).output
    Path("shown.yaml").write_text(shown)
    once, again = load(Path("adapter.yaml"), {}).settings, load(Path("shown.yaml"), {}).settings
    assert again.api_server == once.api_server
    assert again.runners.named == once.runners.named


def test_documentation_names_every_setting_with_its_default(cli: CliRunner) -> None:
    page = (Path(adapter.__file__).parents[1] / "docs" / "configuration.md").read_text()
    everything, keyed, listed = re.findall(r"```yaml\n(.*?)```", page, re.S)
    Path("everything.yaml").write_text(everything)
    shown, defaults = show(cli, "--config", "everything.yaml"), show(cli)
    assert {key: value for key, (value, _) in shown.items()} == {key: value for key, (value, _) in defaults.items()}
    assert {key for key, (_, source) in shown.items() if source == "default"} == set()
    Path("keyed.yaml").write_text(keyed)
    Path("listed.yaml").write_text(listed)
    named = [load(Path(name), {}).settings.runners.named for name in ("keyed.yaml", "listed.yaml")]
    assert named[0] == named[1]


@pytest.mark.parametrize("by", ["--config", "ADAPTER_CONFIG", "--working-dir"])
def test_file_is_found(by: str, cli: CliRunner, tmp_path: Path) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/adapter.yaml").write_text("api_server: {backlog: 3}")
    Path("adapter.yaml").write_text("api_server: {backlog: 4}")
    place = "elsewhere" if by == "--working-dir" else "elsewhere/adapter.yaml"
    found = show(cli, by, place) if by.startswith("--") else show(cli, **{by: place})
    assert found["api_server.backlog"] == (3, "elsewhere/adapter.yaml:1")
    assert show(cli)["api_server.backlog"] == (4, "adapter.yaml:1")


@pytest.mark.parametrize("option", SERVER, ids=lambda option: option.name)
def test_every_option_can_stand_in_the_environment(option: Any, cli: CliRunner) -> None:
    value = {"log_format": "json", "host": "::1", "triton": "grpc://x:1", "ssl_version": "17"}.get(option.name, "1")
    env = {f"ADAPTER_{option.name.upper()}": value}
    more = ["--triton", "grpc://x:1"] if option.name == "manifest" else []
    if option.name.startswith("ssl_") and option.name != "ssl_certfile":
        more = ["--ssl-certfile", "a.pem", *(["--ssl-ca-certs", "b.pem"] if option.name == "ssl_cert_reqs" else [])]
    assert show(cli, *more, **env)[".".join(option.keys)][1] == f"environment ADAPTER_{option.name.upper()}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "show", "--config", "none.yaml"], "Error: There is no file 'none.yaml' to read settings from."),
        (["config", "show", "--ssl-version", "3"], "api_server.ssl.version is 3 (--ssl-version), but can only be one"),
        (["serve", "x:y", "--manifest", "m.json"], "triton.manifest (--manifest) goes with triton.url (--triton)"),
        (["serve", "x:y", "--config", "none.yaml"], "none.yaml' to read settings from."),
        (["export", "x:y", "--config", "none.yaml"], "There is no file 'none.yaml'"),
        (["serve", "x:y", "--development", "--production"], "exclude each other"),
    ],
)
def test_wrong_settings_are_one_sentence(arguments: list[str], words: str, cli: CliRunner) -> None:
    result = cli.invoke(main, arguments)
    assert result.exit_code != 0
    assert words in result.output
    assert "Traceback" not in result.output


def test_serve_has_its_other_name() -> None:
    assert COMMANDS["serve-http"] == COMMANDS["serve"]
    assert "serve-http [OPTIONS] SERVICE" in CliRunner().invoke(main, ["serve-http", "--help"]).output

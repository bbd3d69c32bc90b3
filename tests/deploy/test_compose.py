"""compose.yaml and its images, as they are written: `make test-compose` runs them, where there is Docker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapter.triton.engine import RESTRICTED

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = [ROOT / "docker/api.Dockerfile", ROOT / "docker/triton.Dockerfile", ROOT / "docker/proxy/Dockerfile"]


def test_only_the_front_is_published_and_on_this_machine_alone() -> None:
    assert {name: s["ports"] for name, s in SERVICES.items() if "ports" in s} == {
        "proxy": ["${PUBLISH:-127.0.0.1}:${PORT:-3000}:3000"]
    }
    assert not [name for name, s in SERVICES.items() if "network_mode" in s]


def test_triton_is_in_a_network_that_leads_nowhere() -> None:
    assert SERVICES["triton"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    # what is published shares no network with it
    assert "networks" not in SERVICES["proxy"]
    assert [name for name, s in SERVICES.items() if "inside" in s.get("networks", [])] == ["export", "triton", "api"]


def test_triton_can_be_changed_by_nobody_who_has_no_key() -> None:
    command = SERVICES["triton"]["command"][-1]
    found = re.search(r'--grpc-restricted-protocol=(\S+):adapter-key="([^"]+)"', command)
    assert found is not None
    assert set(RESTRICTED) == set(found[1].split(","))
    assert found[2] == "$${TRITON_KEY:-$$(cat /proc/sys/kernel/random/uuid)}"
    assert "--http-address=127.0.0.1" in command
    assert "--model-control-mode=explicit" in command


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user"} & set(service)
    assert not [v for v in service.get("volumes", []) if not v.startswith("models:")]
    # `export` alone writes, and it ends
    assert (name == "export") == ("models:/models" in service.get("volumes", []))
    assert (name == "export") != (service.get("restart") == "unless-stopped" and "healthcheck" in service)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_each_image_ends_as_a_user_who_is_not_root(file: Path) -> None:
    users = re.findall(r"^USER (\S+)$", file.read_text(), re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0", "0:0")
    after = file.read_text().rpartition(f"USER {users[-1]}")[2]
    assert not re.search(r"^(RUN|COPY|ADD) ", after, re.MULTILINE)


def test_images_are_named_after_the_service() -> None:
    assert SERVICES["triton"]["image"] == SERVICES["export"]["image"] == "${SERVICE_NAME:-iris}-triton"
    assert SERVICES["api"]["image"] == "${SERVICE_NAME:-iris}-api"
    assert COMPOSE["name"] == "${SERVICE_NAME:-iris}"


def test_gpu_file_changes_what_needs_gpus_alone() -> None:
    gpu = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
    assert set(gpu) == {"services"}
    assert set(gpu["services"]) == {"export", "triton"}
    (device,) = gpu["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    for name, service in gpu["services"].items():
        assert set(service["environment"]) <= set(SERVICES[name]["environment"])


def test_images_get_what_they_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    for file in DOCKERFILES[:2]:
        for words in re.findall(r"^COPY (?!--)(.+) \S+$", file.read_text(), re.MULTILINE):
            for word in words.split():
                top = word.replace("${SERVICE_DIR}", "examples/iris").split("/")[0]
                assert f"!{top}" in lines, f"{file.name}: {word}"


def test_documentation_names_every_variable() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    table = dict(re.findall(r"^\| (`[A-Z_`, ]+`) \| .* \| (.+) \|$", page, re.MULTILINE))
    named = {name: text for names, text in table.items() for name in re.findall(r"[A-Z_]+", names)}
    text = (ROOT / "compose.yaml").read_text()
    defaults = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}", text))
    passed_on = {k for s in SERVICES.values() for k, v in (s.get("environment") or {}).items() if v is None}
    assert set(named) == set(defaults) | passed_on
    assert all(f"`{default}`" in named[name] for name, default in defaults.items() if name not in passed_on)

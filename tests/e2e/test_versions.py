"""Two versions of one saved model in one service, as seed 001 writes them; and fronts that have only the manifest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

import pytest
from sklearn.dummy import DummyClassifier

import adapter
from adapter.triton.engine import Engine
from tests.e2e.conftest import Serve

SERVICE = """
    import asyncio
    import adapter
    from adapter.io import JSON, NumpyNdarray

    runner1 = adapter.sklearn.get("twice:{first}").to_runner()
    runner2 = adapter.sklearn.get("twice:latest").to_runner()
    svc = adapter.Service("both", runners=[runner1, runner2])

    @svc.api(input=NumpyNdarray(), output=JSON())
    async def predict(x):
        results = await asyncio.gather(runner1.predict.async_run(x), runner2.predict.async_run(x))
        return [[r.tolist() for r in results], [r.name for r in svc.runners]]
"""


@pytest.fixture(scope="module")
def tags() -> list[str]:
    found = []
    for constant in (1, 2):
        model = DummyClassifier(strategy="constant", constant=constant).fit([[0.0], [0.0]], [1, 2])
        found.append(str(adapter.sklearn.save_model("twice", model).tag.version))
    return found


@pytest.fixture(scope="module")
def folder(tags: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("both")
    (made / "service.py").write_text(dedent(SERVICE).replace("{first}", tags[0]))
    return made


def test_both_versions_answer_under_names_of_their_own(serve: Serve, folder: Path, tags: list[str]) -> None:
    served = serve("service:svc", "--api-workers", "1", working_dir=folder)
    results, names = served.post("/predict", json=[[0.0], [1.0]]).json()
    assert results == [[1, 1], [2, 2]]
    assert names == [f"twice_{tag}" for tag in tags]


def test_front_with_a_manifest_needs_no_model_store_and_no_sklearn(
    serve: Serve, folder: Path, engine_of: Callable[..., Engine], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    adapter_command = [str(Path(sys.executable).with_name("adapter")), "export", "service:svc"]
    done = subprocess.run(
        [*adapter_command, "--repository", str(repository)], cwd=folder, check=True, capture_output=True, text=True
    )
    assert done.stdout.count("written") == 2
    entries = [p.name for p in repository.iterdir() if p.is_dir()]
    engine = engine_of(repository, entries)
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    for name in ("sklearn", "joblib"):
        (blocker / f"{name}.py").write_text("raise ImportError('this front has no such library')")
    served = serve(
        "service:svc",
        *("--triton", f"grpc://{engine.url}", "--manifest", str(repository / "manifest.json"), "--api-workers", "1"),
        working_dir=folder,
        env={
            "ADAPTER_HOME": str(tmp_path / "empty"),
            "PYTHONPATH": str(blocker),
        },
    )
    assert served.children("tritonserver") == []
    results, _ = served.post("/predict", json=[[0.0]]).json()
    assert results == [[1], [2]]
    assert served.get("/readyz").status_code == 200
    engine.stop()
    answer = served.post("/predict", json=[[0.0]])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_export_again_writes_nothing(
    folder: Path, tmp_path: Path, run_adapter: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    repository = str(tmp_path / "repository")
    first = run_adapter("export", "service:svc", "--repository", repository, working_dir=folder)
    assert (first.returncode, first.stdout.count("written")) == (0, 2)
    before = {p: p.stat().st_mtime_ns for p in Path(repository).rglob("*") if p.is_file() and p.name[0] != "."}
    again = run_adapter("export", "service:svc", "--repository", repository, working_dir=folder)
    assert (again.returncode, again.stdout.count("unchanged")) == (0, 2)
    assert {p: p.stat().st_mtime_ns for p in Path(repository).rglob("*") if p.is_file() and p.name[0] != "."} == before

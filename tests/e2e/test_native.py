"""Services whose entries other backends than Triton's python one serve: their code and their answers stay the same.

The engine here has the python backend alone, so entries of it stand in, with the very tensors of the native ones.
"""

from __future__ import annotations

import concurrent.futures
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import adapter
from adapter.triton.engine import Engine
from tests.e2e.conftest import Serve, Served
from tests.triton.standing_in import stand_in

X, Y = make_classification(400, 6, n_informative=4, n_classes=3, random_state=0)
FRAME = pd.DataFrame(X, columns=list("abcdef"))
MODELS: dict[str, Any] = {
    "native_rf": RandomForestClassifier(10, random_state=0).fit(FRAME, Y * 5 - 3),  # labels that are no indices
    "native_gb": GradientBoostingClassifier(n_estimators=10, random_state=0).fit(X, Y > 0),  # one score for two classes
    "native_lr": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y),
    "native_alone": RandomForestClassifier(5, random_state=0).fit(X, Y),  # its calls are not joined
    # Treelite reads it, and gets other scores
    "native_hist": HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(X, Y),
}
SERVICE = """
import adapter
from adapter.io import NumpyNdarray, PandasDataFrame

names = ("rf", "gb", "lr", "alone", "hist")
runners = {name: adapter.sklearn.get(f"native_{name}:latest").to_runner() for name in names}
svc = adapter.Service("native", runners=list(runners.values()))


def offer(name, method):
    async def call(rows):
        found = await getattr(runners[name], method).async_run(rows)
        assert found.flags.writeable
        return found

    def wait(rows):
        return getattr(runners[name], method).run(rows)

    svc.api(input=NumpyNdarray(), output=NumpyNdarray(), name=f"{name}_{method}")(call)
    svc.api(input=NumpyNdarray(), output=NumpyNdarray(), name=f"{name}_{method}_sync")(wait)


for name in runners:
    for method in ("predict", "predict_proba"):
        offer(name, method)


@svc.api(input=PandasDataFrame(), output=NumpyNdarray())
async def frame(rows):
    return await runners["rf"].predict.async_run(rows)

"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    (folder / "service.py").write_text(SERVICE)
    for name, model in MODELS.items():
        batchable = {"batchable": name != "native_alone"}
        both = {"predict": batchable, "predict_proba": batchable}
        adapter.sklearn.save_model(name, model, signatures=both, sample=FRAME if name == "native_rf" else X)
    return folder


@pytest.fixture(scope="module")
def exported(project: Path) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).with_name("adapter")), "export", "service:svc", "--repository", "repository"]
    program += ["--backends", "fil,onnxruntime"]
    return subprocess.run(program, cwd=project, capture_output=True, text=True, check=True, timeout=120)


@pytest.fixture(scope="module")
def native(
    project: Path,
    exported: subprocess.CompletedProcess[str],
    engine_of: Callable[[Path, Sequence[str]], Engine],
    serve: Serve,
) -> Served:
    """The service on a Triton whose native entries are stood in for."""
    repository, manifest = project / "stood_in", project / "repository" / "manifest.json"
    shutil.copytree(manifest.parent, repository)
    engine = engine_of(repository, stand_in(repository))
    options = ["--triton", f"grpc://{engine.url}", "--manifest", str(manifest), "--api-workers", "1"]
    return serve("service:svc", *options, working_dir=project)


def test_export_tells_what_became_of_each_method(exported: subprocess.CompletedProcess[str], project: Path) -> None:
    said = exported.stdout
    entries = sorted(p.parent.name for p in (project / "repository").glob("*/config.pbtxt"))
    backends = {"rf": "fil", "gb": "fil", "alone": "fil", "lr": "onnxruntime", "hist": "onnxruntime"}
    methods = ("predict", "predict_proba")
    assert entries == sorted(f"native_{name}.{m}.{backend}" for name, backend in backends.items() for m in methods)
    assert re.search(r"native_rf.predict.fil is served by fil: over \d{3,} rows its labels are those", said)
    assert (project / "repository" / "native_rf.predict.fil" / "1" / "checkpoint.tl").is_file()


ROWS = np.concatenate([X[:5], X.min(axis=0)[None], X.max(axis=0)[None]])


def answer_of(name: str, method: str, rows: Any) -> Any:
    """What the model itself answers, with the columns that it was fitted on."""
    given = pd.DataFrame(rows, columns=FRAME.columns) if name == "rf" else rows
    return getattr(MODELS[f"native_{name}"], method)(given)


@pytest.mark.parametrize("way", ["", "_sync"])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize("name", ["rf", "gb", "lr", "alone", "hist"])
def test_answers_are_those_of_the_model(native: Served, name: str, method: str, way: str) -> None:
    expected = answer_of(name, method, ROWS)
    body = ROWS.tolist()
    found = np.array(native.post(f"/{name}_{method}{way}", json=body).raise_for_status().json())
    assert found.shape == expected.shape
    if method == "predict":
        assert found.tolist() == expected.tolist()
        assert found.dtype.kind == expected.dtype.kind
    else:
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_frames_and_more_rows_than_a_request_may_have(native: Served) -> None:
    frame = [dict(zip("abcdef", row, strict=True)) for row in ROWS.tolist()]
    assert native.post("/frame", json=frame).raise_for_status().json() == answer_of("rf", "predict", ROWS).tolist()
    wrong = [dict(zip("fedcba", row, strict=True)) for row in ROWS.tolist()]
    answer = native.post("/frame", json=wrong)
    assert (answer.status_code, "was fitted with a, b, c" in answer.json()["error"]) == (400, True)
    rows = np.repeat(X, 100, axis=0)  # more than a request to FIL may have
    found = native.post("/rf_predict", json=rows.tolist()).raise_for_status().json()
    assert found == answer_of("rf", "predict", rows).tolist()


def test_nan_is_refused_where_the_model_refuses_it(native: Served) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.where(ROWS > 1, np.nan, ROWS))
    answer = native.post("/lr_predict", content=buffer.getvalue(), headers={"Content-Type": "application/x-npy"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("X of predict() has NaN or infinite numbers")


def test_calls_at_once_get_their_own_answers(native: Served) -> None:
    expected = MODELS["native_gb"].predict_proba(X[:64])

    def call(i: int) -> Any:
        return native.post("/gb_predict_proba", json=[X[i].tolist()]).raise_for_status().json()[0]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        np.testing.assert_allclose(list(pool.map(call, range(64))), expected, atol=1e-6)


ONE = """
import adapter
from adapter.io import NumpyNdarray

runner = adapter.sklearn.get("native_gb:latest").to_runner(cpu=1)
svc = adapter.Service("one", runners=[runner])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def label(rows):
    return await runner.predict.async_run(rows)
"""


def test_embedded_engine_serves_python_and_says_so(project: Path, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(ONE)
    (tmp_path / "adapter.yaml").write_text("triton:\n  backends: [fil]\n")
    served = serve("service:svc", "--api-workers", "1", working_dir=tmp_path)
    assert "here Triton's python backend serves all models" in served.log
    found = served.post("/label", json=ROWS.tolist()).raise_for_status().json()
    assert found == answer_of("gb", "predict", ROWS).tolist()

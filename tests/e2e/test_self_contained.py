"""Entries copied alone to another folder work in a stock Triton whose Python knows nothing of adapter."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import sklearn
import tritonclient.grpc as triton
from sklearn import datasets

import adapter
from adapter import payload
from adapter.triton.installation import Installation, libpython
from tests.e2e.conftest import ADAPTER

SERVICE = """
    import adapter
    from lexicon import score          # a helper module beside the service
    from weights.scale import Scale    # a package of the service's own

    base = adapter.sklearn.get("self_contained:latest")

    class Everything(adapter.Runnable):
        def __init__(self, words, limits):
            from late import SUFFIX        # imported when it runs
            self.suffix = SUFFIX
            self.words = open(words).read().split()
            self.limits = limits.read_text().strip()
            self.model = base.load_model()

        @adapter.Runnable.method
        def judge(self, text, row):
            label = int(self.model.predict([row])[0])
            return {"score": score(text, self.words), "label": label, "limits": self.limits,
                    "scaled": Scale(2).apply(label), "path": base.path, "suffix": self.suffix}

    from pathlib import Path
    runner = adapter.Runner(
        Everything, name="everything", models=[base], cpu=1,
        runnable_init_params={"words": "./data/words.txt", "limits": Path(__file__).parent / "limits.txt"},
    )
    saved = adapter.sklearn.get("self_contained:latest").to_runner()
    svc = adapter.Service("alone", runners=[runner, saved])
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, adapter_home: Path) -> Path:
    """A repository that was exported from a folder and a model store that are gone by now."""
    from sklearn.linear_model import LogisticRegression

    data = datasets.load_iris()
    model = LogisticRegression(max_iter=1000).fit(data.data, data.target)
    folder = tmp_path_factory.mktemp("service")
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "ADAPTER_HOME": str(home)}
    before, os.environ["ADAPTER_HOME"] = os.environ["ADAPTER_HOME"], str(home)
    try:
        adapter.sklearn.save_model("self_contained", model, signatures={"predict": {"batchable": True}})
    finally:
        os.environ["ADAPTER_HOME"] = before
    (folder / "service.py").write_text(dedent(SERVICE))
    (folder / "lexicon.py").write_text("def score(text, words):\n    return sum(w in words for w in text.split())\n")
    (folder / "late.py").write_text("SUFFIX = 'late'\n")
    (folder / "weights").mkdir()
    (folder / "weights" / "__init__.py").write_text("")
    (folder / "weights" / "scale.py").write_text(
        "from .factor import of\n\n\nclass Scale:\n    def __init__(self, n):\n        self.n = n\n\n"
        "    def apply(self, x):\n        return of(self.n) * x\n"
    )
    (folder / "weights" / "factor.py").write_text(
        "from pathlib import Path\n\n\ndef of(n):\n"
        "    return int((Path(__file__).parent / 'tables' / 'ten.txt').read_text()) * n\n"
    )
    (folder / "weights" / "tables").mkdir()
    (folder / "weights" / "tables" / "ten.txt").write_text("10")
    (folder / "data").mkdir()
    (folder / "data" / "words.txt").write_text("good great")
    (folder / "limits.txt").write_text("0..1")
    exported = tmp_path_factory.mktemp("exported")
    subprocess.run(
        [str(ADAPTER), "export", "service:svc", "--repository", str(exported)], cwd=folder, env=env, check=True
    )
    copied = tmp_path_factory.mktemp("elsewhere")
    for entry in ("alone.everything", "self_contained.predict"):
        shutil.copytree(exported / entry, copied / entry)
    for gone in (folder, home, exported):
        shutil.rmtree(gone)
    return copied


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with numpy and the model's own library."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    libraries = [f"numpy=={np.__version__}", f"scikit-learn=={sklearn.__version__}"]
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", *libraries], check=True)
    absent = subprocess.run([str(folder / "bin" / "python"), "-I", "-c", "import adapter"], capture_output=True)
    assert absent.returncode != 0
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def client(
    repository: Path, python: Path, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[triton.InferenceServerClient]:
    """A KServe client of a tritonserver that was started by hand."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "triton.log"
    library = libpython()
    env = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(library.parent) if library else "",
    }
    command = [
        str(installation.tritonserver),
        f"--model-repository={repository.name}",  # as people write it, where they stand
        f"--backend-directory={installation.backends()}",
        *("--model-control-mode=explicit", "--load-model=*", "--disable-auto-complete-config"),
        *("--allow-http=false", "--allow-metrics=false", "--grpc-address=127.0.0.1", f"--grpc-port={port}"),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, cwd=repository.parent)
    made = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        until = time.monotonic() + 60
        while not _ready(made):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield made
    finally:
        made.close()
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except triton.InferenceServerException:
        return False


def test_saved_model_answers_a_plain_kserve_client(client: triton.InferenceServerClient) -> None:
    data = datasets.load_iris().data[::10]
    sent = triton.InferInput("X", data.shape, "FP64")
    sent.set_data_from_numpy(data)
    result = client.infer("self_contained.predict", [sent]).as_numpy("output_0")
    assert result.shape == (len(data), 1)
    assert (result[:, 0] == datasets.load_iris().target[::10]).mean() > 0.9


def test_runnable_finds_its_modules_models_and_files_in_its_entry(
    client: triton.InferenceServerClient, repository: Path
) -> None:
    blob = np.frombuffer(payload.encode((("a good day", [5.9, 3, 5.1, 1.8]), {})), np.uint8)
    sent = triton.InferInput("payload", [len(blob)], "UINT8")
    sent.set_data_from_numpy(blob)
    result = payload.decode(client.infer("alone.everything", [sent]).as_numpy("payload").tobytes())
    assert Path(result.pop("path")).is_relative_to(repository)
    assert result == {"score": 1, "label": 2, "limits": "0..1", "scaled": 40, "suffix": "late"}


def test_requirements_name_what_the_entry_needs(repository: Path) -> None:
    lines = (repository / "alone.everything" / "1" / "requirements.txt").read_text().split()
    assert f"numpy=={np.__version__}" in lines
    lines = (repository / "self_contained.predict" / "1" / "requirements.txt").read_text().split()
    assert f"scikit-learn=={sklearn.__version__}" in lines

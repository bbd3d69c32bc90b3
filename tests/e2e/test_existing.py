"""Entries that exist already, called as runners: a hand-written model, one that batches, and an ensemble of both."""

from __future__ import annotations

import concurrent.futures
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter.triton.engine import Engine
from tests.e2e.conftest import Serve, Served

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils
from adapter.triton.dlpack import write_dlpack


def read(request, name):
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def written(name, array):
    array = np.ascontiguousarray(array)
    dtype = {"int32": "INT32", "float32": "FP32", "float64": "FP64"}[array.dtype.name]
    return pb_utils.Tensor.from_dlpack(name, write_dlpack(dtype, array.shape, array.ctypes.data, array))
"""
# no batches: whole shapes, two inputs, two outputs
ADD_SUB = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            a, b = read(request, "A"), read(request, "B")
            answers.append(pb_utils.InferenceResponse([written("SUM", a + b), written("DIFFERENCE", a - b)]))
        return answers
"""
# batches: each row is told how many came together
DOUBLE = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = read(request, "X")
            if (x == 13).any():
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("13 is unlucky")))
                continue
            together = np.full((len(x), 1), len(x), "int32")
            answers.append(pb_utils.InferenceResponse([written("Y", x * 2), written("ROWS", together)]))
        return answers
"""


def tensor(name: str, dtype: str, *dims: int, optional: bool = False) -> str:
    more = " optional: true" if optional else ""
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: {list(dims)}{more} }}'


def step(**tensors: str) -> str:
    maps = [f'{kind}_map {{ key: "{key}" value: "{tensors[key]}" }}' for kind, key in (("input", "X"), ("output", "Y"))]
    return f'{{ model_name: "double" model_version: -1 {" ".join(maps)} }}'


CONFIGS = {
    "add_sub": f"""
        backend: "python" max_batch_size: 0
        input [{tensor("A", "FP64", -1)}, {tensor("B", "FP64", -1)}]
        output [{tensor("SUM", "FP64", -1)}, {tensor("DIFFERENCE", "FP64", -1)}]
        instance_group [{{ kind: KIND_CPU }}]""",
    "double": f"""
        backend: "python" max_batch_size: 8
        input [{tensor("X", "FP32", 2)}]
        output [{tensor("Y", "FP32", 2)}, {tensor("ROWS", "INT32", 1)}]
        instance_group [{{ kind: KIND_CPU }}] dynamic_batching {{}}""",
    "four_times": f"""
        platform: "ensemble" max_batch_size: 8
        input [{tensor("X", "FP32", 2)}]
        output [{tensor("Z", "FP32", 2)}]
        ensemble_scheduling {{ step [
            {step(X="X", Y="once")},
            {step(X="once", Y="Z")}
        ] }}""",
}
CODE = {"add_sub": ADD_SUB, "double": DOUBLE}


def write_repository(folder: Path) -> Path:
    for name, config in CONFIGS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"{config}\n')
        if name in CODE:
            (folder / name / "1").mkdir()
            (folder / name / "1" / "model.py").write_text(HEAD + CODE[name])
    return folder  # the ensemble has no version folder, as after a `git clone`


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("by_hand") / "repository")


SERVICE = """
import asyncio
import numpy as np
import adapter
from adapter.io import JSON, NumpyNdarray

hand = adapter.triton.Runner("hand", "{place}", {options})
svc = adapter.Service("existing", runners=[hand])


@svc.api(input=JSON(), output=JSON())
async def add_sub(body):
    found = await hand.add_sub.async_run(np.array(body["a"], float), B=np.array(body["b"], float))
    return {{name: array.tolist() for name, array in found.items()}}


@svc.api(input=NumpyNdarray(), output=JSON())
async def double(rows):
    found = await hand.double.async_run(rows)
    found["Y"] += 0  # it is the caller's own
    return [found["Y"].tolist(), found["ROWS"].tolist()]


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
def four_times(rows):
    return hand.four_times.run(rows)


@svc.api(input=JSON(), output=JSON())
async def wrong(body):
    await hand.add_sub.async_run(*body["args"], **body["kwargs"])
"""


@pytest.fixture(scope="module")
def served(by_hand: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The entries of a folder, beside which the service has none of its own."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "service.py").write_text(SERVICE.format(place=by_hand, options=""))
    return serve("service:svc", "--api-workers", "1", working_dir=folder)


@pytest.fixture(scope="module")
def called(
    by_hand: Path,
    engine_of: Callable[[Path, Sequence[str]], Engine],
    serve: Serve,
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    """The same entries in a Triton that runs already."""
    (by_hand / "four_times" / "1").mkdir(exist_ok=True)
    engine = engine_of(by_hand, list(CONFIGS))
    folder = tmp_path_factory.mktemp("there")
    options = f"models={list(CONFIGS)}"
    (folder / "service.py").write_text(SERVICE.format(place=f"grpc://{engine.url}", options=options))
    return serve("service:svc", "--api-workers", "1", working_dir=folder)


@pytest.fixture(params=["served", "called"])
def either(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(request.param)
    return found


def test_several_outputs_come_by_name_and_one_alone(either: Served) -> None:
    answer = either.post("/add_sub", json={"a": [1, 2.5], "b": [3, 4]}).raise_for_status().json()
    assert answer == {"SUM": [4, 6.5], "DIFFERENCE": [-2, -1.5]}
    assert either.post("/four_times", json=[[1, 2], [3, 4]]).raise_for_status().json() == [[4, 8], [12, 16]]


def test_calls_longer_than_a_batch_are_split(either: Served) -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2) + 20
    doubled, together = either.post("/double", json=rows.tolist()).raise_for_status().json()
    assert np.array_equal(doubled, rows * 2)
    assert max(row[0] for row in together) <= 8


def test_calls_at_once_share_requests_and_one_that_fails_hurts_no_other(either: Served) -> None:
    def call(i: int) -> tuple[int, Any]:
        answer = either.post("/double", json=[[i, i]])
        return answer.status_code, answer.json()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(64)))
    for i, (status, body) in enumerate(answers):
        if i == 13:
            assert status == 500
            either.wait_for("double failed: INTERNAL: 13 is unlucky")
        else:
            assert (status, body[0]) == (200, [[2 * i, 2 * i]])
    assert any(body[1][0][0] > 1 for i, (_, body) in enumerate(answers) if i != 13)


@pytest.mark.parametrize(
    ("args", "kwargs", "status", "sentence"),
    [
        ([[1.0]], {"B": [[1.0]]}, 400, "'B' of add_sub takes an array of shape (-1,)"),
        ([["a"]], {"B": [1.0]}, 400, "'A' of add_sub takes FP64"),
        ([[[1.0], [1.0, 2.0]]], {"B": [1.0]}, 400, "ragged"),
        ([[1.0]], {}, 500, "misses the input 'B'"),
        ([[1.0]], {"C": [1.0]}, 500, "no input 'C'"),
        ([[1.0]], {"A": [1.0]}, 500, "twice the input 'A'"),
        ([[1.0], [1.0], [1.0]], {}, 500, "takes 2 inputs, but 3 were given"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    either: Served, args: Any, kwargs: Any, status: int, sentence: str
) -> None:
    answer = either.post("/wrong", json={"args": args, "kwargs": kwargs})
    assert answer.status_code == status
    if status == 400:
        assert sentence in answer.json()["error"]
    else:
        either.wait_for(re.escape(sentence))


def test_fronts_need_the_folder_no_more(
    by_hand: Path,
    engine_of: Callable[[Path, Sequence[str]], Engine],
    serve: Serve,
    run_adapter: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    (tmp_path / "service.py").write_text(SERVICE.format(place=by_hand, options=""))
    done = run_adapter("export", "service:svc", "--repository", str(tmp_path / "out"), working_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "written  four_times  version 1" in done.stdout
    engine = engine_of(tmp_path / "out", list(CONFIGS))
    (tmp_path / "service.py").write_text(SERVICE.format(place="/nowhere", options=""))
    options = ["--triton", f"grpc://{engine.url}", "--manifest", str(tmp_path / "out"), "--api-workers", "1"]
    front = serve("service:svc", *options, working_dir=tmp_path)
    assert front.post("/four_times", json=[[1, 2]]).raise_for_status().json() == [[4, 8]]
    assert front.get("/readyz").status_code == 200


def test_folder_cannot_be_called_without_triton(
    by_hand: Path, run_adapter: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text(SERVICE.format(place=by_hand, options=""))
    done = run_adapter("serve", "service:svc", "--development", "--port", "0", working_dir=tmp_path)
    assert done.returncode == 1
    assert "which Triton alone can serve" in done.stdout + done.stderr


def test_triton_that_is_not_there_is_not_ready(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE.format(place="grpc://127.0.0.1:1", options="models=['add_sub']"))
    front = serve("service:svc", "--development", "--port", "0", working_dir=tmp_path)
    assert front.get("/readyz").status_code == 503
    answer = front.post("/add_sub", json={"a": [1], "b": [1]})
    assert answer.status_code == 503

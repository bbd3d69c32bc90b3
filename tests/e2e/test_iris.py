"""The iris example, served as the README says."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn import datasets

import adapter
from adapter.resources import Machine
from tests.e2e.conftest import ROOT, Serve, Served

IRIS = ROOT / "examples" / "iris"


@pytest.fixture(scope="module")
def served(serve: Serve, iris: str) -> Served:
    return serve("service:svc", working_dir=IRIS)


@pytest.mark.parametrize("api", ["classify", "classify_async"])
def test_curl_line_of_the_readme_gets_the_class(served: Served, api: str) -> None:
    command = ["curl", "-s", "-X", "POST", "-H", "content-type: application/json"]
    done = subprocess.run(
        [*command, "--data", "[[5.9, 3, 5.1, 1.8]]", f"{served.url}/{api}"], capture_output=True, check=True, text=True
    )
    assert done.stdout == "[2]"


def test_triton_has_half_of_the_cpus(served: Served) -> None:
    assert len(served.children("adapter.server.front")) == max(1, Machine.here().cpus // 2)


def test_every_iris_gets_the_class_that_the_model_gives(served: Served) -> None:
    data = datasets.load_iris().data
    answer = served.post("/classify", json=data.tolist())
    expected = adapter.sklearn.load_model("iris_clf:latest").predict(data)
    assert answer.json() == expected.tolist()


def test_requests_at_once_get_each_their_own_answer(served: Served) -> None:
    data = datasets.load_iris().data[::3]
    expected = adapter.sklearn.load_model("iris_clf:latest").predict(data).tolist()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda row: served.post("/classify_async", json=[row.tolist()]).json(), data))
    assert [a[0] for a in answers] == expected


BAD_BODIES: list[tuple[str, bytes, str, int, str]] = [
    ("empty", b"", "application/json", 400, "The body is empty"),
    ("not json", b"[[1, 2", "application/json", 400, "The body is not JSON"),
    ("unicode", "[[ß]]".encode(), "application/json", 400, "The body is not JSON"),
    ("not utf-8", b"[[\xff]]", "application/json", 400, "The body"),
    ("ragged", b"[[1, 2, 3, 4], [1]]", "application/json", 400, "differ in length"),
    ("text", b'[["a", "b", "c", "d"]]', "application/json", 400, "float64"),
    ("object", b'{"a": 1}', "application/json", 400, ""),
    ("null", b"[[null, 1, 2, 3]]", "application/json", 400, ""),
    ("columns", b"[[1, 2, 3]]", "application/json", 400, "(-1, 4)"),
    ("rank", b"[1, 2, 3, 4]", "application/json", 400, "(-1, 4)"),
    ("no rows", b"[]", "application/json", 400, "(-1, 4)"),
    ("picture", b"\x89PNG", "image/png", 415, "application/json"),
]


@pytest.mark.parametrize("api", ["classify", "classify_async"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "text"), [b[1:] for b in BAD_BODIES], ids=[b[0] for b in BAD_BODIES]
)
def test_bad_body_gets_a_sentence(served: Served, api: str, body: bytes, kind: str, status: int, text: str) -> None:
    answer = served.post(f"/{api}", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]


def test_huge_body_is_answered(served: Served) -> None:
    rows = np.tile(datasets.load_iris().data, (400, 1))  # 60,000 rows, 600 times max_batch_size
    answer = served.post("/classify", json=rows.tolist())
    assert answer.status_code == 200
    assert len(answer.json()) == len(rows)


def test_unknown_route_names_what_there_is(served: Served) -> None:
    answer = served.get("/clasify")
    assert answer.status_code == 404
    assert "POST /classify, POST /classify_async" in answer.json()["error"]
    wrong_method = served.get("/classify")
    assert wrong_method.status_code == 405
    assert "does not answer GET" in wrong_method.json()["error"]
    assert wrong_method.headers["allow"] == "POST"


def test_request_id_is_kept_or_made(served: Served) -> None:
    given = served.post("/classify", json=[[1, 2, 3, 4]], headers={"X-Request-ID": "mine-1"})
    assert given.headers["x-adapter-request-id"] == "mine-1"
    made = served.post("/classify", content=b"")
    assert len(made.headers["x-adapter-request-id"]) == 32
    served.wait_for("id=mine-1")


@pytest.mark.parametrize("route", ["livez", "healthz", "readyz"])
def test_health_routes_answer(served: Served, route: str) -> None:
    answer = served.get(f"/{route}")
    assert (answer.status_code, answer.text) == (200, "\n")


def test_docs_describe_the_apis(served: Served) -> None:
    document = served.get("/docs.json").json()
    assert {"/classify", "/classify_async", "/livez", "/readyz"} <= set(document["paths"])
    operation = document["paths"]["/classify"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["type"] == "array"
    assert "Classify irises" in operation["description"]
    assert json.dumps(document)  # plain JSON all the way down


def test_triton_forms_batches_of_the_entry(served: Served) -> None:
    assert len(served.children("tritonserver")) >= 1
    assert len(served.children("adapter.triton.worker")) == 1
    assert served.children("adapter.server.front")


def test_nothing_is_hinted_at_where_every_method_takes_batches(served: Served) -> None:
    assert "Hint:" not in served.log

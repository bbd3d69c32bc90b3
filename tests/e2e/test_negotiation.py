"""Tables and arrays over HTTP: the format of a body by its content type, that of an answer by the Accept header."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from tests.e2e.conftest import Serve, Served
from tests.io.test_pandas import PARQUET, parquet_of

SERVICES = Path(__file__).parent / "services"
FRAME = pd.DataFrame({"a": [1.5, 2.0], "b": [3.0, -4.0]})
BODIES = {
    "application/json": FRAME.to_json(orient="records").encode(),
    "text/csv; charset=utf-8": FRAME.to_csv(index=False).encode(),
    PARQUET: parquet_of(FRAME),
}


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("frames:svc", "--development", working_dir=SERVICES)


def post(served: Served, path: str, body: bytes, content_type: str, accept: str | None = None) -> httpx.Response:
    headers = {"content-type": content_type, **({} if accept is None else {"accept": accept})}
    return served.post(path, content=body, headers=headers)


def frame_of(response: httpx.Response) -> pd.DataFrame:
    assert response.status_code == 200, response.text
    media_type = response.headers["content-type"].partition(";")[0]
    file = io.BytesIO(response.content)
    frame: pd.DataFrame
    if media_type == "application/json":
        frame = pd.DataFrame(response.json())
    else:
        frame = pd.read_csv(file) if media_type == "text/csv" else pd.read_parquet(file)
    return frame


@pytest.mark.parametrize("accept", [None, "application/json", "text/csv", PARQUET, "text/html, */*;q=0.1"])
@pytest.mark.parametrize("content_type", BODIES)
def test_frame_comes_and_goes_in_every_format(served: Served, content_type: str, accept: str | None) -> None:
    response = post(served, "/double", BODIES[content_type], content_type, accept)
    named = accept if accept in (*BODIES, "text/csv") else "application/json"
    assert response.headers["content-type"].partition(";")[0] == named
    pd.testing.assert_frame_equal(frame_of(response), FRAME * 2, check_dtype=False)


def test_default_format_is_sent_with_what_the_context_says(served: Served) -> None:
    response = post(served, "/echo", b"name\n\xfc\n", "text/csv; charset=latin-1")
    assert response.text == "name\nü\n"
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["x-rows"] == "1"
    response = post(served, "/echo", b'[{"name": "x"}]', "application/json", "application/json")
    assert (response.json(), response.headers["x-rows"]) == ([{"name": "x"}], "1")


@pytest.mark.parametrize(
    ("content_type", "body", "status", "sentence"),
    [
        ("application/json", b'[{"a": 1}]', 400, "The body has no column 'b'"),
        ("application/json", b'[{"a": 1, "b": "x"}]', 400, "column 'b' that is of data type"),
        ("application/json", b"[[1, 2], [3]]", 400, "it has rows of 1 to 2 values"),
        ("text/csv", b"a,a\n1,2\n", 400, "two columns called 'a'"),
        ("text/csv", b"a,b\n1,2,3\n", 400, "row 2 has 3 values"),
        (PARQUET, b"PAR1", 400, "no Parquet file"),
        ("image/png", b"", 415, "which this API does not read"),
    ],
)
def test_body_is_refused_with_a_sentence_when_it_is_broken(
    served: Served, content_type: str, body: bytes, status: int, sentence: str
) -> None:
    response = post(served, "/double", body, content_type, "text/csv")
    assert response.status_code == status
    assert sentence in response.json()["error"]


def test_series_comes_and_goes(served: Served) -> None:
    assert post(served, "/total", b"[1, 2.5]", "application/json").json() == [3.5]
    assert post(served, "/total", b"n\n1\n2\n", "text/csv", "text/csv").text == "value\n3.0\n"


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_large_array_comes_and_goes_as_npy(served: Served) -> None:
    array = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    response = post(served, "/negative", npy(array), "application/x-npy", "application/x-npy")
    assert response.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), -array)


def test_array_changes_its_format_on_the_way(served: Served) -> None:
    response = post(served, "/negative", b"[1, 2]", "application/json", "application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), [-1, -2])
    response = post(served, "/negative", npy(np.array([1.5], dtype=np.float32)), "application/octet-stream")
    assert (response.text, response.headers["content-type"]) == ("[-1.5]", "application/json")
    response = post(served, "/negative", npy(np.zeros(3, dtype=np.float32))[:-1], "application/x-npy")
    assert (response.status_code, "but 11 follow" in response.json()["error"]) == (400, True)


def test_requests_at_the_same_time_get_each_their_own_format(served: Served) -> None:
    def ask(accept: str) -> str:
        response = post(served, "/negative", b"[1]", "application/json", accept)
        return response.headers["content-type"]

    wanted = ["application/json", "application/x-npy"] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, wanted)) == wanted

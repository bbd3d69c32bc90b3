"""Routes, mounted applications, middlewares and the Context of a served service, over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.e2e.conftest import Serve, Served
from tests.e2e.services import surface

SERVICES = Path(surface.__file__).parent
PARALLEL = 200


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("surface.py:svc", "--development", working_dir=SERVICES)


# ---- routes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v3/iris/x", {"item": "iris", "body": 1}),
        ("/v3/gr%C3%BC%C3%9Fe%20%F0%9F%8C%BB/x", {"item": "grüße 🌻", "body": 1}),
        ("/v3/fixed/x", "fixed"),
        ("/v3/5/of/a/b.c", {"number": 5, "rest": "a/b.c"}),
        ("/v3/5/of/", {"number": 5, "rest": ""}),
        ("/something", {"anything": "something"}),
    ],
)
def test_parameters_of_a_route_reach_the_function(served: Served, path: str, expected: Any) -> None:
    answer = served.post(path, json=1)
    assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("path", ["/v3/five/of/a", "/v3/-5/of/a", "/v3//x"])
def test_path_that_no_route_matches_goes_to_the_mounted_application(served: Served, path: str) -> None:
    assert served.post(path, json=1).text == f"rest {path}"


def test_number_of_too_many_digits_is_no_number(served: Served) -> None:
    assert served.post(f"/v3/{'9' * 5000}/of/a", json=1).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs.json", "/", "/static_content/swagger-ui.css"])
def test_route_that_matches_anything_leaves_the_server_its_own(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status_code == 200
    assert answer.headers["x-adapter-request-id"]


def test_document_is_valid_and_names_every_path(served: Served) -> None:
    document = served.get("/docs.json").json()
    OpenAPIV31SpecValidator(document).validate()
    assert document == surface.svc.openapi_spec
    assert {"/v3/{item}/x", "/v3/{number}/of/{rest}", "/fast/items/{number}", "/pick"} <= set(document["paths"])


# ---- mounts and middlewares -----------------------------------------------------------------------------------------


def test_mounted_applications_answer_below_their_paths(served: Served) -> None:
    assert served.get("/fast/items/3").json() == {"name": "item 3"}
    assert served.get("/fast/items/three").status_code == 422  # FastAPI's own answer
    assert served.get("/elsewhere/below").text == "rest /elsewhere/below"
    wsgi = served.post("/old/wsgi/some/path", content=b"body " * 100_000)
    assert (wsgi.status_code, wsgi.headers["x-path"], wsgi.text) == (201, "/some/path", "wsgi " + "body " * 100_000)


def test_mounted_application_that_fails_is_a_500_of_its_own(served: Served) -> None:
    answer = served.get("/fast/broken")
    assert answer.status_code == 500
    assert served.get("/fast/items/3").status_code == 200


@pytest.mark.parametrize("path", ["/fast/items/3", "/livez", "/nothing/here", "/old/wsgi/x"])
def test_middlewares_see_every_answer_and_the_first_is_outermost(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.headers.get_list("x-mark") == ["inner", "outer"]
    assert answer.headers["x-adapter-request-id"]


def test_middleware_that_fails_is_answered(served: Served) -> None:
    answer = served.get("/broken-middleware")
    assert (answer.status_code, list(answer.json())) == (500, ["error"])


def test_middleware_gets_its_options(served: Served) -> None:
    long = {"name": "x" * 20_000, "petals": []}
    assert served.post("/pick", json=long).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in served.post("/pick", json={"name": "x", "petals": []}).headers


# ---- the context ----------------------------------------------------------------------------------------------------


def gone(folder: str) -> bool:
    until = time.monotonic() + 10
    while Path(folder).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return not Path(folder).exists()


@pytest.mark.parametrize("path", ["/mix_async", "/mix_sync"])
def test_parallel_requests_never_see_each_others_context(served: Served, path: str) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
        return await client.post(
            path,
            json=number,
            params={"q": f"q{number}"},
            headers={"x-sent": f"h{number}", "cookie": f"c=c{number}"},
        )

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=PARALLEL)
        async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(PARALLEL)))

    answers = asyncio.run(ask_all())
    for number, answer in enumerate(answers):
        seen = answer.json()
        folder = seen.pop("folder")
        assert seen == {
            "header": f"h{number}",
            "query": f"q{number}",
            "cookie": f"c{number}",
            "files": [str(number)],
        }
        assert answer.status_code == 200 + number % 3
        assert answer.headers["x-number"] == str(number)
        assert answer.headers.get_list("x-many") == [f"a{number}", f"b{number}"]
        assert answer.headers["set-cookie"] == f"number={number}; Path=/; SameSite=lax"
        assert gone(folder)
    assert len({answer.json()["folder"] for answer in answers}) == PARALLEL


def test_error_discards_what_was_set_and_removes_the_folder(served: Served) -> None:
    answer = served.post("/fail", json=1)
    assert answer.status_code == 404
    assert not {"x-number", "set-cookie"} & set(answer.headers)
    assert gone(answer.json()["error"])


def test_folder_lasts_as_long_as_the_stream(served: Served) -> None:
    answer = served.post("/stream", json=5)
    folder, files = answer.text.split(".....")
    assert (folder.startswith("/"), files) == (True, "1")
    assert gone(folder)


def test_folder_is_removed_when_the_client_leaves_in_the_middle_of_a_stream(served: Served) -> None:
    with served.client as client, client.stream("POST", "/stream", json=100_000) as answer:
        pieces = answer.iter_text()  # closes the connection when it is dropped
        folder = next(pieces).rstrip(".")
        assert Path(folder).exists()
    assert gone(folder)


def test_folder_is_removed_when_the_request_takes_too_long(serve: Serve) -> None:
    hurried = serve("surface.py:svc", "--development", "--timeout", "1", working_dir=SERVICES)
    assert hurried.post("/slow", json=60).status_code == 504
    assert gone(hurried.post("/slow_folder", json=1).json())


# ---- other servers --------------------------------------------------------------------------------------------------


def test_any_asgi_server_serves_a_service_with_its_runners(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "life:svc.asgi_app", "--port", "0", "--app-dir", str(SERVICES)],
        env={**os.environ, "NOTES": str(notes)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        try:
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            with httpx.Client(base_url=url, timeout=30) as client:
                for path in ("/do", "/do_async"):
                    assert client.post(path, content="it").text == f"did it in {process.pid}"
                assert client.post("/state", json=1).headers["x-begun"] == "sync,async"
                assert client.get("/readyz").status_code == 200
        finally:
            process.terminate()
            process.stderr.read()
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["startup", "startup", "shutdown"]

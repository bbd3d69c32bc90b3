"""The limits of a server: size and time of a request, requests at once, threads; and what other origins may do."""

from __future__ import annotations

import concurrent.futures
import select
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import Serve, Served

SETTINGS = """
api_server:
  threads: 2
  traffic: {timeout: 0.6, max_concurrency: 6, max_body_bytes: 1000}
  http:
    cors:
      access_control_allow_origins: ["https://example.org"]
      access_control_allow_headers: ["x-mine"]
"""


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    file = tmp_path_factory.mktemp("settings") / "limits.yaml"
    file.write_text(SETTINGS)
    return serve("tests.e2e.services.limits:svc", "--development", "--config", str(file))


def chunks(count: int) -> Iterator[bytes]:
    yield b'"'
    for _ in range(count):
        yield b"x" * 100
    yield b'"'


@pytest.mark.parametrize("path", ["/echo", "/mounted/x"])
def test_body_that_is_too_long_is_refused_with_413(served: Served, path: str) -> None:
    announced = served.post(path, content=b"1" * 1001)
    assert announced.status_code == 413
    assert announced.json() == {"error": "The body of the request is 1001 bytes; this server takes at most 1000 bytes."}
    assert announced.headers["x-adapter-request-id"]
    streamed = served.post(path, content=chunks(20))
    assert streamed.status_code == 413
    assert streamed.json() == {"error": "The body of the request is longer; this server takes at most 1000 bytes."}


def test_body_within_the_limit_passes_in_one_piece_or_many(served: Served) -> None:
    assert served.post("/echo", content=b"1" * 900).status_code == 200
    assert served.post("/echo", content=chunks(5)).json() == "x" * 500


@pytest.mark.parametrize("path", ["/wait", "/hold"])
def test_request_over_its_time_is_answered_with_504(served: Served, path: str) -> None:
    begun = time.monotonic()
    late = served.post(path, json=1.5)
    assert late.status_code == 504
    assert late.json() == {"error": f"{path} did not answer within 0.6 seconds."}
    assert time.monotonic() - begun < 1.4
    assert served.post(path, json=0.01).status_code == 200


def test_stream_that_has_begun_may_last(served: Served) -> None:
    assert served.post("/drip", json=0.4).text == "0\n1\n2\n"


def test_all_threads_held_is_503_and_not_ready_until_one_is_free(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as callers:
        held = [callers.submit(served.post, "/hold", json=2.0) for _ in range(2)]
        assert [each.result().status_code for each in held] == [504, 504]
    refused = served.post("/echo", json=1)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "All 2 threads of this worker are held" in refused.json()["error"]
    ready = served.get("/readyz")
    assert ready.status_code == 503
    assert "All 2 threads" in ready.json()["error"]
    assert served.get("/livez").status_code == 200
    assert served.post("/wait", json=0).status_code == 200  # an async function needs no thread
    until = time.monotonic() + 10
    while served.get("/readyz").status_code != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert served.post("/echo", json=1).json() == 1


def test_more_requests_at_once_than_allowed_are_refused_with_429_but_health_is_not(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as callers:
        waiting = [callers.submit(served.post, "/wait", json=0.4) for _ in range(16)]
        time.sleep(0.15)
        for path in ("/livez", "/readyz", "/metrics", "/docs.json", "/"):
            assert served.get(path).status_code == 200
        answers = [each.result() for each in waiting]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 5
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert "max_concurrency" in refused[0].json()["error"]
    assert {answer.status_code for answer in answers} == {200, 429}


def test_cors_lets_the_named_origin_in_and_no_other(served: Served) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-mine",
        "origin": "https://example.org",
    }
    with served.client as client:
        preflight = client.options("/echo", headers=asked)
        other = client.options("/echo", headers={**asked, "origin": "https://example.com"})
        answer = client.post("/echo", json=1, headers={"origin": "https://example.org"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers
    assert answer.headers["access-control-allow-origin"] == "https://example.org"


def test_page_of_the_named_origin_may_read_what_was_refused(served: Served) -> None:
    page = {"origin": "https://example.org"}
    with served.client as client:
        refused = [
            client.post("/echo", content=b"1" * 1001, headers=page),
            client.post("/wait", json=1.5, headers=page),
            client.post("/mounted/fails", headers=page),
        ]
    assert [answer.status_code for answer in refused] == [413, 504, 500]
    for answer in refused:
        assert answer.headers.get_list("access-control-allow-origin") == ["https://example.org"]


def test_failing_mounted_application_is_a_500_with_a_sentence_and_hurts_nobody_else(served: Served) -> None:
    failed = served.post("/mounted/fails")
    assert failed.status_code == 500
    assert "The code of this service failed" in failed.json()["error"]
    assert served.post("/mounted/x").text == "mounted"


@pytest.mark.parametrize("length", ["-5", "1e3", "x", "99999999999999999999"])
def test_odd_content_length_never_is_a_500(served: Served, length: str) -> None:
    url = httpx.URL(served.url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(f"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n1".encode())
        connection.shutdown(socket.SHUT_WR)
        status = connection.recv(1000).split(b"\r\n")[0]
    assert status.split(b" ")[1] in (b"400", b"413")


def test_head_without_end_is_refused_and_one_in_pieces_is_not(served: Served) -> None:
    url = httpx.URL(served.url)
    with socket.create_connection((url.host, url.port or 0), timeout=10) as client:
        for piece in (
            b"GET /livez HTTP/1.1\r\nho",
            b"st: x\r\nx-mine: ",
            b"1\r\n",
            b"\r\nGET /l",
            b"ivez HTTP/1.1\r\n\r\n",
        ):
            client.sendall(piece)
            time.sleep(0.01)
        answers = b""
        while answers.count(b"200 OK") < 2:
            answers += client.recv(10_000)
        client.sendall(b"POST /echo HTTP/1.1\r\nx-mine: ")
        sent = 0
        while not select.select([client], [], [], 0.005)[0]:
            sent += client.send(b"x" * 4096)
            assert sent < 1_000_000
        assert client.recv(10_000).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert sent > 60_000

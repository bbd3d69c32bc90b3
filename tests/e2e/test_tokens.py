"""Bearer tokens of `adapter serve` and `adapter server run`, as they are on the wire, in the log and in a file."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest

from tests.e2e.conftest import Serve, Served

ENDPOINTS = Path(__file__).parent / "endpoints"
TOKEN = "kept-from-everybody"
HEADER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text("of-the-file\n")
    return file


@pytest.fixture(scope="module")
def served(serve: Serve, file: Path) -> Served:
    """One worker, so that what a test waits for has happened everywhere."""
    options = ("--development", "--max-concurrency", "2", "--verbose")
    env = {"ADAPTER_API_TOKENS": f"other,{TOKEN}", "ADAPTER_API_TOKENS_FILE": str(file)}
    return serve("tests.e2e.services.limits:svc", *options, env=env)


def said(served: Served, *requests: bytes, seconds: float = 10) -> bytes:
    """What the server writes on one connection to which all the requests are written at once."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"HTTP/1.1 ") < len(requests) or not answers.endswith(b"}"):
            if not (piece := connection.recv(65536)):
                break
            answers += piece
    return answers


def request(path: str, *headers: str, body: bytes = b"1") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def test_request_is_refused_before_its_body_is_there(served: Served) -> None:
    for headers in (["content-length: 1000000"], ["content-length: 5", "expect: 100-continue"]):
        head = "\r\n".join(["POST /echo HTTP/1.1", "host: x", *headers, "", ""])
        assert said(served, head.encode()).startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_each_of_the_requests_on_one_connection_needs_a_token(served: Served) -> None:
    good = request("/echo", f"authorization: Bearer {TOKEN}")
    answers = said(served, good, request("/echo"), request("/echo", "authorization: Bearer "), good, request("/echo"))
    statuses = [int(part.split(b" ")[1]) for part in answers.split(b"HTTP/1.1")[1:]]
    assert statuses == [200, 401, 401, 200, 401]


def test_head_of_a_request_that_is_too_long_is_refused(served: Served) -> None:
    assert b" 401 " in said(served, request("/echo", f"authorization: Bearer {'x' * 30_000}"))
    assert served.post("/echo", json=1, headers=HEADER).status_code == 200


def test_who_has_no_token_holds_no_place_of_those_that_have(served: Served) -> None:
    """Two connections whose clients never read the answers: with them in a place each, nobody else would get one."""
    host, port = served.url.removeprefix("http://").split(":")
    strangers = [socket.create_connection((host, int(port)), 10) for _ in range(2)]
    try:
        for stranger in strangers:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stranger.settimeout(1)
            try:
                for _ in range(200):
                    stranger.sendall(request("/echo") * 200)
            except TimeoutError:  # the server reads no more before its answers are read
                pass
        assert served.post("/echo", json=1, headers=HEADER).status_code == 200
    finally:
        for stranger in strangers:
            stranger.close()


def test_file_of_tokens_changes_while_the_server_runs(served: Served, file: Path) -> None:
    def status(token: str) -> int:
        return served.post("/echo", json=1, headers={"authorization": f"Bearer {token}"}).status_code

    assert (status("of-the-file"), status("new-in-the-file"), status("other")) == (200, 401, 200)
    new = file.with_name("new")
    new.write_text("new-in-the-file\n")
    os.replace(new, file)
    until = time.monotonic() + 10
    while status("new-in-the-file") == 401 and time.monotonic() < until:
        time.sleep(0.1)
    assert (status("of-the-file"), status("new-in-the-file"), status("other")) == (401, 200, 200)


def test_log_has_every_refusal_and_no_token(served: Served) -> None:
    served.post("/echo", json=1, headers={"authorization": "Bearer of-some-stranger"}, params={"token": TOKEN})
    assert served.post("/echo", content=b"no JSON", headers=HEADER).status_code == 400
    served.wait_for(r"path=/echo.*status=401")
    assert not [line for line in served.lines if TOKEN in line or "stranger" in line]


def test_command_that_shows_settings_hides_tokens(run_adapter: Callable[..., CompletedProcess[str]]) -> None:
    shown = run_adapter("config", "show", env={"ADAPTER_API_TOKENS": TOKEN})
    assert shown.returncode == 0
    assert "environment ADAPTER_API_TOKENS" in shown.stdout
    assert TOKEN not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"ADAPTER_API_TOKENS": ""}, "api_server.tokens is a value that is not shown (environment ADAPTER_API_TOKENS)"),
        ({"ADAPTER_API_TOKENS_FILE": "/nowhere/tokens"}, "The file of tokens '/nowhere/tokens'"),
    ],
)
def test_server_whose_tokens_cannot_be_used_does_not_start(
    run_adapter: Callable[..., CompletedProcess[str]], env: dict[str, str], words: str
) -> None:
    ended = run_adapter("serve", "tests.e2e.services.limits:svc", "--development", "--port", "0", env=env)
    assert ended.returncode == 1
    assert words in ended.stdout + ended.stderr


def test_endpoint_asks_for_tokens_too(start_adapter: Serve) -> None:
    words = ("server", "run", "--port", "0", "--async-enable", "false")
    endpoint = start_adapter(*words, working_dir=ENDPOINTS, env={"ADAPTER_API_TOKENS": TOKEN})
    with httpx.Client(base_url=endpoint.url) as client:
        assert client.get("/healthcheck").json()["status"] == "RUNNING"
        for method, path in (("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/infer")):
            assert client.request(method, path).status_code == 401
        for path in ("//healthcheck", "/healthcheck/", "/livez"):
            assert client.get(path).status_code == 401
        assert client.post("/healthcheck").status_code == 401
        document = client.get("/openapi.json", headers=HEADER).json()
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"bearer": []}]
    assert document["paths"]["/healthcheck"]["get"]["security"] == []

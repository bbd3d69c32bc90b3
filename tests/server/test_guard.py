"""Bearer tokens: who may call a server, and what everybody else gets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client
from fastapi import Depends, FastAPI, WebSocket
from fastapi.security import HTTPBasic
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

import adapter
from adapter.client import HTTPClient
from adapter.exceptions import ConfigException, Unauthorized
from adapter.io import JSON
from adapter.layers import load
from adapter.server.guard import Tokens, tokens_of
from adapter.server.openapi import document
from adapter.settings import ApiServer, Cors, Http, Settings
from adapter.testing import TestClient

TOKENS = ("first-token", "second.token~with+all/of=")
GUARDED = Settings(api_server=ApiServer(tokens=TOKENS))
HEADER = {"authorization": f"Bearer {TOKENS[0]}"}

mounted = FastAPI()


@mounted.websocket("/live")
async def live(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("let in")
    await socket.close()


@mounted.get("/known", dependencies=[Depends(HTTPBasic())])
def known() -> str:
    return "of the mounted application"


@mounted.api_route("/{path:path}", methods=["GET", "POST", "PUT", "OPTIONS"], include_in_schema=False)
def anything(path: str) -> str:
    return f"the mounted application has {path}"


svc = adapter.Service("guarded")
svc.mount_asgi_app(mounted, "/")


@svc.api(input=JSON(), output=JSON())
async def echo(value: Any) -> Any:
    return value


@svc.api(input=JSON(), output=JSON(), route="/own")
async def own(value: Any) -> Any:
    raise Unauthorized("The code of the service wants another caller.")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(svc, GUARDED, token=TOKENS[0]) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(client: TestClient) -> Iterator[httpx.Client]:
    """Somebody who knows no token."""
    with httpx.Client(base_url=client.server_url) as stranger:
        yield stranger


# ---- what a request says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_any_of_the_tokens_lets_a_request_in(stranger: httpx.Client, scheme: str, token: str) -> None:
    assert stranger.post("/echo", json=1, headers={"authorization": f"{scheme} {token}"}).json() == 1


NO_HEADER = "This server answers requests that have a token: send the header `Authorization: Bearer <token>`."
NO_BEARER = (
    "The Authorization header of the request has no bearer token: send the header `Authorization: Bearer <token>`."
)
TWO = "The request has 2 Authorization headers: send one."
WRONG = "The token of the request is none that this server takes."


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ([], NO_HEADER),
        ([("x-authorization", f"Bearer {TOKENS[0]}")], NO_HEADER),
        ([("cookie", f"authorization=Bearer {TOKENS[0]}")], NO_HEADER),
        ([("authorization", "")], NO_BEARER),
        ([("authorization", "Bearer")], NO_BEARER),
        ([("authorization", TOKENS[0])], NO_BEARER),
        ([("authorization", f"Basic {TOKENS[0]}")], NO_BEARER),
        ([("authorization", f"Bearer\t{TOKENS[0]}")], NO_BEARER),
        ([("authorization", f"Bearer{TOKENS[0]}")], NO_BEARER),
        ([("authorization", f"Bearer {TOKENS[0]}x")], WRONG),
        ([("authorization", f"Bearer {TOKENS[0][:-1]}")], WRONG),
        ([("authorization", f"Bearer {TOKENS[0].upper()}")], WRONG),
        ([("authorization", f"Bearer {','.join(TOKENS)}")], WRONG),
        ([("authorization", f"Bearer {TOKENS[0]} {TOKENS[0]}")], WRONG),
        ([("authorization", f"Bearer {TOKENS[0]}é".encode())], WRONG),
        ([("authorization", b"Bearer \xff\xfe")], WRONG),
        ([("authorization", f"Bearer {'x' * 50_000}")], WRONG),
        ([("authorization", f"Bearer {TOKENS[0]}"), ("authorization", f"Bearer {TOKENS[0]}")], TWO),
        ([("authorization", f"Bearer {TOKENS[0]}"), ("Authorization", "Basic eDp5")], TWO),
    ],
)
def test_request_without_a_valid_token_is_refused(stranger: httpx.Client, headers: Any, sentence: str) -> None:
    refused = stranger.post("/echo", json=1, headers=headers)
    assert (refused.status_code, refused.json()) == (401, {"error": sentence})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-adapter-request-id"]


@pytest.mark.parametrize("name", ["access_token", "token", "authorization"])
def test_token_in_the_query_lets_nobody_in(stranger: httpx.Client, name: str) -> None:
    assert stranger.post("/echo", params={name: TOKENS[0]}, json=1).json() == {"error": NO_HEADER}


@settings(deadline=None)  # of the machine, not of the code
@given(st.binary(max_size=80))
def test_nothing_but_a_token_is_one(token: bytes) -> None:
    assert Tokens(TOKENS).has(token) == (token in {t.encode() for t in TOKENS})


# ---- what it is for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz", "/%6civez"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_told_to_everybody(stranger: httpx.Client, method: str, path: str) -> None:
    assert stranger.request(method, path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs.json", "/metrics", "/static_content/swagger-ui.css", "/static_content/swagger-initializer.js"),
        *("/echo", "/known", "/nothing", "//livez", "/livez/", "/LIVEZ", "/livez;x", "/livez%00", "/livez%2f..%2fecho"),
    ],
)
def test_everything_else_is_refused(stranger: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE", "TRACE"):
        refused = stranger.request(method, path)
        assert refused.status_code == 401, f"{method} {path}"
        assert "mounted" not in refused.text


@pytest.mark.parametrize("target", ["/livez/../echo", "/x/../livez", "/./livez", "http://127.0.0.1/livez/../echo"])
def test_path_that_only_looks_like_one_of_health_is_refused(stranger: httpx.Client, target: str) -> None:
    # a client of its own would resolve the path before it sends it
    refused = stranger.send(stranger.build_request("GET", "/", extensions={"target": target.encode()}))
    assert refused.status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS"])
def test_method_that_a_health_route_has_not_is_no_way_into_a_mounted_application(
    stranger: httpx.Client, client: TestClient, method: str
) -> None:
    assert stranger.request(method, "/livez").status_code == 401
    assert client.request(method, "/livez").json() == "the mounted application has livez"


def test_websocket_needs_a_token(client: TestClient) -> None:
    url = client.server_url.replace("http", "ws")
    with websockets.sync.client.connect(f"{url}/live", additional_headers=HEADER) as socket:
        assert socket.recv() == "let in"
    for path in ("/live", "/livez", "/nothing"):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(f"{url}{path}")
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["www-authenticate"] == "Bearer"


def test_error_of_the_service_with_this_status_has_the_header_that_goes_with_it(client: TestClient) -> None:
    refused = client.post("/own", json=1)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


# ---- browsers -------------------------------------------------------------------------------------------------------


def test_browser_is_told_before_it_sends_a_token_that_it_may() -> None:
    cors = Cors(enabled=True, access_control_allow_origins=("https://example.org",))
    settings = Settings(api_server=ApiServer(tokens=TOKENS, http=Http(cors=cors)))
    asked = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with TestClient(svc, settings, token=TOKENS[0]) as client, httpx.Client(base_url=client.server_url) as stranger:
        for path in ("/echo", "/livez", "/put"):
            allowed = stranger.options(path, headers=asked)
            assert allowed.status_code == 200, allowed.text
            assert "Authorization" in allowed.headers["access-control-allow-headers"]
        refused = stranger.post("/echo", json=1, headers={"origin": "https://example.org"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://example.org")
        assert stranger.options("/echo", headers={"origin": "https://example.org"}).status_code == 401


def test_without_cors_a_preflight_is_a_request_as_any_other(stranger: httpx.Client) -> None:
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert stranger.options("/echo", headers=asked).status_code == 401


# ---- clients, documents ---------------------------------------------------------------------------------------------


def test_client_sends_its_token(client: TestClient) -> None:
    assert client.echo([1, 2]) == [1, 2]
    assert client.get("/metrics").status_code == 200
    with pytest.raises(Unauthorized, match="The token of the request is none that this server takes"):
        HTTPClient.from_url(client.server_url, token="other")
    HTTPClient.wait_until_server_ready(client.server_url, timeout=5)


def test_document_tells_what_needs_a_token(client: TestClient) -> None:
    told = client.get("/docs.json").json()
    OpenAPIV31SpecValidator(told).validate()
    assert told["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert told["security"] == [{"bearer": []}]
    assert {path for path, item in told["paths"].items() if item.get("get", {}).get("security") == []} == {
        "/livez",
        "/healthz",
        "/readyz",
    }
    assert told["paths"]["/echo"]["post"]["responses"]["401"] == {"$ref": "#/components/responses/Unauthorized"}
    assert told["paths"]["/known"]["get"]["security"] == [{"HTTPBasic": [], "bearer": []}]


def test_document_of_an_open_server_tells_nothing_of_tokens() -> None:
    told = str(document(svc))
    assert "'401'" not in told
    assert "'bearer'" not in told


def test_server_without_tokens_takes_every_request() -> None:
    with TestClient(svc) as client:
        assert client.post("/echo", json=1, headers={"authorization": "Basic eDp5"}).json() == 1


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "tokens"),
    [
        ("", {}, None),
        ("", {"ADAPTER_API_TOKENS": "one"}, ("one",)),
        ("", {"ADAPTER_API_TOKENS": "one, 2"}, ("one", "2")),
        ("api_server: {tokens: [one, two]}", {}, ("one", "two")),
        ("api_server: {tokens: 'one,two'}", {}, ("one", "two")),
        ("api_server: {tokens: '${A}'}", {"A": "1234"}, ("1234",)),
        ("api_server: {tokens: [one]}", {"ADAPTER_API_TOKENS": "two"}, ("two",)),
        ("api_server: {tokens: null}", {}, None),
    ],
)
def test_tokens_are_settings(tmp_path: Path, text: str, environ: Mapping[str, str], tokens: Any) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text(text)
    found = load(file, environ).settings
    assert found.api_server.tokens == tokens
    assert Settings.from_json(found.to_json()) == found


@pytest.mark.parametrize("value", ["", " ", ",", "geheim,", "geheim geheim", "gehéim", "=geheim", "a=b"])
def test_what_can_be_no_token_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigException) as refused:
        load(None, {"ADAPTER_API_TOKENS": value})
    assert refused.value.message.startswith(
        "api_server.tokens is a value that is not shown (environment ADAPTER_API_TOKENS), but can only be a list of"
    )
    assert "geheim" not in refused.value.message


@pytest.mark.parametrize("text", ["tokens: [geheim, 5]", "tokens: {a: geheim}", "tokens: 5", "tokens: []"])
def test_other_values_than_tokens_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text(f"api_server:\n  {text}\n")
    with pytest.raises(ConfigException, match="is a value that is not shown") as refused:
        load(file, {})
    assert "geheim" not in refused.value.message


def test_tokens_are_not_in_what_settings_look_like(tmp_path: Path) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text("api_server: {tokens: [geheim]}\nservices: {Shop: {tokens: [geheim]}}")
    assert "geheim" not in repr(load(file, {}).settings)


def test_application_for_any_server_asks_for_the_tokens_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_API_TOKENS", "one")
    transport = httpx.ASGITransport(svc.asgi_app)

    async def status() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/docs.json")).status_code

    assert asyncio.run(status()) == 401


# ---- a file of tokens -----------------------------------------------------------------------------------------------


def replace(file: Path, text: str) -> None:
    """As a secret is changed that is mounted into a container."""
    new = file.with_name("new")
    new.write_text(text)
    os.replace(new, file)


def valid(tokens: Tokens, *asked: str) -> list[str]:
    return [token for token in asked if tokens.has(token.encode())]


def test_file_of_tokens_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens"
    file.write_text("# for the web shop\n\n one \ntwo\n")
    tokens = tokens_of(ApiServer(tokens=("fixed",), tokens_file=file))
    assert tokens is not None
    asked = ("fixed", "one", "two", "three", "# for the web shop", "")
    assert valid(tokens, *asked) == ["fixed", "one", "two"]
    replace(file, "three\n")
    until = time.monotonic() + 5
    while valid(tokens, "one") and time.monotonic() < until:
        time.sleep(0.05)
    assert valid(tokens, *asked) == ["fixed", "three"]
    replace(file, "no token at all\n")
    while not caplog.records and time.monotonic() < until:
        assert valid(tokens, *asked) == ["fixed", "three"]
        time.sleep(0.05)
    assert "The tokens that it had before stay valid." in caplog.text
    assert "no token at all" not in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "each line of it can only be a token of letters, digits and -._~+/, and one is needed"),
        (b"# nothing\n", "each line of it can only be a token"),
        (b"gehe im\n", "each line of it can only be a token"),
        (b"geheim,zwei\n", "each line of it can only be a token"),
        (b"geheim\xff\n", "each line of it can only be text in UTF-8"),
    ],
)
def test_file_that_has_no_tokens_starts_no_server(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigException) as refused:
        TestClient(svc, Settings(api_server=ApiServer(tokens_file=file)))
    assert refused.value.message.startswith(f"The file of tokens {str(file)!r} (api_server.tokens_file) cannot be used")
    assert reason in refused.value.message
    assert "gehe" not in refused.value.message

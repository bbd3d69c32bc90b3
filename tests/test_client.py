from __future__ import annotations

import asyncio
import contextlib
import email.utils
import gc
import gzip
import json
import math
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

import adapter
from adapter.client import AsyncHTTPClient, HTTPClient, SyncHTTPClient
from adapter.client.endpoint import endpoints_of
from adapter.client.failures import error_of
from adapter.context import Context
from adapter.exceptions import (
    AdapterError,
    AlreadyExists,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RemoteException,
    ServiceUnavailable,
    StateException,
    TooManyRequests,
    Unauthorized,
    UnprocessableEntity,
    UnsupportedMediaType,
)
from adapter.io import JSON, SSE, File, IODescriptor, Multipart, NumpyNdarray, Text
from adapter.server.openapi import document


class Reversed(IODescriptor[str]):
    """A descriptor that adapter does not know."""

    mime_type = "text/plain"

    async def from_http_request(self, request: Request) -> str:
        return (await self.body_of(request)).decode()[::-1]

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return self.respond(str(obj)[::-1].encode(), ctx)

    def python_type(self) -> type:
        return str

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string"}


svc = adapter.Service("scripted")
svc.api(input=JSON(), output=JSON(), name="echo")(lambda value: value)
svc.api(input=JSON(), output=JSON(), name="find", route="/v1/{kind}/find")(lambda value: value)
svc.api(input=Text(), output=Text(), name="tell")(lambda value: value)
svc.api(input=Text(), output=Text(content_type="text/event-stream"), name="events")(lambda value: value)
svc.api(input=Reversed(), output=Reversed(), name="reverse")(lambda value: value)
svc.api(input=File(), output=JSON(), name="upload")(lambda value: value)
svc.api(input=NumpyNdarray(), output=JSON(), name="array")(lambda value: value)
svc.api(input=Multipart(a=JSON(), timeout=Text()), output=JSON(), name="parts")(lambda a, timeout: None)


@dataclass(frozen=True)
class Answer:
    """What the server says to one request; pieces are sent one by one, each when `go` is set."""

    status: int = 200
    body: bytes = b'"fine"'
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    pieces: tuple[bytes, ...] = ()
    go: threading.Semaphore = field(default_factory=threading.Semaphore)
    drops: bool = False
    after_s: float = 0.0


@dataclass(frozen=True)
class Seen:
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float


class Scripted(ThreadingHTTPServer):
    """A server that says what a test tells it to, the last answer again and again, and keeps what it was asked."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, port: int = 0, prefix: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.prefix = prefix
        self.answers = [Answer()]
        self.seen: list[Seen] = []
        self.gone = threading.Event()
        self.documented: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.prefix}"

    def says(self, *answers: Answer) -> None:
        self.answers = list(answers)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of the base class
        pass

    def do_GET(self) -> None:
        if self.path == f"{self.server.prefix}/docs.json":
            documented = self.server.documented
            self.answer(Answer(body=json.dumps(document(svc)).encode() if documented is None else documented))
        else:
            self.scripted()

    def do_POST(self) -> None:
        self.scripted()

    def scripted(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.path, headers, body, time.monotonic()))
        answers = self.server.answers
        self.answer(answers.pop(0) if len(answers) > 1 else answers[0])

    def answer(self, answer: Answer) -> None:
        time.sleep(answer.after_s)
        self.close_connection = answer.drops
        if answer.drops:
            return
        try:
            self.send(answer)
        except OSError:
            self.server.gone.set()
            self.close_connection = True

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not answer.pieces:
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            answer.go.acquire()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if piece == b"!":
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Scripted]:
    with Scripted(**options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Scripted]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: Scripted) -> Iterator[SyncHTTPClient]:
    """A client that is closed before its server, whose threads end with their connections."""
    with HTTPClient.from_url(server.url, timeout=20) as client:
        yield client


def error(status: int, sentence: str = "It is so.", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps({"error": sentence}).encode(), {"content-type": "application/json", **named})


# ---- what the server offers ---------------------------------------------------------------------------------------


def test_apis_are_methods_and_names(client: SyncHTTPClient, server: Scripted) -> None:
    assert client.endpoints == ["echo", "find", "tell", "events", "reverse", "upload", "array", "parts"]
    assert {*client.endpoints, "call", "close"} <= set(dir(client))
    assert client.echo({"a": 1}) == "fine"
    assert client.call("echo", [2]) == "fine"
    assert [(seen.path, seen.body) for seen in server.seen] == [("/echo", b'{"a":1}'), ("/echo", b"[2]")]
    assert client.server_url == server.url
    assert repr(client) == f"SyncHTTPClient('{server.url}')"


def test_unknown_api_names_the_known_ones(client: SyncHTTPClient) -> None:
    with pytest.raises(NotFound, match=r"has no API 'classify'; it has echo, find, tell"):
        client.call("classify", 1)
    with pytest.raises(AttributeError, match=r"has no API 'classify'; it has echo, find, tell"):
        client.classify(1)
    assert not hasattr(client, "_private")


def test_client_of_a_server_that_speaks_another_language(server: Scripted) -> None:
    for documented in (
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"paths": 1}',
        b'{"paths": {"/x": {"post": {"x-adapter-name": "x"}}}}',
    ):
        server.documented = documented
        with pytest.raises(InvalidArgument, match="is not an adapter service"):
            HTTPClient.from_url(server.url)


KEYS = ["post", "x-adapter-name", "requestBody", "responses", "200", "x-adapter-io-descriptor", "id", "args", "content"]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.text() | st.sampled_from(KEYS), values, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_any_document_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(InvalidArgument):
        endpoints_of(value)
    with contextlib.suppress(InvalidArgument):
        endpoints_of({"paths": {"/x": {"post": {"x-adapter-name": "x", "requestBody": value, "responses": value}}}})


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["NumpyNdarray", "JSON", "Text", "Image", "File", "Multipart", "PandasDataFrame", "PandasSeries"]),
    st.dictionaries(
        st.sampled_from(["dtype", "shape", "orient", "columns", "pilmode", "mime_type", "kind", "content_type", "a"]),
        json_values,
        max_size=3,
    ),
)
def test_any_description_of_a_descriptor_is_read_or_refused(name: str, args: dict[str, Any]) -> None:
    side = {"content": {}, "x-adapter-io-descriptor": {"id": f"adapter.io.{name}", "args": args}}
    operation = {"x-adapter-name": "x", "requestBody": side, "responses": {"200": side}}
    with contextlib.suppress(InvalidArgument):
        endpoints_of({"paths": {"/x": {"post": operation}}})


def test_descriptor_of_ones_own_is_named_when_it_is_needed(client: SyncHTTPClient, server: Scripted) -> None:
    with pytest.raises(InvalidArgument, match=r"'reverse' has a descriptor that is not known here.*descriptors=\[…\]"):
        client.reverse("abc")
    server.says(Answer(body=b"fed", headers={"content-type": "text/plain"}))
    with HTTPClient.from_url(server.url, descriptors=[Reversed]) as knowing:
        assert knowing.reverse("abc") == "def"
    assert server.seen[-1].body == b"cba"


# ---- what is sent -------------------------------------------------------------------------------------------------


def test_headers_token_query_and_path_parameters_are_sent(server: Scripted) -> None:
    with HTTPClient.from_url(server.url, token="secret", headers={"x-of": "all"}) as client:
        client.call(
            "find", 1, headers={"x-of": "one"}, path_params={"kind": "a/b ü"}, query_params={"k": "v w", "n": [1, 2]}
        )
        with pytest.raises(InvalidArgument, match=r"/v1/\{kind\}/find: give path_params=\{'kind': …\} as well"):
            client.find(1)
    (seen,) = server.seen
    assert seen.path == "/v1/a%2Fb%20%C3%BC/find?k=v+w&n=1&n=2"
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-of"] == "one"


def test_service_below_a_prefix() -> None:
    with running(prefix="/models/v2") as server, HTTPClient.from_url(f"{server.url}/?x=1#y") as client:
        client.echo(1)
        assert server.seen[-1].path == "/models/v2/echo"
        assert client.health().status_code == 200
        assert server.seen[-1].path == "/models/v2/readyz"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:3000", "http://localhost:3000"),
        ("localhost", "http://localhost"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("https://models.example/a/b/", "https://models.example/a/b"),
    ],
)
def test_url_of_a_server_may_be_short(given: str, url: str) -> None:
    assert AsyncHTTPClient.from_url(given).server_url == url


@pytest.mark.parametrize("given", ["", "http://", "ftp://host", "unix:///socket", "http://host:port", 3000])
def test_what_is_no_url_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="is no URL of a service"):
        HTTPClient.from_url(given)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda client: client.echo(), r"'echo' takes a value: write client.echo\(value\)"),
        (lambda client: client.echo(a=1), "'echo' takes one value, not the keywords a"),
        (lambda client: client.parts(), "takes the parts a, timeout, but none came"),
        (lambda client: client.parts({"a": 1}), "takes the parts a, timeout, but a came"),
        (lambda client: client.parts({"a": 1, 2: 3}), "takes the parts a, timeout, but a, 2 came"),
        (lambda client: client.parts(1), "takes its parts as keywords, or as one dict: a, timeout"),
        (lambda client: client.parts({"timeout": "x"}, a=1), "takes its parts as keywords, or as one dict"),
        (lambda client: client.echo(object()), "'echo' cannot be called with this value: .*'object'"),
        (lambda client: client.echo(math.nan), "'echo' cannot be called with this value: .*NaN"),
        (lambda client: client.tell(7), "'tell' cannot be called with this value: .*int"),
        (lambda client: client.array(None), "'array' cannot be called with this value"),
        (lambda client: client.call("echo", 1, stream=True), "only Text is streamed"),
        (lambda client: client.call("echo", 1, headers={"x": "ü"}), "'echo' cannot be called with these headers"),
        (lambda client: client.call("echo", 1, headers={"x": 5}), "'echo' cannot be called with these headers"),
        (lambda client: client.call("echo", 1, query_params=5), "'echo' cannot be called with these .* parameters"),
    ],
)
def test_value_that_cannot_be_sent_is_refused_here(
    client: SyncHTTPClient, server: Scripted, call: Callable[[SyncHTTPClient], Any], sentence: str
) -> None:

    with pytest.raises(InvalidArgument, match=sentence):
        call(client)
    assert server.seen == []


def test_part_called_like_an_option_goes_into_a_dict(client: SyncHTTPClient, server: Scripted) -> None:
    assert client.parts({"a": 1, "timeout": "soon"}) == "fine"
    assert b'name="timeout"' in server.seen[-1].body
    assert b"soon" in server.seen[-1].body


def test_files_and_bytes_are_sent_as_they_are(client: SyncHTTPClient, server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(b"\x93NUMPY")
    client.upload(path)
    client.upload(b"raw")
    client.array(path)
    client.echo(path)
    client.parts({"a": path, "timeout": "x"})
    types = [seen.headers["content-type"].partition(";")[0] for seen in server.seen]
    npy, unknown = "application/x-npy", "application/octet-stream"
    assert types == [npy, unknown, npy, npy, "multipart/form-data"]
    assert [seen.body for seen in server.seen[:4]] == [b"\x93NUMPY", b"raw", b"\x93NUMPY", b"\x93NUMPY"]
    assert b"content-type: application/x-npy" in server.seen[4].body
    with pytest.raises(FileNotFoundError):
        client.upload(tmp_path / "missing")


# ---- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 206])
def test_any_status_of_success_has_a_value(client: SyncHTTPClient, server: Scripted, status: int) -> None:
    server.says(Answer(status))
    assert client.echo(1) == "fine"


def test_answer_may_be_packed_on_its_way(client: SyncHTTPClient, server: Scripted) -> None:
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    server.says(Answer(body=gzip.compress(b'{"much": "text"}'), headers=packed))
    assert client.echo(1) == {"much": "text"}


def test_answer_without_content_is_none(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(204, b""))
    assert client.echo(1) is None


def test_answer_that_cannot_be_read_is_the_services_fault(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(body=b"{"))
    with pytest.raises(RemoteException, match="The answer of 'echo' cannot be read: "):
        client.echo(1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidArgument),
        (401, Unauthorized),
        (404, NotFound),
        (409, AlreadyExists),
        (413, BodyTooLarge),
        (415, UnsupportedMediaType),
        (418, AdapterError),
        (422, UnprocessableEntity),
        (500, RemoteException),
        (502, RemoteException),
        (504, DeadlineExceeded),
    ],
)
def test_error_is_the_exception_of_its_status(
    client: SyncHTTPClient, server: Scripted, status: int, kind: type[AdapterError]
) -> None:
    server.says(error(status, "It is so.", x_adapter_request_id="abc"))
    with pytest.raises(AdapterError, match=r"^It is so\.$") as caught:
        client.echo(1)
    assert type(caught.value) is kind
    assert caught.value.error_code == status
    assert caught.value.request_id == "abc"
    assert len(server.seen) == 1  # and is not asked again


def test_error_of_a_proxy_in_between_says_what_it_was(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(502, b"<html>\n  <h1>Bad</h1></html>", {}))
    with pytest.raises(RemoteException, match=r"/echo answered 502 Bad Gateway: <html> <h1>Bad</h1></html>$"):
        client.echo(1)
    server.says(Answer(301, b"", {"location": "https://elsewhere/"}))
    with pytest.raises(AdapterError, match=r"/echo answered 301 Moved Permanently and points to https://elsewhere/$"):
        client.echo(1)


@settings(deadline=None)
@given(st.integers(300, 599), st.binary(max_size=60) | st.sampled_from([b'{"error": 5}', b"[1]", b"null"]), st.text())
def test_any_error_answer_becomes_an_error(status: int, body: bytes, retry_after: str) -> None:
    response = httpx.Response(
        status,
        content=body,
        headers=[(b"retry-after", retry_after.encode())],
        request=httpx.Request("POST", "http://h/x"),
    )
    found = error_of(response)
    assert found.error_code == status
    assert found.message
    if isinstance(found, (ServiceUnavailable, TooManyRequests)):
        assert 0 <= found.retry_after < math.inf


# ---- trying again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "kind"), [(503, ServiceUnavailable), (429, TooManyRequests)])
def test_call_is_made_again_when_retry_after_is_over(
    client: SyncHTTPClient, server: Scripted, status: int, kind: type[AdapterError]
) -> None:
    server.says(error(status, retry_after="0.3"), error(status, retry_after="0"), Answer())
    assert client.echo({"again": True}) == "fine"
    first, second, third = server.seen
    assert first.body == second.body == third.body
    assert second.at - first.at >= 0.3
    server.says(error(status, "Busy.", retry_after="0"))
    with pytest.raises(kind, match=r"^Busy\.$"):
        client.echo(1)
    assert len(server.seen) == 3 + 1 + 3


def test_call_is_not_made_again_beyond_its_time(client: SyncHTTPClient, server: Scripted) -> None:
    later = email.utils.formatdate(time.time() + 1000, usegmt=True)
    for header, seconds in (("1000", 1000), (later, 1000), ("soon", 1), ("nan", 1)):
        server.says(error(503, retry_after=header))
        with pytest.raises(ServiceUnavailable) as caught:
            client.call("echo", 1, timeout=0.9)
        assert caught.value.retry_after == pytest.approx(seconds, abs=2)
    assert len(server.seen) == 4


def test_calls_are_not_made_again_unless_wanted(server: Scripted) -> None:
    server.says(error(503, retry_after="0"))
    with HTTPClient.from_url(server.url, retries=0) as client, pytest.raises(ServiceUnavailable):
        client.echo(1)
    assert len(server.seen) == 1


def test_connection_that_breaks_is_not_tried_again(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(drops=True))
    with pytest.raises(ServiceUnavailable, match=r"broke before it answered .* may have served the request"):
        client.echo(1)
    assert len(server.seen) == 1


def test_connection_that_cannot_be_made_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    with pytest.raises(
        ServiceUnavailable, match=rf"http://127.0.0.1:{port} cannot be reached: .* is the service running\?"
    ):
        HTTPClient.from_url(f"127.0.0.1:{port}", retries=1)
    made: list[SyncHTTPClient] = []
    thread = threading.Thread(target=lambda: made.append(HTTPClient.from_url(f"127.0.0.1:{port}", retries=8)))
    thread.start()
    time.sleep(0.2)
    with running(port=port) as server:
        thread.join()
        (client,) = made
        with client:
            assert client.server_url == server.url


def test_call_ends_with_its_time(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(after_s=0.6))
    with pytest.raises(DeadlineExceeded, match=r"did not answer 'echo' within 0.2 seconds|did not answer in time"):
        client.call("echo", 1, timeout=0.2)
    assert client.echo(1) == "fine"
    assert len(server.seen) == 2


# ---- streams ------------------------------------------------------------------------------------------------------


def test_pieces_of_text_arrive_one_by_one(client: SyncHTTPClient, server: Scripted) -> None:
    euro = "€".encode()
    answer = Answer(
        pieces=(b"a", euro[:1], euro[1:], b"b"), go=threading.Semaphore(1), headers={"content-type": "text/plain"}
    )
    server.says(answer)
    pieces = client.call("tell", "x", stream=True)
    assert next(pieces) == "a"  # when no other has been sent
    answer.go.release(3)
    assert list(pieces) == ["€", "b"]
    answer.go.release(4)
    assert client.tell("x") == "a€b"


def test_events_are_a_stream_by_themselves(client: SyncHTTPClient, server: Scripted) -> None:
    pieces = (b"event: token\nda", b"ta: 1\n\n", b"data: 2\n\n")
    server.says(Answer(pieces=pieces, go=threading.Semaphore(3), headers={"content-type": "text/event-stream"}))
    assert list(client.events("x")) == [SSE("1", event="token"), SSE("2")]
    server.says(error(400))
    with pytest.raises(InvalidArgument):
        client.events("x")


def test_stream_that_is_left_ends_its_connection(client: SyncHTTPClient, server: Scripted) -> None:
    answer = Answer(pieces=(b"a" * 1000,) * 4000, go=threading.Semaphore(1), headers={"content-type": "text/plain"})
    server.says(answer)
    pieces = client.call("tell", "x", stream=True)
    next(pieces)
    pieces.close()
    answer.go.release(4000)
    assert server.gone.wait(10)


def test_stream_that_breaks_off_says_so(client: SyncHTTPClient, server: Scripted) -> None:
    server.says(Answer(pieces=(b"a", b"!"), go=threading.Semaphore(2), headers={"content-type": "text/plain"}))
    pieces = client.call("tell", "x", stream=True)
    assert next(pieces) == "a"
    with pytest.raises(ServiceUnavailable, match="The stream of 'tell' broke off: "):
        list(pieces)


# ---- threads, loops and the end -----------------------------------------------------------------------------------


def test_many_threads_share_a_client(client: SyncHTTPClient, server: Scripted) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(client.echo(1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["fine"] * 20


def test_client_for_functions_works_where_a_loop_runs(client: SyncHTTPClient) -> None:
    async def cell_of_a_notebook() -> Any:
        return client.echo(1)

    assert asyncio.run(cell_of_a_notebook()) == "fine"


def test_closed_client_says_so(server: Scripted) -> None:
    client = HTTPClient.from_url(server.url)
    client.close()
    client.close()
    with pytest.raises(StateException, match="is closed, or was made in another process: make another"):
        client.echo(1)


def test_call_under_way_ends_when_the_client_is_closed(server: Scripted) -> None:
    server.says(Answer(after_s=1.0))
    client = HTTPClient.from_url(server.url)
    threading.Timer(0.2, client.close).start()
    with pytest.raises((StateException, ServiceUnavailable)):
        client.echo(1)


def test_client_that_nobody_closes_ends_with_its_last_reference(server: Scripted) -> None:
    client = HTTPClient.from_url(server.url)
    client.echo(1)
    thread = client._thread._thread
    del client
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def _call_in_a_fork(client: SyncHTTPClient, told: Any) -> None:
    try:
        client.echo(1)
    except StateException as error:
        told.put(str(error))


def test_client_does_not_cross_a_fork(client: SyncHTTPClient) -> None:
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()
    process = fork.Process(target=_call_in_a_fork, args=(client, told))
    process.start()
    assert "was made in another process" in told.get(timeout=10)
    process.join()
    assert client.echo(1) == "fine"


@pytest.mark.parametrize("how", ["await", "async with", "async with await", "call"])
def test_async_client_reads_the_document_when_it_is_needed(server: Scripted, how: str) -> None:
    async def use() -> Any:
        client = AsyncHTTPClient.from_url(server.url)
        if how == "call":
            with pytest.raises(StateException, match="has not asked the server yet"):
                _ = client.endpoints
            try:
                return await client.echo(1)
            finally:
                await client.close()
        if how == "await":
            client = await client
            assert "echo" in client.endpoints
            assert "echo" in dir(client)
            await client.close()
            return "fine"
        async with (await client) if how == "async with await" else client as entered:
            with pytest.raises(AttributeError, match="has no API 'nothing'"):
                _ = entered.nothing
            return await entered.call("echo", 1)

    assert asyncio.run(use()) == "fine"


def test_twenty_calls_at_once_and_one_that_is_given_up(server: Scripted) -> None:
    server.says(Answer(after_s=0.2))

    async def use() -> list[Any]:
        async with AsyncHTTPClient.from_url(server.url) as client:
            calls = [asyncio.create_task(client.echo(n)) for n in range(20)]
            await asyncio.sleep(0.1)
            calls.pop().cancel()
            return await asyncio.gather(*calls)

    assert asyncio.run(use()) == ["fine"] * 19


def test_async_streams(server: Scripted) -> None:
    async def use() -> list[Any]:
        async with AsyncHTTPClient.from_url(server.url) as client:
            return [piece async for piece in await client.call("tell", "x", stream=True)]

    server.says(Answer(pieces=(b"a", b"b"), go=threading.Semaphore(2), headers={"content-type": "text/plain"}))
    assert "".join(asyncio.run(use())) == "ab"


def test_waiting_for_a_server(server: Scripted) -> None:
    server.says(error(503, "Not yet."), error(503, "Not yet."), Answer())
    HTTPClient.wait_until_server_ready("127.0.0.1", server.server_address[1], timeout=10)
    assert [seen.path for seen in server.seen] == ["/readyz"] * 3
    asyncio.run(AsyncHTTPClient.wait_until_server_ready(server.url))
    server.says(error(503, "Not yet."))
    with pytest.raises(DeadlineExceeded, match=r"was not ready within 0.2 seconds: Not yet\.$"):
        HTTPClient.wait_until_server_ready(server.url, timeout=0.2)

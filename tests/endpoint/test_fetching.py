"""Reading media from URLs, against a real HTTP server on 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from adapter.endpoint import fetching
from adapter.endpoint.fetching import Limits
from adapter.endpoint.types import Media
from adapter.exceptions import InvalidArgument


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "bytes":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * int(rest))
        elif kind == "to":
            self.send_response(302)
            self.send_header("location", f"/{rest}" if ":" not in rest else rest)
            self.end_headers()
        elif kind == "header":
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nx: " + b"x" * 20:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        elif kind == "slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                for _ in range(20):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


OPEN = Limits(allowed=True, private=True)


@pytest.fixture
def allowed() -> Iterator[None]:
    fetching.allow(OPEN)
    yield
    fetching.allow(Limits())


def test_nothing_is_read_unless_allowed(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"does not read URLs.*--allow-urls"):
        Media.from_url(f"{url}/bytes/3").to_bytes()


@pytest.mark.usefixtures("allowed")
def test_content_is_read_when_it_is_asked_for(url: str) -> None:
    assert Media.from_url(f"{url}/bytes/3").to_bytes() == b"xxx"
    assert Media.from_url(f"{url}/bytes/3", b64=True).data == b"eHh4"


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("path", "limits", "said"),
    [
        ("/bytes/1001", replace(OPEN, max_bytes=1000), "larger than 1000 bytes"),
        ("/slow", replace(OPEN, timeout_s=0.2), "not read within 0.2 s"),
        ("/header", replace(OPEN, timeout_s=0.2), "not read within 0.2 s"),
        ("/nowhere", OPEN, "status 404"),
        ("/to/bytes/3", OPEN, "status 302"),
        ("/bytes/3", replace(OPEN, private=False), "127.0.0.1, which is not public"),
    ],
)
def test_limits_are_kept(url: str, path: str, limits: Limits, said: str) -> None:
    fetching.allow(limits)
    with pytest.raises(InvalidArgument, match=said):
        Media.from_url(url + path).to_bytes()


@pytest.mark.usefixtures("allowed")
def test_a_redirect_to_an_address_that_is_not_public_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching.allow(Limits(allowed=True))
    monkeypatch.setattr(fetching, "_public", lambda address: address == "127.0.0.1")
    with pytest.raises(InvalidArgument, match=r"10\.0\.0\.1, which is not public"):
        Media.from_url(f"{url}/to/http://10.0.0.1/", b64=True, follow_redirects=True)


@pytest.mark.usefixtures("allowed")
def test_redirects_are_followed_where_asked_and_checked_each(url: str) -> None:
    assert Media.from_url(f"{url}/to/bytes/3", b64=True, follow_redirects=True).to_bytes() == b"xxx"
    for path, said in (
        ("/to/to/to/to/to/to/to/bytes/3", "redirects more than"),
        ("/to/file", "404"),
        ("/to/größe", "404"),
        ("/to/file:///etc/hostname", "not an http or https URL"),
        ("/to/http://[", "not an http or https URL"),
        ("/to/http://host:99999/", "not an http or https URL"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            Media.from_url(url + path, b64=True, follow_redirects=True)
    with pytest.raises(InvalidArgument, match="not an http or https URL"):
        list(fetching.read("file:///etc/hostname"))


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "127.0.0.1",
        "localhost",
        "2130706433",
        "169.254.169.254",
        "192.168.0.1",
        "172.16.0.1",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    fetching.allow(Limits(allowed=True))
    host = f"[{address}]" if ":" in address else address
    try:
        with pytest.raises(InvalidArgument, match="not public"):
            list(fetching.read(f"http://{host}/"))
    finally:
        fetching.allow(Limits())

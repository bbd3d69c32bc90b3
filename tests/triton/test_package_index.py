from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import adapter
from adapter.exceptions import EngineError
from adapter.triton.package_index import PackageIndex, default_index

CONTENT = b"0123456789" * 1000
NAME = "some_project-1.0-py3-none-any.whl"


@dataclass
class Site:
    """A web server with pages by path; what it was asked is in `asked`."""

    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    password: str | None = None
    cut: int = 0  # answers that end early
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            token = base64.b64encode((made.password or "").encode()).decode()
            if made.password and self.headers.get("Authorization") != f"Basic {token}":
                self.send_error(401)
                return
            if self.path not in made.pages:
                self.send_error(404)
                return
            kind, body = made.pages[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if made.cut and self.path.endswith(".whl"):
                made.cut -= 1
                body = body[:100]
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


HTML = f"""<!DOCTYPE html><a href="../other-1.0.tar.gz">other</a>
<a href="/files/ab/{NAME}#sha256=00" data-requires-python="&gt;=3">{NAME}</a>""".encode()
JSON = json.dumps({"files": [{"url": f"../../files/ab/{NAME}", "filename": NAME, "hashes": {}}]}).encode()


@pytest.mark.parametrize(
    ("kind", "page"), [("text/html", HTML), ("application/vnd.pypi.simple.v1+json; charset=utf-8", JSON)]
)
def test_fetch_when_index_has_the_file(tmp_path: Path, site: Site, kind: str, page: bytes) -> None:
    site.pages = {"/simple/some-project/": (kind, page), f"/files/ab/{NAME}": ("application/zip", CONTENT)}
    told: list[tuple[int, int]] = []
    index = PackageIndex(urls=(site.url,))
    index.fetch("some-project", NAME, tmp_path / "w", len(CONTENT), lambda done, total: told.append((done, total)))
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_fetch_when_index_asks_for_a_password(tmp_path: Path, site: Site) -> None:
    site.password = "me:p@ss"
    site.pages = {"/simple/some-project/": ("text/html", HTML), f"/files/ab/{NAME}": ("application/zip", CONTENT)}
    url = site.url.replace("http://", "http://me:p%40ss@")
    PackageIndex(urls=(url,)).fetch("some-project", NAME, tmp_path / "w", len(CONTENT))
    assert (tmp_path / "w").read_bytes() == CONTENT
    with pytest.raises(EngineError, match="Unauthorized") as raised:
        PackageIndex(urls=(url.replace("p%40ss", "secret"),)).fetch("some-project", NAME, tmp_path / "w", 1)
    assert "secret" not in raised.value.message


def test_fetch_when_connection_ends_early(tmp_path: Path, site: Site) -> None:
    site.pages = {"/simple/some-project/": ("text/html", HTML), f"/files/ab/{NAME}": ("application/zip", CONTENT)}
    site.cut = 2
    PackageIndex(urls=(site.url,)).fetch("some-project", NAME, tmp_path / "w", len(CONTENT))
    assert (tmp_path / "w").read_bytes() == CONTENT
    site.cut = 3
    with pytest.raises(EngineError, match="cannot be downloaded"):
        PackageIndex(urls=(site.url,)).fetch("some-project", NAME, tmp_path / "w", len(CONTENT))


def test_fetch_when_file_is_too_long(tmp_path: Path, site: Site) -> None:
    site.pages = {"/simple/some-project/": ("text/html", HTML), f"/files/ab/{NAME}": ("application/zip", CONTENT)}
    with pytest.raises(EngineError, match="longer than the 10 bytes expected"):
        PackageIndex(urls=(site.url,)).fetch("some-project", NAME, tmp_path / "w", 10)


def test_fetch_when_second_index_has_the_file(tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "files index"
    (folder / "some-project").mkdir(parents=True)
    (folder / "some-project" / "index.html").write_text(f'<a href="{NAME}">x</a>')
    (folder / "some-project" / NAME).write_bytes(CONTENT)
    index = PackageIndex(urls=(site.url, folder.as_uri()))
    index.fetch("some-project", NAME, tmp_path / "w", len(CONTENT))
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert site.asked == ["/simple/some-project/"]


def test_fetch_when_folder_has_the_file(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    PackageIndex(folders=(tmp_path,), urls=()).fetch("some-project", NAME, tmp_path / "w", len(CONTENT))
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_fetch_when_no_index_has_the_file(tmp_path: Path, site: Site) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:\d+/simple does not have it") as raised:
        PackageIndex(urls=(site.url, (tmp_path / "gone").as_uri())).fetch("p", NAME, tmp_path / "w", 1)
    assert "ADAPTER_ENGINE_WHEEL" in raised.value.message
    with pytest.raises(EngineError, match="no index"):
        PackageIndex(urls=()).fetch("p", NAME, tmp_path / "w", 1)


def test_configured_when_nothing_is(tmp_path: Path) -> None:
    found = PackageIndex.configured({"PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)})
    assert found == PackageIndex(urls=(default_index() or "",))


def test_configured_when_file_and_variables_differ(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex_url = https://a/simple\nfind-links = /one\n  file:///two%20words\n  https://page\n"
        "cert = /ca.pem\ntimeout = 60\n[install]\nextra-index-url = https://b/simple\n   https://c/simple\n"
    )
    env = {"PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)}
    found = PackageIndex.configured(env)
    assert found.urls == ("https://a/simple", "https://b/simple", "https://c/simple")
    assert found.folders == (Path("/one"), Path("/two words"))
    assert (found.cert, found.timeout_s) == ("/ca.pem", 60.0)
    assert PackageIndex.configured({**env, "PIP_INDEX_URL": "https://z"}).urls[0] == "https://z"
    assert PackageIndex.configured({**env, "PIP_NO_INDEX": "1"}).urls == ()


def test_configured_when_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("index-url = x\n")
    with pytest.raises(EngineError, match=r"pip\.conf cannot be read"):
        PackageIndex.configured({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": str(tmp_path)})


def test_default_index_is_what_pip_says(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}
    asked = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    pip = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=True)
    assert default_index() == pip.stdout.strip()


def test_default_index_is_known_in_an_environment_without_pip(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    script = "from adapter.triton.package_index import default_index; print(default_index())"
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(adapter.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == default_index()

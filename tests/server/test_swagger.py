from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from starlette.applications import Starlette

from adapter.server import swagger
from adapter.services import Service

APPLICATION = Starlette(routes=swagger.routes(Service("iris")))


def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(APPLICATION)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, headers=named)

    return asyncio.run(send())


def test_page_is_named_like_the_service_and_asks_for_files_of_this_server_alone() -> None:
    page = ask("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>iris</title>" in page.text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        assert ask(f"/{address}").status_code == 200
        assert re.fullmatch(r"static_content/[a-z0-9.-]+", address)  # relative: it works below any prefix


def test_page_lets_a_browser_run_and_fetch_nothing_from_elsewhere() -> None:
    policy = ask("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("swagger-initializer.js", "text/javascript; charset=utf-8"),
        ("favicon-32x32.png", "image/png"),
    ],
)
def test_files_are_served_with_their_types(name: str, content_type: str) -> None:
    answer = ask(f"/static_content/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    assert ask(f"/static_content/{name}", "HEAD").headers["content-length"] == str(len(answer.content))


def test_swagger_ui_knows_openapi_3_1() -> None:
    bundle = ask("/static_content/swagger-ui-bundle.js").text
    assert int(re.findall(r'PACKAGE_VERSION:"(\d+)\.', bundle)[0]) >= 5


def test_file_is_not_sent_again_when_the_browser_has_it() -> None:
    path = "/static_content/swagger-ui-bundle.js"
    tag = ask(path).headers["etag"]
    assert ask(path, if_none_match=tag).status_code == 304


@pytest.mark.parametrize("name", ["__init__.py", "nothing.js", "..%2fmain.py", "%2e%2e/main.py", "a/b", ""])
def test_other_files_of_the_package_are_not_served(name: str) -> None:
    assert ask(f"/static_content/{name}").status_code == 404

from __future__ import annotations

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import Response

from adapter.context import Context, Cookie
from adapter.exceptions import InternalServerError, StateException
from tests.io.wire import request, transmit


def serving(state: dict[str, Any] | None = None) -> Context:
    came = request(b"[1]", "application/json", {"X-User": "ada", "Cookie": "theme=dark; lang=en"})
    return Context({} if state is None else state, came)


def sent_with(ctx: Context, response: Response | None = None) -> Any:
    plain = Response(b"[0]", media_type="application/json")
    return asyncio.run(transmit(ctx.apply(response or plain)))


def test_request_shows_headers_query_and_cookies() -> None:
    ctx = serving()
    assert ctx.request.headers["x-user"] == "ada"
    assert ctx.request.metadata["X-USER"] == "ada"
    assert ctx.request.query_params["threshold"] == "0.5"
    assert ctx.request.cookies == {"theme": "dark", "lang": "en"}
    assert ctx.request.method == "POST"
    assert ctx.request.url.path == "/classify"
    assert ctx.request.client is None
    assert ctx.request.path_params == {}
    assert ctx.request is ctx.request


def test_request_reads_the_body_again() -> None:
    assert asyncio.run(serving().request.body()) == b"[1]"


def test_request_is_copied_when_user_code_copies_it() -> None:
    assert copy.copy(serving().request).method == "POST"


@pytest.mark.parametrize("part", ["request", "response", "temp_dir"])
def test_context_raises_when_no_request_is_served(part: str) -> None:
    with pytest.raises(LookupError, match=rf"ctx\.{part} exists only while a request is served"):
        getattr(Context({}), part)


def test_state_is_shared_when_contexts_are_of_one_process() -> None:
    state: dict[str, Any] = {}
    Context(state).state["db"] = "connected"
    assert serving(state).state["db"] == "connected"


def test_response_is_untouched_when_the_function_set_nothing() -> None:
    ctx = serving()
    response = Response(b"[0]", media_type="application/json")
    assert ctx.apply(response) is response


def test_response_carries_what_seed_001_sets() -> None:
    ctx = serving()
    ctx.response.status_code = 202
    ctx.response.cookies = [
        Cookie(
            key="key",
            value="value",
            max_age=None,
            expires=None,
            path="/predict",
            domain=None,
            secure=True,
            httponly=True,
            samesite="None",
        )
    ]
    ctx.response.headers.append("X-Custom-Header", "value")
    ctx.response.metadata.append("X-Custom-Header", "another")
    sent = sent_with(ctx)
    assert sent.status == 202
    assert sent.all("set-cookie") == ["key=value; HttpOnly; Path=/predict; SameSite=None; Secure"]
    assert sent.all("x-custom-header") == ["value", "another"]
    assert sent.all("content-type") == ["application/json"]
    assert sent.body == b"[0]"


def test_headers_replace_the_responses_own_when_they_share_a_name() -> None:
    ctx = serving()
    ctx.response.headers["Content-Type"] = "application/vnd.scores+json"
    ctx.response.headers["Content-Length"] = "999"
    sent = sent_with(ctx)
    assert sent.all("content-type") == ["application/vnd.scores+json"]
    assert sent.all("content-length") == ["3"]


def test_headers_taken_before_see_what_is_applied() -> None:
    ctx = serving()
    ctx.response.headers["x-model"] = "iris"
    response = Response(b"[0]")
    before = response.headers
    ctx.apply(response)
    assert before["x-model"] == "iris"


@pytest.mark.parametrize("status", [204, 304])
def test_body_is_left_out_when_the_status_forbids_one(status: int) -> None:
    ctx = serving()
    ctx.response.status_code = status
    ctx.response.headers["x-model"] = "iris"
    done: list[str] = []
    background = BackgroundTask(done.append, "background")
    sent = sent_with(ctx, Response(b"[0]", media_type="application/json", background=background))
    assert (sent.status, sent.body, sent.headers) == (status, b"", [("x-model", "iris")])
    assert done == ["background"]


@pytest.mark.parametrize("status", [99, 101, 600, "202", None, True, 200.0])
def test_status_code_is_refused_when_it_cannot_be_sent(status: Any) -> None:
    ctx = serving()
    ctx.response.status_code = status
    with pytest.raises(InternalServerError, match="from 200 to 599"):
        ctx.apply(Response(b"[0]"))


def test_header_is_refused_when_it_would_write_another() -> None:
    ctx = serving()
    ctx.response.headers["x-user"] = "ada\r\nset-cookie: admin=1"
    with pytest.raises(InternalServerError, match="'x-user' has a line break"):
        ctx.apply(Response(b"[0]"))


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (Cookie("a"), 'a=""; Path=/; SameSite=lax'),
        (Cookie("a", "b"), "a=b; Path=/; SameSite=lax"),
        (Cookie("a", "b", samesite=None, path=None), "a=b"),
        (Cookie("a", "b", samesite="none", secure=True), "a=b; Path=/; SameSite=none; Secure"),
        (Cookie("a", "b", samesite="Strict", max_age=60), "a=b; Max-Age=60; Path=/; SameSite=Strict"),
        (
            Cookie("a", "b", expires=datetime(2030, 1, 2, tzinfo=timezone.utc), domain="a.example"),
            "a=b; Domain=a.example; expires=Wed, 02 Jan 2030 00:00:00 GMT; Path=/; SameSite=lax",
        ),
    ],
)
def test_cookie_is_written(cookie: Cookie, expected: str) -> None:
    ctx = serving()
    ctx.response.cookies.append(cookie)
    assert sent_with(ctx).all("set-cookie") == [expected]


def test_set_cookie_adds_to_the_list() -> None:
    ctx = serving()
    ctx.response.set_cookie("a", "1")
    ctx.response.set_cookie("b", "2", httponly=True)
    assert sent_with(ctx).all("set-cookie") == [
        "a=1; Path=/; SameSite=lax",
        "b=2; HttpOnly; Path=/; SameSite=lax",
    ]


@pytest.mark.parametrize("samesite", ["everywhere", "", True])
def test_cookie_is_refused_when_samesite_is_unknown(samesite: Any) -> None:
    with pytest.raises(ValueError, match="it can be 'lax', 'strict', 'none'"):
        Cookie("key", "value", samesite=samesite)


# ---- temp_dir -------------------------------------------------------------------------------------------------------


def test_temp_dir_is_made_once_for_each_request() -> None:
    ctx, other = serving(), serving()
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: ctx.temp_dir, range(32)))
    assert folders == {ctx.temp_dir}
    assert ctx.temp_dir != other.temp_dir
    assert Path(ctx.temp_dir).stat().st_mode & 0o077 == 0
    for each in (ctx, other):
        each.close()


def test_temp_dir_is_removed_with_what_is_in_it_when_the_request_ends() -> None:
    ctx = serving()
    folder = Path(ctx.temp_dir)
    (folder / "below").mkdir()
    (folder / "below" / "page.png").write_bytes(b"x")
    ctx.close()
    for thread in threading.enumerate():
        if thread.name == "remove-temp-dir":
            thread.join()
    assert not folder.exists()
    with pytest.raises(StateException, match="The request is over, and its temp_dir with it"):
        _ = ctx.temp_dir


def test_no_folder_and_no_thread_is_made_when_nobody_asks() -> None:
    ctx, before = serving(), threading.active_count()
    ctx.close()
    assert threading.active_count() == before

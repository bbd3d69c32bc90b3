"""What passes the edge, in this process and over real HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

import adapter
from adapter.io import JSON, Text
from adapter.testing import TestClient
from adapter.triton.request import deadline


class Panic(BaseException):
    """As extensions written in Rust raise it."""


svc = adapter.Service("edge")


@svc.api(input=JSON(), output=JSON())
def panic(name: str) -> Any:
    raise {"panic": Panic, "interrupt": KeyboardInterrupt}[name]("of the user's own")


@svc.api(input=JSON(), output=JSON())
async def cancelled(_: Any) -> Any:
    raise asyncio.CancelledError("of the user's own")


@svc.api(input=JSON(), output=Text())
async def limits(count: int) -> Any:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(count):
            yield f"{deadline.get() is not None} "

    return chunks()


@pytest.mark.parametrize("name", ["panic", "interrupt"])
def test_error_that_is_no_exception_is_answered_as_any_other(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(svc) as client, caplog.at_level(logging.ERROR):
        failed = client.post("/panic", json=name)
    assert failed.status_code == 500
    assert failed.json()["error"].startswith("The code of this service failed on the request")
    assert "of the user's own" in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot tell who has cancelled")
def test_cancellation_that_the_code_itself_raised_is_answered_as_any_other_error() -> None:
    with TestClient(svc) as client:
        failed = client.post("/cancelled", json=1)
    assert failed.status_code == 500
    assert failed.json()["error"].startswith("The code of this service failed on the request")


def test_calls_that_a_stream_makes_have_no_time_limit_once_it_has_begun() -> None:
    with TestClient(svc) as client:
        assert client.post("/limits", json=3).text == "True False False "


def test_requests_leave_nothing_to_the_garbage_collector() -> None:
    with TestClient(svc) as client:
        client.post("/limits", json=0)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                client.post("/limits", json=0)
            left = sum(type(found).__name__ == "_Exchange" for found in gc.get_objects())
        finally:
            gc.enable()
    assert left < 5  # with a cycle in it, each of them would be there

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapter
from adapter.exceptions import BodyTooLarge, NotFound, RemoteException, ServiceUnavailable, StateException
from adapter.io import JSON, NumpyNdarray, Text
from adapter.settings import ApiServer, Settings, Traffic
from adapter.testing import TestClient


class Doubler(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def double(self, rows: Any) -> Any:
        return rows * 2


def service(asked: list[str] | None = None) -> adapter.Service:
    runner = adapter.Runner(Doubler)
    svc = adapter.Service("tested", runners=[runner])

    @svc.api(input=NumpyNdarray(), output=NumpyNdarray())
    async def double(rows: Any) -> Any:
        return await runner.double.async_run(rows)

    @svc.api(input=JSON(), output=JSON())
    def fail(name: str) -> None:
        if asked is not None:
            asked.append(name)
        errors: dict[str, Any] = {
            "mine": NotFound("There is no such thing."),
            "busy": ServiceUnavailable("Busy."),
            "bare": NotFound,
        }
        raise errors[name]

    @svc.api(input=JSON(), output=Text())
    def count(n: int) -> Iterator[str]:
        return iter("x" * n)

    @svc.api(input=JSON(), output=JSON())
    def thread(_: Any, ctx: adapter.Context) -> dict[str, Any]:
        ctx.response.headers["x-own"] = "yes"
        return {"started": ctx.state.get("started", False)}

    return svc


def test_service_runs_with_its_runners_and_without_an_engine() -> None:
    svc = service()
    with TestClient(svc) as client:
        assert client.double([[1, 2]]).tolist() == [[2, 4]]
        large = np.ones((300, 300), "float32")
        assert client.double(large).dtype == np.float32
        assert "".join(client.call("count", 3, stream=True)) == "xxx"
    with pytest.raises(StateException, match="is not running"):
        svc.runners[0].double.run(1)
    with TestClient(svc) as client:  # and again
        assert client.double([3]).tolist() == [6]


def test_answers_are_those_of_a_real_server() -> None:
    with TestClient(service()) as client:
        response = client.post("/double", content="[[1], [2, 3]]", headers={"x-request-id": "mine"})
        assert response.status_code == 400
        assert "differ in length" in response.json()["error"]
        assert response.headers["x-adapter-request-id"] == "mine"
        assert client.post("/fail", json="mine").json() == {"error": "There is no such thing."}
        assert client.post("/thread", json=1).headers["x-own"] == "yes"
        assert client.get("/livez").text == "\n"
        assert client.get("/nothing").status_code == 404
        assert 'endpoint="/double",http_response_code="400"' in client.get("/metrics").text
        assert client.request("HEAD", "/readyz").status_code == 200


def test_errors_are_exceptions_and_nothing_is_tried_again() -> None:
    asked: list[str] = []
    with TestClient(service(asked)) as client:
        for name, kind, sentence in (
            ("busy", ServiceUnavailable, "Busy"),
            ("mine", NotFound, "There is no such thing"),
            ("bug", RemoteException, "its log says why, under the request id"),
        ):
            with pytest.raises(kind, match=sentence):
                client.fail(name)
    assert asked == ["busy", "mine", "bug"]


def test_error_without_a_message_has_the_phrase_of_its_status() -> None:
    with TestClient(service()) as client:
        answer = client.post("/fail", json="bare")
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found."})


def test_hooks_run_when_the_client_begins_and_ends() -> None:
    svc, ran = service(), []

    @svc.on_deployment
    def deployed() -> None:
        ran.append("deployment")

    @svc.on_startup
    def start(ctx: adapter.Context) -> None:
        ctx.state["started"] = True
        ran.append("startup")

    @svc.on_shutdown
    async def stop(ctx: adapter.Context) -> None:
        ran.append("shutdown")

    client = TestClient(svc)
    try:
        assert client.thread(None) == {"started": True}
        assert ran == ["startup"]
    finally:
        client.close()
    assert ran == ["startup", "shutdown"]


def test_error_of_a_startup_hook_is_raised_as_it_is() -> None:
    svc = service()

    @svc.on_startup
    def start(ctx: adapter.Context) -> None:
        raise KeyError("no database")

    before = set(threading.enumerate())
    with pytest.raises(KeyError, match="no database"):
        TestClient(svc)
    assert set(threading.enumerate()) <= before


def test_service_that_runs_already_is_refused() -> None:
    svc = service()
    with TestClient(svc), pytest.raises(StateException, match="is running already"):
        TestClient(svc)


def test_client_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with TestClient(service()) as client:
        client.double([1])
    assert set(threading.enumerate()) <= before


def test_settings_hold() -> None:
    settings = Settings(api_server=ApiServer(traffic=Traffic(max_body_bytes=20)))
    with TestClient(service(), settings) as client:
        assert client.double([1]).tolist() == [2]
        with pytest.raises(BodyTooLarge, match="at most 20 bytes"):
            client.double([1] * 100)


def test_service_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_service.py").write_text(
        "import adapter\nsvc = adapter.Service('named')\n"
        "svc.api(input=adapter.io.JSON(), output=adapter.io.JSON(), name='same')(lambda value: value)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with TestClient("named_service:svc") as client:
        assert client.same({"a": [1]}) == {"a": [1]}

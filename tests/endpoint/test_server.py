"""The application of an endpoint server, and its states, in this process: `async_enable` is off."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest

from adapter.endpoint import Server, Service, path
from adapter.endpoint.types import File
from adapter.exceptions import BodyTooLarge, ServiceUnavailable, StateException
from adapter.triton.installation import Installation


class Plain(Service):
    def __init__(self) -> None:
        self.setting_up = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.ended = 0

    def setup(self) -> None:
        self.setting_up.set()
        self.gate.wait()

    def on_server_shutdown(self) -> None:
        self.ended += 1

    def infer(self, number: float) -> float:
        return number

    def leave(self, code: int) -> int:
        sys.exit(code)

    @path("/form")
    async def infer_form_data(self, file: File, label: str = "none", second: File = None) -> str:  # type: ignore[assignment]
        return f"{(await file.read()).decode()} {label} {second}"


def ask(server: Server, *requests: tuple[str, dict[str, Any]], app: Any = None) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with (
            server.prepare_for_serving(),
            httpx.AsyncClient(transport=httpx.ASGITransport(app or server.app), base_url="http://test") as client,
        ):
            return [await client.post(where, **options) for where, options in requests]

    return asyncio.run(run())


def test_numbers_that_json_has_not_are_422() -> None:
    bodies = [b'{"number": NaN}', b'{"number": 1e999}', b'{"number": "\\ud800"}']
    answers = ask(Server(Whole(), False), *[("/infer", {"content": body}) for body in bodies])
    assert [answer.status_code for answer in answers] == [422, 422, 422]
    assert answers[0].json()["detail"] == [
        {"type": "finite_number", "loc": ["body", "number"], "msg": "Input should be a finite number"}
    ]


class Whole(Plain):
    def infer(self, number: int) -> int:  # type: ignore[override]
        return number


def test_a_file_of_a_form_may_be_left_out() -> None:
    (answer,) = ask(Server(Plain(), False), ("/form", {"files": {"file": ("a", b"text")}}))
    assert answer.json()["output"] == "text none None"


def test_a_method_that_exits_is_500_and_the_server_goes_on() -> None:
    left, again = ask(Server(Plain(), False), ("/leave", {"json": {"code": 3}}), ("/infer", {"json": {"number": 2}}))
    assert (left.status_code, left.text) == (500, "Internal Server Error")
    assert again.json()["output"] == 2.0


def test_a_body_that_turns_out_too_long_is_413() -> None:
    server = Server(Plain(), False)

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        async def refuse() -> None:
            raise BodyTooLarge("The body is too long.")

        await server.app(scope, refuse, send)  # type: ignore[arg-type]

    (answer,) = ask(server, ("/infer", {"content": b"{}"}), app=limited)
    assert (answer.status_code, answer.json()) == (413, {"detail": "The body is too long."})


def in_loop(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_it_starts_from_rest_only_and_starts_again() -> None:
    server = Server(Plain(), False)

    async def work() -> None:
        for _ in range(2):
            async with server.prepare_for_serving():
                assert server.is_running
                with pytest.raises(StateException, match="is RUNNING"):
                    await server.prepare_for_serving().__aenter__()
            assert server.state is Server.State.STOPPED

    in_loop(work())


class Picklable(Service):
    def infer(self, number: float) -> float:
        return number


def test_an_engine_that_cannot_be_started_for_any_reason_ends_the_program(caplog: pytest.LogCaptureFixture) -> None:
    def find_engine() -> Installation:
        raise OSError("no space left on the disk")

    server = Server(Picklable(), find_engine=find_engine)

    async def work() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        async with server.prepare_for_serving():
            assert server.state is Server.State.LAUNCH_PREDICT_LOOP
            await told.wait()

    in_loop(work())
    assert server.state is Server.State.STOPPED
    assert "no space left on the disk" in caplog.text


def test_a_setup_that_hangs_can_be_given_up() -> None:
    service = Plain()
    service.gate.clear()
    server = Server(service, False)

    async def work() -> None:
        starting = asyncio.ensure_future(server.prepare_for_serving().__aenter__())
        await asyncio.to_thread(service.setting_up.wait)
        server.kill()
        with pytest.raises(ServiceUnavailable):
            await starting

    in_loop(work())
    service.gate.set()
    assert (server.state, service.ended) == (Server.State.STOPPED, 1)

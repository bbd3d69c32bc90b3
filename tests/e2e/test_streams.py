"""Streams from a generator in Triton to an HTTP client, and back: who holds whom back, and who ends whom."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from adapter.io import SSE
from tests.e2e.conftest import Serve, Served

SERVICES = Path(__file__).parent / "services"
LIMIT_S = 3.0  # on one step; see SETTINGS
SETTINGS = f"runners:\n  speaker:\n    traffic:\n      timeout: {LIMIT_S:g}\n"
CLOSED_S = 3.0  # within a second, on a machine that does nothing else


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "adapter.yaml").write_text(SETTINGS)
    options = ("--repository", str(folder / "repository"), "--config", str(folder / "adapter.yaml"))
    return serve("streams:svc", *options, "--api-workers", "1", "--timeout", "10", working_dir=SERVICES)


def ask(served: Served, api: str, **body: Any) -> httpx.Response:
    return served.post(f"/{api}", json=body)


@contextlib.contextmanager
def stream(served: Served, api: str, **body: Any) -> Iterator[httpx.Response]:
    with served.client as client, client.stream("POST", f"/{api}", json=body) as response:
        yield response


def read(served: Served, api: str, **body: Any) -> str:
    """What arrives of a stream, with an exclamation mark where it was broken off."""
    found = ""
    try:
        with stream(served, api, **body) as response:
            for text in response.iter_text():
                found += text
    except httpx.RemoteProtocolError:
        found += "!"
    return found


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def wait_for_line(file: Path, line: str, seconds: float = CLOSED_S) -> None:
    until = time.monotonic() + seconds
    while line not in lines(file):
        assert time.monotonic() < until, f"{line!r} is not among {lines(file)} after {seconds} s"
        time.sleep(0.02)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["words", "plain_words"])
def test_values_arrive_one_by_one(served: Served, api: str) -> None:
    with stream(served, api, text="a b c", pause=0.2) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert list(response.iter_text()) == ["a ", "b ", "c "]


def test_stream_of_a_runner_is_an_answer_as_it_is(served: Served) -> None:
    assert ask(served, "passed_on", text="a b ü 日本").text == "abü日本"
    assert served.post("/letters", content="hello").text == "hello"


def test_server_sent_events_are_events_of_the_runners_values(served: Served) -> None:
    response = ask(served, "events", text="a b")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == "".join(SSE(word, event="word").marshal() for word in "ab")


def test_values_may_be_anything_that_can_be_sent(served: Served) -> None:
    found = ask(served, "numbers", count=3, size=300_000).json()
    assert [value[:3] for value in found] == [[i, 300_000, i * 300_000.0] for i in range(3)]


@pytest.mark.parametrize("api", ["words", "plain_words", "events", "passed_on"])
def test_generator_without_a_value_is_an_empty_answer(served: Served, api: str) -> None:
    response = ask(served, api, text="")
    assert (response.status_code, response.text) == (200, "")


def test_long_stream_goes_on_whichever_instance_hears_that_its_values_were_read(served: Served) -> None:
    text = "0123456789" * 40  # far more than a worker may be ahead, of one of two instances
    with ThreadPoolExecutor(4) as pool:
        assert [r.text for r in pool.map(lambda _: served.post("/letters", content=text), range(8))] == [text] * 8


def test_generator_methods_have_an_object_of_their_own(served: Served) -> None:
    before, pid = served.post("/count", content="x").json()
    ((_, _, _, first, stream_pid),) = ask(served, "numbers", count=1).json()
    assert stream_pid != pid
    assert served.post("/count", content="x").json() == [before + 1, pid]
    assert ask(served, "numbers", count=1).json()[0][3:] == [first + 1, stream_pid]


def test_call_that_does_not_fit_the_method_says_what_to_write(served: Served) -> None:
    run, plain_run, stream, blocking, missing, unsendable = served.post("/wrong", content="x").json()
    assert run == plain_run
    assert "words() is a generator: write `async for value in runner.words.async_stream(…)`" in run
    assert "count() is no generator: write `await runner.count.async_run(…)`" in stream
    assert "`async for … in runner.words.async_stream(…)`" in blocking
    assert "missing a required argument: 'text'" in missing
    assert "builtins.object cannot be sent" in unsendable


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["words", "plain_words", "passed_on", "events"])
def test_error_before_the_first_value_has_its_status(served: Served, api: str) -> None:
    failed, refused = ask(served, api, text="fail"), ask(served, api, text="refuse")
    assert failed.status_code == 500
    assert "secret" not in failed.text
    assert (refused.status_code, refused.json()) == (429, {"error": "enough words"})
    served.wait_for(rf"request {failed.headers['x-adapter-request-id']} to words failed")
    served.wait_for("ValueError: a secret")


@pytest.mark.parametrize("api", ["words", "plain_words"])
def test_error_after_the_first_value_breaks_the_answer_off(served: Served, api: str) -> None:
    assert read(served, api, text="a b fail c", pause=0.1) == "a b !"
    served.wait_for(rf"request \w+ to /{api} broke off: .*a secret")
    assert "Exception in ASGI application" not in served.log


def test_value_that_cannot_be_sent_fails_its_stream_alone(served: Served) -> None:
    assert ask(served, "numbers", count=1, size=-1).status_code == 500  # numpy refuses
    assert ask(served, "numbers", count="many").status_code == 500
    assert len(ask(served, "numbers", count=2).json()) == 2


def test_worker_that_dies_ends_its_streams_and_the_next_one_works(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(read, served, "words", text="a b c d e f g h", pause=0.3)
        time.sleep(0.8)
        died = ask(served, "words", text="die")
        assert running.result().endswith(" !")
    assert died.status_code == 503
    assert died.headers["retry-after"] == "1"
    assert "died" in died.json()["error"]
    assert ask(served, "words", text="a b").text == "a b "


def test_async_step_that_takes_too_long_ends_its_stream_alone(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, served, "words", text="a b c d e f g h", pause=0.5)
        late = ask(served, "words", text="hang")
        assert other.result().text == "a b c d e f g h "
    assert late.status_code == 504
    assert f"no value within {LIMIT_S:g} s" in late.json()["error"]


def test_sync_step_that_takes_too_long_costs_the_worker(served: Served) -> None:
    """It cannot be interrupted, and the other streams of its process wait for it."""
    with stream(served, "stuck", x=1) as response:
        texts = response.iter_text()
        assert next(texts) == "1"
        time.sleep(0.1)
        waiting = ask(served, "words", text="a " * 500_000)  # more than a process that reads nothing can be sent
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
        with pytest.raises(httpx.RemoteProtocolError):
            next(texts)
    served.wait_for(r"speaker\.stream died \(call limit\)")
    assert ask(served, "words", text="a b").text == "a b "


# ---- who holds whom back --------------------------------------------------------------------------------------------


def test_reader_that_is_slow_holds_the_generator_back_and_nobody_else(served: Served, tmp_path: Path) -> None:
    file, count, size = tmp_path / "steps", 8000, 5000
    with slow_reader(served, "many", {"count": count, "size": size, "file": str(file)}) as client:
        assert client.recv(1000)
        steady = [-1]
        while steady[-1] != len(lines(file)):  # the buffers of Linux, for the most part, take some MB
            steady.append(len(lines(file)))
            time.sleep(1)
        assert steady[-1] < count / 2
        assert ask(served, "words", text="a b").text == "a b "
        read = b""
        while b"\r\n0\r\n\r\n" not in read[-100:]:
            more = client.recv(1 << 20)
            assert more, "the answer was broken off"
            read += more
    assert len(re.findall(rb"(\d+) x{5000}", read)) > 0.9 * count  # a few were cut by `recv`
    assert len(lines(file)) == count


def slow_reader(served: Served, api: str, body: dict[str, Any]) -> socket.socket:
    url, data = urlsplit(served.url), json.dumps(body).encode()
    client = socket.socket()
    client.settimeout(30)
    client.connect((url.hostname, url.port))
    head = f"POST /{api} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


def test_twenty_streams_at_once_each_get_their_own_values(served: Served) -> None:
    def one(i: int) -> tuple[str, str]:
        words = " ".join(f"{i}.{j}" for j in range(20))
        return words, ask(served, "words", text=words, pause=0.05).text.strip()

    begun = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        for expected, found in pool.map(one, range(20)):
            assert found == expected
    assert time.monotonic() - begun < 15  # side by side: 20 s one after another


def test_sync_generators_of_a_process_take_turns(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "steps"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ask(served, "numbers", count=20, pause=0.02, file=str(file)), range(2)))
    steps = [int(line) for line in lines(file)]
    assert sorted(steps) == sorted([*range(20), *range(20)])
    assert steps != [*range(20), *range(20)]


# ---- who ends whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["words", "plain_words", "passed_on", "events"])
@pytest.mark.parametrize("text", ["a b c d e f g h i j k l m n o p q r s t u v w x y z " * 10, "a b hang"])
def test_client_that_goes_away_closes_the_generator_in_triton(
    served: Served, tmp_path: Path, api: str, text: str
) -> None:
    file = tmp_path / "steps"
    with stream(served, api, text=text, pause=0.1, file=str(file)) as response:
        next(response.iter_text())
        wait_for_line(file, "b")
    wait_for_line(file, "closed")
    assert "z" not in lines(file)
    assert re.search("ended by (CancelledError|GeneratorExit)", file.read_text())


def test_client_that_goes_away_closes_a_sync_generator_at_its_next_step(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "steps"
    with stream(served, "many", count=1000, pause=0.1, file=str(file)) as response:
        next(response.iter_text())
    wait_for_line(file, "closed")
    assert len(lines(file)) < 40


def test_client_that_goes_away_before_the_first_value_closes_the_generator(served: Served, tmp_path: Path) -> None:
    for api in ("words", "plain_words"):
        file = tmp_path / api
        with slow_reader(served, api, {"text": "hang", "file": str(file)}):
            wait_for_line(file, "begun")
        wait_for_line(file, "closed", LIMIT_S - 1)  # and not by the limit on a step


def test_reader_that_leaves_its_loop_closes_the_generator(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "steps"
    assert ask(served, "first", count=1000, pause=0.1, file=str(file)).json() == 0
    wait_for_line(file, "closed")


def test_time_limit_of_the_api_holds_until_the_first_value(served: Served, serve: Serve, tmp_path: Path) -> None:
    options = ("--repository", str(tmp_path / "repository"), "--api-workers", "1", "--timeout", "1")
    own = serve("streams:svc", *options, working_dir=SERVICES)
    for api in ("words", "plain_words"):
        file = tmp_path / api
        late = ask(own, api, text="hang", file=str(file))
        assert late.status_code == 504
        wait_for_line(file, "closed")
    assert ask(own, "words", text="a b c", pause=0.7).text == "a b c "
    # and when the server is told to stop, streams have as long, and one second more, to end
    file = tmp_path / "endless"
    with ThreadPoolExecutor(2) as pool:
        short = pool.submit(read, own, "words", text="a a a a a", pause=0.2, file=str(file))
        endless = pool.submit(read, own, "words", text="b " * 10_000, pause=0.1, file=str(file))
        for line in ("a", "b"):
            wait_for_line(file, line)
        assert own.stop() == 0
        assert short.result() == "a a a a a "
        assert re.fullmatch("(b )+!", endless.result())
    assert lines(file).count("closed") == 2
    assert re.search(r"request \w+ to /words broke off: this server stops", own.log)
    assert "Traceback" not in own.log


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_stream_is_counted_and_logged_when_it_ends(served: Served) -> None:
    with stream(served, "words", text="a b c", pause=0.3) as response:
        texts = response.iter_text()
        next(texts)
        identity = response.headers["x-adapter-request-id"]
        page = served.get("/metrics").text
        assert re.search(r'request_in_progress\{[^}]*endpoint="/words"[^}]*\} 1\b', page), page
        assert not re.search(rf"POST,path=/words,.*{identity}", served.log)
        assert "".join(texts) == "b c "
    served.wait_for(rf"path=/words,.* (9|1\d)\d\d\.\d*ms .*{identity}")
    page = served.get("/metrics").text
    assert re.search(r'request_in_progress\{[^}]*endpoint="/words"[^}]*\} 0\b', page)

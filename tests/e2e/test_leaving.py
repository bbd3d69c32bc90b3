"""What becomes of calls in Triton whose HTTP clients go away."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Serve, Served

SERVICES = Path(__file__).parent / "services"


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    repository = str(tmp_path_factory.mktemp("leaving"))
    options = ("--repository", repository, "--api-workers", "1", "--timeout", "20")
    return serve("leaving:svc", *options, working_dir=SERVICES)


Ask = Callable[[str, str, float], str]


@pytest.fixture
def ask(served: Served, file: Path) -> Ask:
    """Call an API as somebody who waits for `patience` seconds."""

    def call(api: str, name: str, patience: float) -> str:
        body = {"name": name, "seconds": 1.0, "file": str(file)}
        try:
            # one id for all: clients are told apart by their connections
            headers = {"x-request-id": "x"}
            return str(httpx.post(f"{served.url}/{api}", json=body, headers=headers, timeout=patience).json())
        except httpx.ReadTimeout:
            return "gone"

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def wait_for_line(file: Path, line: str) -> None:
    until = time.monotonic() + 5
    while not file.exists() or line not in file.read_text().splitlines():
        assert time.monotonic() < until, f"{line!r} is not in {file.read_text() if file.exists() else 'no file'}"
        time.sleep(0.02)


@pytest.mark.parametrize("api", ["alone", "plain_alone"])
def test_call_that_waits_in_triton_is_dropped_with_its_client(ask: Ask, file: Path, served: Served, api: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, api, "first", 15)
        wait_for_line(file, "first begun")
        # Triton hands one request ahead to the python backend, which cannot give it up
        ahead = pool.submit(ask, api, "ahead", 15)
        time.sleep(0.2)
        assert ask(api, "second", 0.4) == "gone"
        wait_for_line(file, "second left")  # the function of the API, too, need not wait for the others
        assert not first.done()
        assert [first.result(), ahead.result()] == ["first", "ahead"]
    assert ask(api, "third", 15) == "third"
    assert "second begun" not in file.read_text()
    served.wait_for(rf"path=/{api},.*status=499")


def test_call_that_shares_a_request_with_others_is_left_there(ask: Ask, file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(ask, "batch", "first 0", 15)]
        wait_for_line(file, "first 0 begun with 1")
        first.append(pool.submit(ask, "batch", "first 1", 15))  # as many as may be under way
        others = [pool.submit(ask, "batch", f"other {i}", 15) for i in range(3)]
        gone = pool.submit(ask, "batch", "gone", 1.3)
        assert gone.result() == "gone"
        assert [call.result() for call in [*first, *others]] == ["first 0", "first 1", "other 0", "other 1", "other 2"]


def test_many_clients_that_go_away_leave_nothing_behind(ask: Ask, served: Served) -> None:
    with ThreadPoolExecutor(16) as pool:
        for api in ("alone", "plain_alone", "batch"):
            assert set(pool.map(lambda i, api=api: ask(api, f"{i}", 0.3), range(16))) == {"gone"}
        assert ask("batch", "after", 15) == "after"
        assert ask("alone", "after", 15) == "after"
    page = served.get("/metrics").text
    in_flight = [line for line in page.splitlines() if line.startswith("adapter_runner_triton_requests_in_flight")]
    assert in_flight
    assert all(line.endswith(" 0.0") for line in in_flight), in_flight

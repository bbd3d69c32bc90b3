"""`/metrics` of a service with two workers and a real Triton."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Serve, Served

SERVICE = """
import os

import adapter
from adapter.io import JSON, Text

orders = adapter.metrics.Counter("orders", "Orders.", ["kind"])
weight = adapter.metrics.Gauge("weight", "Weight.")


class Barista(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def brew(self, kinds: list[str]) -> list[str]:
        if "mud" in kinds:
            raise ValueError("no mud")
        return [f"a {kind}" for kind in kinds]


barista = adapter.Runner(Barista, name="barista")
svc = adapter.Service("cafe", runners=[barista])


@svc.api(input=Text(), output=JSON(), route="/order/{kind}")
async def order(text: str) -> list[str]:
    orders.labels(text).inc()
    return await barista.brew.async_run([text])


@svc.api(input=Text(), output=JSON())
def who(text: str) -> int:
    weight.set(2.5)
    return os.getpid()
"""

Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def cafe(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("cafe")
    (folder / "cafe.py").write_text(SERVICE)
    return serve("cafe:svc", "--api-workers", "2", working_dir=folder)


def _page(served: Served) -> Numbers:
    response = served.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = re.findall(r"^# (?:HELP|TYPE) .*", response.text, re.MULTILINE)
    assert len({tuple(line.split()[1:3]) for line in lines}) == len(lines)  # each once
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def _sum(numbers: Numbers, metric: str, **labels: str) -> float:
    return sum(
        value for (name, found), value in numbers.items() if name == metric and labels.items() <= dict(found).items()
    )


def _eventually(served: Served, holds: Callable[[Numbers], bool]) -> Numbers:
    """The page, once something holds of it: workers tell each other their numbers twice a second."""
    until = time.monotonic() + 10
    while not holds(numbers := _page(served)):
        assert time.monotonic() < until, numbers
        time.sleep(0.1)
    return numbers


def _workers(served: Served) -> tuple[set[int], int]:
    """The two workers, and how many requests were sent to find them."""
    found: set[int] = set()
    sent = 0
    until = time.monotonic() + 20
    while len(found) < 2:
        assert time.monotonic() < until, found
        found.add(int(served.post("/who", content="x").json()))
        sent += 1
    return found, sent


def test_the_page_is_the_sum_over_the_workers(cafe: Served) -> None:
    asked = 0
    while asked < 60:
        assert cafe.post(f"/order/{asked}", content="tea").json() == ["a tea"]
        asked += 1
    assert cafe.get("/nowhere").status_code == 404
    total = "adapter_api_server_request_total"

    def complete(numbers: Numbers) -> bool:
        return _sum(numbers, total, endpoint="/order/{kind}") == asked and _sum(numbers, total, endpoint="other") >= 1

    numbers = _eventually(cafe, complete)
    good = {"endpoint": "/order/{kind}", "http_response_code": "200", "service_name": "cafe"}
    assert _sum(numbers, total, **good) == asked
    assert _sum(numbers, "adapter_api_server_request_duration_seconds_count", **good) == asked
    assert _sum(numbers, "adapter_api_server_request_duration_seconds_bucket", le="+Inf", **good) == asked
    assert _sum(numbers, "adapter_api_server_request_in_progress", endpoint="/order/{kind}") == 0
    assert _sum(numbers, total, endpoint="other", http_response_code="404") == 1
    assert _sum(numbers, "orders_total", kind="tea") == asked
    brew = {"runner_name": "barista", "method_name": "brew"}
    assert _sum(numbers, "adapter_runner_request_total", outcome="success", **brew) == asked
    assert _sum(numbers, "adapter_runner_adaptive_batch_size_sum", **brew) == asked
    assert _sum(numbers, "adapter_runner_packed_calls_sum", **brew) == asked
    assert _sum(numbers, "adapter_runner_triton_requests_in_flight", **brew) == 0
    endpoints = {dict(labels).get("endpoint") for name, labels in numbers if name == total}
    assert "/metrics" not in endpoints


def test_the_page_has_the_metrics_of_triton(cafe: Served) -> None:
    before = _sum(_page(cafe), "nv_inference_request_success_total", model="cafe.barista")
    assert cafe.post("/order/1", content="tea").status_code == 200
    assert _sum(_page(cafe), "nv_inference_request_success_total", model="cafe.barista") == before + 1


def test_a_call_that_fails_is_counted_as_such(cafe: Served) -> None:
    assert cafe.post("/order/1", content="mud").status_code == 500
    numbers = _eventually(cafe, lambda n: _sum(n, "adapter_runner_request_total", outcome="failure") == 1)
    assert _sum(numbers, "adapter_api_server_request_total", http_response_code="500") == 1
    for gauge in ("adapter_api_server_request_in_progress", "adapter_runner_request_in_progress"):
        assert _sum(numbers, gauge, endpoint="/order/{kind}") == _sum(numbers, gauge, runner_name="barista") == 0
    assert _sum(numbers, "adapter_runner_triton_requests_in_flight") == 0


def test_the_counts_of_a_killed_worker_stay(cafe: Served) -> None:
    workers, sent = _workers(cafe)
    who = {"metric": "adapter_api_server_request_total", "endpoint": "/who"}
    _eventually(cafe, lambda n: _sum(n, **who) == sent and _sum(n, "weight") == 5)
    os.kill(workers.pop(), signal.SIGKILL)
    cafe.wait_for("front process . died")
    numbers = _eventually(cafe, lambda n: _sum(n, "weight") == 2.5)  # a gauge counts those that live
    assert _sum(numbers, **who) == sent


def test_metrics_can_be_turned_off_and_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cafe.py").write_text(SERVICE)
    settings = {"api_server": {"metrics": {"enabled": False}}}
    (tmp_path / "adapter.yaml").write_text(json.dumps(settings))
    off = serve("cafe:svc", "--development", working_dir=tmp_path)
    assert off.get("/metrics").status_code == 404
    settings = {"api_server": {"metrics": {"namespace": "shop", "duration": {"min": 1, "max": 4, "factor": 2}}}}  # type: ignore[dict-item]  # a test's own
    (tmp_path / "adapter.yaml").write_text(json.dumps(settings))
    named = serve("cafe:svc", "--development", working_dir=tmp_path)
    assert named.post("/who", content="x").status_code == 200
    numbers = _eventually(named, lambda n: _sum(n, "shop_request_total", endpoint="/who") == 1)
    bounds = {dict(labels)["le"] for name, labels in numbers if name == "shop_request_duration_seconds_bucket"}
    assert bounds == {"1.0", "2.0", "4.0", "+Inf"}

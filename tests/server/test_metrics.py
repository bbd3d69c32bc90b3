from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from adapter.exceptions import ConfigException
from adapter.server.metrics import ServerMetrics, duration_buckets
from adapter.settings import Duration, Metrics

Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]
IRIS = {"service_name": "iris", "service_version": "not available"}


def _key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted((IRIS | labels).items()))


def _read(page: bytes) -> Numbers:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def _counted(
    work: Callable[[ServerMetrics], None], *, settings: Metrics | None = None, engine: str | None = None
) -> Numbers:
    """The page after some work."""

    async def page() -> bytes:
        counts = ServerMetrics("iris", settings or Metrics(), engine=engine)
        work(counts)
        return await counts.page(ready=True)

    return _read(asyncio.run(page()))


def test_readiness_and_lost_lines_are_on_the_page_from_the_beginning() -> None:
    found = _counted(lambda counts: None)
    assert found[_key("adapter_ready")] == 1
    assert found[_key("adapter_api_server_log_lines_dropped_total")] == 0
    assert _counted(lambda counts: counts.lines_lost(7))[_key("adapter_api_server_log_lines_dropped_total")] == 7


def test_requests_are_counted() -> None:
    def work(counts: ServerMetrics) -> None:
        for status, seconds in ((200, 0.004), (200, 0.2), (503, 20.0)):
            counts.begun("/classify")
            counts.ended("/classify", status, seconds)
        counts.begun("/classify")
        counts.begun("other")

    found = _counted(work)
    good = {"endpoint": "/classify", "http_response_code": "200"}
    bad = {"endpoint": "/classify", "http_response_code": "503"}
    assert found[_key("adapter_api_server_request_total", **good)] == 2
    assert found[_key("adapter_api_server_request_total", **bad)] == 1
    assert found[_key("adapter_api_server_request_duration_seconds_sum", **good)] == pytest.approx(0.204)
    assert found[_key("adapter_api_server_request_duration_seconds_bucket", le="0.005", **good)] == 1
    assert found[_key("adapter_api_server_request_duration_seconds_bucket", le="10.0", **bad)] == 0
    assert found[_key("adapter_api_server_request_duration_seconds_count", **bad)] == 1
    assert found[_key("adapter_api_server_request_in_progress", endpoint="/classify")] == 1
    assert found[_key("adapter_api_server_request_in_progress", endpoint="other")] == 1


def test_calls_of_runners_are_counted() -> None:
    def work(metrics: ServerMetrics) -> None:
        calls = metrics.calls("clf", "predict")
        calls.now += 4
        calls.departed(3, 40)
        calls.departed(1, 10_000)
        calls.landed()
        calls.retried(3)
        calls.ended([0.1, 0.3])
        calls.ended([0.1], failed=True)

    found = _counted(work)
    clf = {"runner_name": "clf", "method_name": "predict"}
    assert found[_key("adapter_runner_request_total", outcome="success", **clf)] == 2
    assert found[_key("adapter_runner_request_total", outcome="failure", **clf)] == 1
    assert found[_key("adapter_runner_request_duration_seconds_count", outcome="success", **clf)] == 2
    assert found[_key("adapter_runner_request_duration_seconds_sum", outcome="success", **clf)] == pytest.approx(0.4)
    assert found[_key("adapter_runner_request_in_progress", **clf)] == 1
    assert found[_key("adapter_runner_adaptive_batch_size_sum", **clf)] == 10_040
    assert found[_key("adapter_runner_adaptive_batch_size_bucket", le="64.0", **clf)] == 1
    assert found[_key("adapter_runner_packed_calls_bucket", le="1.0", **clf)] == 1
    assert found[_key("adapter_runner_packed_calls_count", **clf)] == 2
    assert found[_key("adapter_runner_triton_requests_in_flight", **clf)] == 1
    assert found[_key("adapter_runner_retry_total", **clf)] == 3


def test_a_call_that_has_only_begun_is_written_down_for_other_workers() -> None:
    """They read the file of this one, and a call that hangs tells nothing more."""

    async def main() -> float | None:
        metrics = ServerMetrics("iris", Metrics())
        calls = metrics.calls("clf", "predict")
        calls.now += 1
        calls.departed(1, 1)
        await asyncio.sleep(0.6)
        calls.now += 1  # it waits behind the first one
        await asyncio.sleep(0.6)
        labels = {**IRIS, "runner_name": "clf", "method_name": "predict"}
        found = metrics._registry.get_sample_value("adapter_runner_request_in_progress", labels)
        calls.ended([1.2, 0.6])
        metrics.close()
        return found

    assert asyncio.run(main()) == 2


def test_looking_twice_counts_once() -> None:
    async def pages() -> tuple[bytes, bytes]:
        counts = ServerMetrics("iris", Metrics())
        counts.begun("/a")
        counts.ended("/a", 200, 0.1)
        first = await counts.page(ready=True)
        await asyncio.sleep(0.6)  # the numbers are written down by themselves meanwhile
        return first, await counts.page(ready=True)

    first, second = map(_read, asyncio.run(pages()))
    key = _key("adapter_api_server_request_total", endpoint="/a", http_response_code="200")
    assert first[key] == second[key] == 1


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_is_what_prometheus_client_makes_of_the_same_values(values: list[float]) -> None:
    bounds = (0.5, 1.0, 100.0)

    def work(counts: ServerMetrics) -> None:
        for value in values:
            counts.begun("/a")
            counts.ended("/a", 200, value)

    labels = {**IRIS, "endpoint": "/a", "http_response_code": "200"}
    registry = prometheus_client.CollectorRegistry()
    name = "adapter_api_server_request_duration_seconds"
    theirs = prometheus_client.Histogram(name, "-", list(labels), buckets=bounds, registry=registry)
    for value in values:
        theirs.labels(**labels).observe(value)
    expected = _read(prometheus_client.generate_latest(registry))
    found = _counted(work, settings=Metrics(duration=Duration(buckets=bounds)))
    for key, value in expected.items():
        if not key[0].endswith("_created"):
            assert found[key] == pytest.approx(value)


def test_namespace_and_buckets_come_from_the_settings() -> None:
    def work(counts: ServerMetrics) -> None:
        counts.begun("/a")
        counts.ended("/a", 200, 0.3)

    found = _counted(work, settings=Metrics(namespace="shop", duration=Duration(min=0.1, max=1.0, factor=2.0)))
    bounds = [dict(labels)["le"] for name, labels in found if name == "shop_request_duration_seconds_bucket"]
    assert bounds == ["0.1", "0.2", "0.4", "0.8", "1.0", "+Inf"]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (Duration(buckets=(1.0, 2.0)), (1.0, 2.0)),
        (Duration(buckets=(1.0, float("inf"))), (1.0,)),
        (Duration(min=1.0, max=8.0, factor=2.0), (1.0, 2.0, 4.0, 8.0)),
        (Duration(min=1.0, max=1.5, factor=9.0), (1.0, 1.5)),
    ],
)
def test_duration_buckets(duration: Duration, expected: tuple[float, ...]) -> None:
    assert duration_buckets(duration) == expected


@pytest.mark.parametrize(
    ("duration", "says"),
    [
        (Duration(min=1.0), "some of min, max and factor"),
        (Duration(min=2.0, max=1.0, factor=2.0), "max above min"),
        (Duration(min=1.0, max=2.0, factor=1.0), "factor above 1"),
        (Duration(min=1e-9, max=1e9, factor=1.0001), "more than 200 buckets"),
        (Duration(buckets=(1.0,), min=1.0, max=2.0, factor=2.0), "both buckets and min"),
    ],
)
def test_duration_buckets_that_cannot_be_used(duration: Duration, says: str) -> None:
    with pytest.raises(ConfigException, match=says):
        duration_buckets(duration)


# ---- the page of the engine ---------------------------------------------------------------------------------------


class _Engine(http.server.BaseHTTPRequestHandler):
    text = '# HELP nv_count Count.\n# TYPE nv_count counter\nnv_count{model="a"} 7\n'

    def do_GET(self) -> None:
        if self.path == "/silent":
            self.server.asked.wait(5)  # type: ignore[attr-defined]  # set where the server is made
            return
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        self.wfile.write(b"\xff\xfe" if self.path == "/bytes" else self.text.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _engine() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Engine) as server:
        server.asked = threading.Event()  # type: ignore[attr-defined]  # for the handler
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.asked.set()  # type: ignore[attr-defined]  # as above
            server.shutdown()
            thread.join()


def _page(engine: str) -> str:
    async def page() -> bytes:
        return await ServerMetrics("iris", Metrics(), engine=engine).page(ready=True)

    return asyncio.run(page()).decode()


def test_the_page_has_the_metrics_of_the_engine() -> None:
    with _engine() as address:
        page = _page(f"{address}/metrics")
    assert 'nv_count{model="a"} 7' in page.splitlines()
    assert "nv_count" in {family.name for family in text_string_to_metric_families(page)}


@pytest.mark.parametrize("path", ["/silent", "/broken", "/bytes"])
def test_the_page_is_there_when_the_engine_is_not(path: str) -> None:
    with _engine() as address:
        page = _page(f"{address}{path}")
    (comment,) = [line for line in page.splitlines() if "cannot be had" in line]
    assert comment.startswith(f"# The metrics of Triton at {address}{path} cannot be had now: ")
    assert "nv_count" not in page
    assert _read(page.encode()).keys()


def test_the_page_is_there_when_the_engine_has_gone() -> None:
    with _engine() as address:
        pass
    assert "Connection refused" in _page(address)

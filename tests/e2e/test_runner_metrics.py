"""What Runnables count, on `/metrics`: two workers of the front, two instances in a real Triton, one embedded."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Serve, Served

SERVICE = '''
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator

import adapter
from adapter.io import JSON, Text

cups = adapter.metrics.Counter("cups", "Cups.", ["kind"])
queue = adapter.metrics.Gauge("queue", "Queue.")
highest = adapter.metrics.Gauge("highest", "Highest.", multiprocess_mode="livemax")
last = adapter.metrics.Gauge("last", "Last.", multiprocess_mode="livemostrecent")
each = adapter.metrics.Gauge("each", "Each.", multiprocess_mode="liveall")
size = adapter.metrics.Histogram("size", "Sizes of\\nwords.", ["kind"], buckets=[3, 1e7])
took = adapter.metrics.Summary("took", "Seconds.")


class Barista(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)
    SUPPORTS_CPU_MULTI_THREADING = False

    def __init__(self) -> None:
        self.failures = adapter.metrics.Counter("failures", "Failures.", namespace="shop")
        adapter.metrics.Counter("starts", "Starts.").inc()
        queue.inc(2)

    @adapter.Runnable.method(batchable=False)
    @took.time()
    def brew(self, kind: str) -> int:
        cups.labels(kind).inc()
        size.labels(kind=kind).observe(len(kind))
        highest.set(len(kind))
        last.set(7)
        each.set(1)
        if kind == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "less":
            cups.labels(kind).inc(-1)
        if kind == "wrong":
            adapter.metrics.Counter("no name", "Wrong.")
        with self.failures.count_exceptions(ValueError), queue.track_inprogress():
            if kind == "mud":
                raise ValueError(kind)
            if kind == "slow":
                time.sleep(0.1)
        return os.getpid()

    @adapter.Runnable.method(batchable=False)
    def later(self, kind: str) -> None:
        """Count when the call has been answered and nobody calls any more."""
        threading.Timer(0.5, cups.labels(kind).inc).start()


class Fountain(adapter.Runnable):
    @adapter.Runnable.method
    @took.time()
    def pour(self, kind: str) -> Iterator[str]:
        for _ in range(3):
            cups.labels(kind).inc()
            yield kind


class Sink(adapter.Runnable):
    @adapter.Runnable.method(batchable=False)
    def rinse(self, kind: str) -> None:
        cups.labels(kind).inc()
        queue.set(10)


barista = adapter.Runner(Barista, name="barista", cpu=2)
fountain = adapter.Runner(Fountain, name="fountain", cpu=1)
sink = adapter.Runner(Sink, name="sink", embedded=True)
svc = adapter.Service("cafe", runners=[barista, fountain, sink])


@svc.api(input=Text(), output=JSON())
async def order(kind: str) -> int:
    return await barista.brew.async_run(kind)


@svc.api(input=Text(), output=Text())
async def pour(kind: str) -> AsyncIterator[str]:
    async for text in fountain.pour.async_stream(kind):
        yield text


@svc.api(input=Text(), output=JSON())
async def later(kind: str) -> None:
    await barista.later.async_run(kind)


@svc.api(input=Text(), output=JSON())
async def rinse(kind: str) -> None:
    cups.labels(kind).inc()
    await sink.rinse.async_run(kind)
'''

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def cafe(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("cafe")
    (folder / "cafe.py").write_text(SERVICE)
    return serve("cafe:svc", "--api-workers", "2", working_dir=folder)


def _page(served: Served) -> Numbers:
    found: Numbers = {}
    names = set()
    for family in text_string_to_metric_families(served.get("/metrics").text):
        assert family.name not in names
        names.add(family.name)
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def _value(numbers: Numbers, name: str, **labels: str) -> float | None:
    return numbers.get((name, frozenset(labels.items())))


def _eventually(served: Served, holds: Callable[[Numbers], bool]) -> Numbers:
    """The page, once something holds of it: what is counted is on it half a second later."""
    until = time.monotonic() + 10
    while not holds(numbers := _page(served)):
        assert time.monotonic() < until, {key: value for key, value in numbers.items() if not key[0].startswith("nv_")}
        time.sleep(0.1)
    return numbers


def _kinds(served: Served) -> dict[str, str]:
    lines = served.get("/metrics").text.splitlines()
    return {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}


def test_what_both_instances_count_is_added_up(cafe: Served) -> None:
    with ThreadPoolExecutor(8) as threads:
        pids = list(threads.map(lambda _: cafe.post("/order", content="slow").json(), range(40)))
    assert len(set(pids)) == 2
    numbers = _eventually(cafe, lambda n: _value(n, "took_count") == 40)
    assert _value(numbers, "cups_total", kind="slow") == 40
    assert _value(numbers, "size_bucket", kind="slow", le="3.0") == 0
    assert _value(numbers, "size_bucket", kind="slow", le="1e+07") == 40
    assert _value(numbers, "size_bucket", kind="slow", le="+Inf") == 40
    assert _value(numbers, "size_count", kind="slow") == 40
    assert _value(numbers, "size_sum", kind="slow") == 160
    assert 4 <= (_value(numbers, "took_sum") or 0) < 40
    assert _value(numbers, "starts_total") == 2
    kinds = _kinds(cafe)
    assert [kinds[n] for n in ("cups_total", "size", "took", "queue")] == ["counter", "histogram", "summary", "gauge"]


def test_gauges_of_instances_become_one_as_their_mode_says(cafe: Served) -> None:
    for kind in ("tea", "coffee"):
        assert cafe.post("/order", content=kind).status_code == 200
    numbers = _eventually(cafe, lambda n: _value(n, "highest") == len("coffee"))
    assert _value(numbers, "queue") == 4
    assert _value(numbers, "last") == 7
    shown = {dict(labels)["pid"]: value for (name, labels), value in numbers.items() if name == "each"}
    assert shown.pop("cafe.barista_0/1") == shown.pop("cafe.barista_1/1") == 1
    assert list(shown.values()) == [0, 0]  # the workers of the front make it, too


def test_one_name_in_an_api_in_an_embedded_runner_and_in_triton_is_one_metric(cafe: Served) -> None:
    for _ in range(3):
        assert cafe.post("/rinse", content="glass").status_code == 200
    assert cafe.post("/order", content="glass").status_code == 200
    _eventually(cafe, lambda n: _value(n, "cups_total", kind="glass") == 7)
    assert _value(_eventually(cafe, lambda n: (_value(n, "queue") or 0) >= 14), "queue") in (
        14,
        24,
    )  # fronts with a sink
    for _ in range(5):  # whichever worker answers
        assert _value(_page(cafe), "cups_total", kind="glass") == 7


def test_a_stream_is_counted_to_its_end(cafe: Served) -> None:
    before = _value(_page(cafe), "took_count") or 0
    assert cafe.post("/pour", content="water").text == "water" * 3
    numbers = _eventually(cafe, lambda n: _value(n, "took_count") == before + 1)
    assert _value(numbers, "cups_total", kind="water") == 3


def test_labels_are_any_text(cafe: Served) -> None:
    odd = 'thé "noir" \\ ☕\nzwei'
    assert cafe.post("/order", content=odd.encode()).status_code == 200
    _eventually(cafe, lambda n: _value(n, "cups_total", kind=odd) == 1)


def test_an_exception_that_is_counted_is_raised_all_the_same(cafe: Served) -> None:
    assert cafe.post("/order", content="mud").status_code == 500
    _eventually(cafe, lambda n: _value(n, "shop_failures_total") == 1)


@pytest.mark.parametrize(
    ("kind", "says"), [("wrong", "'no name' cannot be the name of a metric"), ("less", "by non-neg")]
)
def test_a_metric_that_cannot_be_used_says_so(cafe: Served, kind: str, says: str) -> None:
    answer = cafe.post("/order", content=kind)
    assert answer.status_code == 500
    cafe.wait_for(says, 10)


def test_what_is_counted_while_nobody_calls_is_shown(cafe: Served) -> None:
    assert cafe.post("/later", content="night").status_code == 200
    _eventually(cafe, lambda n: _value(n, "cups_total", kind="night") == 1)


def test_counts_of_a_killed_worker_stay_and_its_gauges_go(cafe: Served) -> None:
    before = _eventually(cafe, lambda n: _value(n, "cups_total", kind="poison") is None)
    assert cafe.post("/order", content="poison").status_code == 503
    after = _eventually(cafe, lambda n: _value(n, "starts_total") == 3)
    assert _value(after, "cups_total", kind="poison") == 1  # written a moment before the end
    assert _value(after, "cups_total", kind="slow") == _value(before, "cups_total", kind="slow")
    assert _value(after, "took_count") == _value(before, "took_count")  # that call never ended
    assert _value(after, "queue") == _value(before, "queue")  # and not 2 more, of the one that died
    assert cafe.post("/order", content="tea").status_code == 200


def test_counts_of_a_killed_stub_stay(cafe: Served) -> None:
    before = _eventually(cafe, lambda n: _value(n, "cups_total", kind="slow") == 40)
    for pid in cafe.children("triton_python_backend_stub"):
        os.kill(pid, signal.SIGKILL)
    _eventually(cafe, lambda n: (_value(n, "starts_total") or 0) >= (_value(before, "starts_total") or 0) + 2)
    until = time.monotonic() + 20
    while cafe.post("/order", content="tea").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    after = _eventually(cafe, lambda n: (_value(n, "took_count") or 0) > (_value(before, "took_count") or 0))
    assert _value(after, "cups_total", kind="slow") == 40
    assert _value(after, "queue") == _value(before, "queue")


def test_it_is_the_same_in_development(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cafe.py").write_text(SERVICE)
    cafe = serve("cafe:svc", "--development", working_dir=tmp_path)
    for path in ("/order", "/rinse"):
        assert cafe.post(path, content="tea").status_code == 200
    numbers = _eventually(cafe, lambda n: _value(n, "cups_total", kind="tea") == 3)
    assert _value(numbers, "size_count", kind="tea") == _value(numbers, "took_count") == 1
    assert _value(numbers, "starts_total") == 1

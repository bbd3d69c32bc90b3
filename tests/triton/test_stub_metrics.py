"""Metrics of a worker in a stub, beside a stand-in for the part of Triton that keeps them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from adapter import worker_metrics
from adapter.ledger import Ledger
from adapter.triton.stub_metrics import StubMetrics, added

_Labels = dict[str, str]


class Triton:
    """What `pb_utils` offers for metrics, in memory; a name has one kind, and counters do not fall."""

    def __init__(self) -> None:
        shown: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        kinds: dict[str, str] = {}

        class Metric:
            def __init__(self, key: tuple[str, frozenset[tuple[str, str]]], kind: str) -> None:
                self._key, self._kind = key, kind
                shown.setdefault(key, 0.0)

            def increment(self, by: float) -> None:
                if self._kind == "counter" and by < 0:
                    raise ValueError("a counter does not fall")
                shown[self._key] += by

            def set(self, value: float) -> None:
                assert self._kind == "gauge"
                shown[self._key] = value

        class MetricFamily:
            COUNTER: ClassVar[str] = "counter"
            GAUGE: ClassVar[str] = "gauge"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert "\n" not in description
                if kinds.setdefault(name, kind) != kind:
                    raise ValueError("Family name already exists with different type")
                self._name, self._kind = name, kind

            def Metric(self, labels: _Labels) -> Metric:  # noqa: N802  # Triton's own name
                return Metric((self._name, frozenset(labels.items())), self._kind)

        self.MetricFamily = MetricFamily
        self._shown = shown

    def value(self, name: str, **labels: str) -> float | None:
        return self._shown.get((name, frozenset(labels.items())))


@pytest.fixture
def triton() -> Triton:
    return Triton()


@pytest.fixture
def stub(triton: Triton) -> Iterator[StubMetrics]:
    made = StubMetrics(triton, "cafe.barista", "cafe.barista_0/1")
    yield made
    made.close()


def worker(stub: StubMetrics) -> Ledger:
    fd, wake = stub.begin()
    return Ledger(fd, lambda: os.eventfd_write(wake, 1))


def counter(into: Ledger, name: str = "cups") -> Any:
    return worker_metrics.Counter(name, "Cups.", ["kind"], {}, into)


def gauge(into: Ledger, mode: str, name: str = "queue") -> Any:
    return worker_metrics.Gauge(name, "Queue\nof people.", [], {"multiprocess_mode": mode}, into)


def eventually(triton: Triton, expected: float, name: str, **labels: str) -> None:
    until = time.monotonic() + 10
    while triton.value(name, **labels) != expected:
        assert time.monotonic() < until, triton.value(name, **labels)
        time.sleep(0.01)


def test_what_a_worker_counts_is_shown_soon(triton: Triton, stub: StubMetrics) -> None:
    cups = counter(worker(stub))
    for n in range(1, 4):
        cups.labels("tea").inc(2)
        eventually(triton, 2 * n, "cups_total", kind="tea")


def test_counts_of_workers_add_up_and_gauges_of_one_that_ended_go(triton: Triton, stub: StubMetrics) -> None:
    for n in range(1, 4):
        into = worker(stub)
        counter(into).labels("tea").inc()
        queue, highest, kept = gauge(into, "livesum"), gauge(into, "livemax", "highest"), gauge(into, "max", "kept")
        for each in (queue, highest, kept):
            each.set(5)
        stub.begin()  # as for the next worker: what the last one wrote is not lost
        own = {"adapter_instance": "cafe.barista_0/1"}
        assert triton.value("cups_total", kind="tea") == n
        assert triton.value("queue", adapter_mode="livesum", **own) == 0
        assert math.isnan(triton.value("highest", adapter_mode="livemax", **own) or 0)
        assert triton.value("kept", adapter_mode="max", **own) == 5


def test_the_number_set_last_is_that_of_all(triton: Triton) -> None:
    stubs = [StubMetrics(triton, "cafe.barista", f"cafe.barista_{n}/1") for n in range(2)]
    for n, each in enumerate(stubs):
        gauge(worker(each), "livemostrecent").set(n + 7)
        eventually(triton, n + 7, "queue", adapter_mode="livemostrecent")
    gauge(worker(stubs[0]), "livemostrecent")  # of a new worker, which has set nothing yet
    for each in stubs:
        each.close()
    assert triton.value("queue", adapter_mode="livemostrecent") == 8


def test_a_metric_that_triton_refuses_is_said_once_and_hurts_no_other(
    triton: Triton, stub: StubMetrics, capfd: pytest.CaptureFixture[str]
) -> None:
    triton.MetricFamily("cups_total", "Another.", "gauge")
    into = worker(stub)
    cups, others = counter(into), counter(into, "others")
    for n in range(3):
        cups.labels("tea").inc()
        others.labels("tea").inc()
        eventually(triton, n + 1, "others_total", kind="tea")
    assert triton.value("cups_total", kind="tea") is None
    said = capfd.readouterr().err
    assert said.count("the metric cups_total is not on the page") == 1
    assert "already exists with different type" in said


def test_numbers_that_are_none_are_left_out(triton: Triton, stub: StubMetrics) -> None:
    into = worker(stub)
    cups, odd = counter(into), worker_metrics.Histogram("odd", "Odd.", [], {"buckets": (1.0, math.inf)}, into)
    with pytest.raises(ValueError, match="non-negative"):
        cups.labels("tea").inc(math.nan)
    odd.observe(math.nan)
    cups.labels("milk").inc(math.inf)
    odd.observe(2)
    stub.begin()
    assert triton.value("cups_total", kind="milk") == 0
    assert triton.value("odd_count") == 1
    assert triton.value("odd_sum") == 2


def test_what_adapter_counts_itself_is_shown(triton: Triton, stub: StubMetrics) -> None:
    stub.count("adapter_things_total", "Things.", reason="killed")
    stub.count("adapter_things_total", "Things.", reason="killed", by=2)
    assert triton.value("adapter_things_total", reason="killed") == 3


@given(st.lists(st.floats(-10, 10) | st.just(math.inf), max_size=30))
def test_a_histogram_is_that_of_prometheus(values: list[float]) -> None:
    bounds = (-1.0, 0.0, 2.5)
    reference = Reference("h", "H.", buckets=bounds, registry=CollectorRegistry())
    numbers = [0.0] * (len(bounds) + 2)

    class Memory:
        def record(self, about: Any, count: int, first: float) -> int:
            assert count == len(numbers)
            return 0

        def add(self, *amounts: tuple[int, float]) -> None:
            for place, amount in amounts:
                numbers[place] += amount

    ours = worker_metrics.Histogram("h", "H.", [], {"buckets": (*bounds, math.inf)}, Memory())  # type: ignore[arg-type]  # all that it uses
    for value in values:
        ours.observe(value)
        reference.observe(value)
    expected = {s.labels["le"]: s.value for f in reference.collect() for s in f.samples if s.name == "h_bucket"}
    about = {"kind": "Histogram", "name": "h", "labels": {}, "buckets": bounds}
    found = list(added(about, numbers))
    assert {labels["le"]: value for _, name, labels, value in found if name == "h_bucket"} == expected
    assert [value for _, name, _, value in found if name == "h_count"] == [len(values)]

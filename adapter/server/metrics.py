"""What a server counts of its work, and the page that shows it with the user's metrics and those of Triton."""

from __future__ import annotations

import asyncio
import bisect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import mark_process_dead

from adapter import metrics
from adapter.exceptions import ConfigException
from adapter.server.engine_page import Families, with_engine
from adapter.settings import DEFAULT_BUCKETS, Duration, Metrics
from adapter.triton.notice import Notice, Notices, Number

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RUNNER_NAMESPACE = "adapter_runner"
_NO_VERSION = "not available"  # what the field's tools show for a service that is served from its source
_FOLD_S = 0.5  # how old the numbers may be that other workers show of this one
_MOST_BUCKETS = 200
_SIZES = tuple(float(2**n) for n in range(13))  # 1, 2, 4 ... 4096 items


def duration_buckets(duration: Duration) -> tuple[float, ...]:
    """The upper bounds, in seconds, of the buckets of a duration: those listed, or from `min` by `factor` to `max`.

    ConfigException where they cannot be used together.
    """
    where = "api_server.metrics.duration"
    first, last, factor = duration.min, duration.max, duration.factor
    if first is None and last is None and factor is None:
        return tuple(bound for bound in duration.buckets if bound < math.inf)
    if first is None or last is None or factor is None:
        raise ConfigException(f"{where} has some of min, max and factor: give all three, or buckets.")
    if duration.buckets != DEFAULT_BUCKETS:
        raise ConfigException(f"{where} has both buckets and min, max and factor: leave one of the two out.")
    if not (0 < first < last < math.inf and factor > 1):
        raise ConfigException(
            f"{where} has min {first:g}, max {last:g} and factor {factor:g}: min must be above 0, max above min, and "
            "factor above 1."
        )
    if math.log(last / first) / math.log(factor) > _MOST_BUCKETS:
        raise ConfigException(
            f"{where} makes more than {_MOST_BUCKETS} buckets with min {first:g}, max {last:g} and factor {factor:g}: "
            "raise factor."
        )
    bounds = []
    while first < last:
        bounds.append(first)
        first *= factor
    return (*bounds, last)


class _Spread:
    """Values counted in buckets since they were last written down."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def count(self, value: float) -> None:
        self.counts[bisect.bisect_left(self._bounds, value)] += 1
        self.total += value


class _Histogram:
    """Histograms of one name, one for each combination of labels, in which counting costs little."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], **options: Any) -> None:
        self._own = prometheus_client.Histogram(name, text, labels, buckets=bounds, **options)
        self._bounds = tuple(bounds)
        self._spreads: dict[tuple[Any, ...], _Spread] = {}

    def of(self, labels: tuple[Any, ...]) -> _Spread:
        spread = self._spreads.get(labels)
        if spread is None:
            spread = self._spreads[labels] = _Spread(self._bounds)
        return spread

    def fold(self, service: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Write down what was counted, and tell how many values each combination of labels got."""
        for labels, spread in self._spreads.items():
            number = sum(spread.counts)
            if not number:
                continue
            child = self._own.labels(*service, *labels)
            # `observe` takes one value at a time; this is what it writes to, and a test compares the two
            child._sum.inc(spread.total)
            for bucket, count in zip(child._buckets, spread.counts, strict=True):
                if count:
                    bucket.inc(count)
            spread.counts[:] = [0] * len(spread.counts)
            spread.total = 0.0
            yield labels, number


class _Level:
    """Gauges of one name: how much is going on now, for each combination of labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str], **options: Any) -> None:
        self._own = prometheus_client.Gauge(name, text, labels, multiprocess_mode="livesum", **options)
        self.now: dict[tuple[str, ...], int] = {}

    def change(self, labels: tuple[str, ...], by: int) -> None:
        self.now[labels] = self.now.get(labels, 0) + by

    def fold(self, service: Sequence[str]) -> None:
        for labels, number in self.now.items():
            self._own.labels(*service, *labels).set(number)


class CallCounts:
    """What is counted of the calls of one method; see `adapter.triton.lanes.Observer`."""

    def __init__(
        self, succeeded: _Spread, failed: _Spread, packs: _Spread, items: _Spread, changed: Callable[[], None]
    ) -> None:
        self.now = self.flying = self.again = 0
        self._succeeded = succeeded
        self._failed = failed
        self._packs = packs
        self._items = items
        self._changed = changed

    def ended(self, seconds: Sequence[float], *, failed: bool = False) -> None:
        self.now -= len(seconds)
        spread = self._failed if failed else self._succeeded
        for each in seconds:
            spread.count(each)
        self._changed()

    def departed(self, calls: int, items: int) -> None:
        self.flying += 1
        self._packs.count(calls)
        self._items.count(items)
        self._changed()

    def landed(self) -> None:
        self.flying -= 1
        self._changed()

    def retried(self, calls: int) -> None:
        self.again += calls
        self._changed()


class ServerMetrics:
    """Counts requests and the calls of runners; all methods are called on the event loop.

    What is counted is kept in plain numbers and written down twice a second: a number that several processes share lies
    in a file, and costs more than the rest of a small request. `engine` is the address of Triton's own page, where
    there is one; `notices` say where it has moved to, and what the launcher has counted.
    """

    def __init__(
        self, service: str, settings: Metrics, *, engine: str | None = None, notices: Notices | None = None
    ) -> None:
        self._engine = engine
        self._notices = notices
        self._service = (service, _NO_VERSION)
        self._registry = prometheus_client.CollectorRegistry()
        self._timer: asyncio.TimerHandle | None = None
        bounds = duration_buckets(settings.duration)
        service_labels = ("service_name", "service_version")
        request = (*service_labels, "endpoint")
        runner = (*service_labels, "runner_name", "method_name")
        theirs: dict[str, Any] = {"namespace": RUNNER_NAMESPACE, "registry": self._registry}
        ours: dict[str, Any] = {"namespace": settings.namespace, "registry": self._registry}
        self._request_total = prometheus_client.Counter(
            "request_total", "HTTP requests that were answered.", (*request, "http_response_code"), **ours
        )
        self._request_seconds = _Histogram(
            "request_duration_seconds",
            "Seconds from a request to the end of its answer.",
            (*request, "http_response_code"),
            bounds,
            **ours,
        )
        self._requests = _Level("request_in_progress", "HTTP requests that are being answered.", request, **ours)
        self._call_total = prometheus_client.Counter(
            "request_total", "Calls of runners that have ended.", (*runner, "outcome"), **theirs
        )
        self._call_seconds = _Histogram(
            "request_duration_seconds",
            "Seconds that a call of a runner took, its waiting included.",
            (*runner, "outcome"),
            bounds,
            **theirs,
        )
        self._calls = _Level("request_in_progress", "Calls of runners that are under way.", runner, **theirs)
        self._items = _Histogram("adaptive_batch_size", "Items in one request to Triton.", runner, _SIZES, **theirs)
        self._packs = _Histogram(
            "packed_calls", "Calls of runners that shared one request to Triton.", runner, _SIZES, **theirs
        )
        self._flights = _Level(
            "triton_requests_in_flight", "Requests to Triton that have no answer yet.", runner, **theirs
        )
        self._lost = prometheus_client.Counter(
            "log_lines_dropped_total", "Lines of the access log that nobody read in time.", service_labels, **ours
        ).labels(*self._service)
        # of front processes that see it differently, the one that sees the fewest is shown
        tritons: dict[str, Any] = {**theirs, "labelnames": (*service_labels, "address"), "multiprocess_mode": "livemin"}
        self._replicas_up = prometheus_client.Gauge(
            "triton_replicas_up", "Tritons at an address that runs elsewhere, and answer.", **tritons
        )
        self._replicas = prometheus_client.Gauge(
            "triton_replicas", "Tritons at an address that runs elsewhere.", **tritons
        )
        self._counts: dict[tuple[str, str], CallCounts] = {}
        self._retry_total = prometheus_client.Counter(
            "retry_total", "Calls sent again alone, after the request that they shared failed.", runner, **theirs
        )

    # ---- on the path of every request -----------------------------------------------------------------------------

    def begun(self, endpoint: str) -> None:
        """A request came; `endpoint` is the route of its API, else one of a few words."""
        self._requests.change((endpoint,), 1)
        if self._timer is None:
            self._fold_soon()

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        """A request that `begun` was told of has been answered."""
        self._requests.change((endpoint,), -1)
        self._request_seconds.of((endpoint, status)).count(seconds)
        if self._timer is None:
            self._fold_soon()

    def calls(self, runner: str, method: str) -> CallCounts:
        """What counts the calls of one method."""
        counts = self._counts.get((runner, method))
        if counts is None:
            labels = (runner, method)
            succeeded, failed = (self._call_seconds.of((*labels, outcome)) for outcome in ("success", "failure"))
            packs, items = self._packs.of(labels), self._items.of(labels)
            counts = self._counts[labels] = CallCounts(succeeded, failed, packs, items, self._fold_soon)
        return counts

    def lines_lost(self, lines: int) -> None:
        """Lines of the access log were dropped."""
        self._lost.inc(lines)

    def replicas(self, address: str, up: int, known: int) -> None:
        """So many Tritons of those known at an address can be called now."""
        self._replicas_up.labels(*self._service, address).set(up)
        self._replicas.labels(*self._service, address).set(known)

    # ---- twice a second, and when somebody looks ------------------------------------------------------------------

    def _fold_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FOLD_S, self._fold_again)

    def _fold_again(self) -> None:
        self._timer = None
        self._fold()
        if any(counts.now for counts in self._counts.values()):  # a call that begins tells nothing
            self._fold_soon()

    def _fold(self) -> None:
        service = self._service
        for labels, number in self._request_seconds.fold(service):
            self._request_total.labels(*service, *labels).inc(number)
        for labels, number in self._call_seconds.fold(service):
            self._call_total.labels(*service, *labels).inc(number)
        for histogram in (self._items, self._packs):
            for _ in histogram.fold(service):
                pass
        for method, counts in self._counts.items():
            self._calls.now[method], self._flights.now[method] = counts.now, counts.flying
            if counts.again:
                self._retry_total.labels(*service, *method).inc(counts.again)
                counts.again = 0
        for level in (self._requests, self._calls, self._flights):
            level.fold(service)

    def close(self) -> None:
        """Write down what has been counted; call it last."""
        if self._timer is not None:
            self._timer.cancel()
        self._fold()

    async def page(self, *, ready: bool) -> bytes:
        """The text of `/metrics`: of all workers, the user's metrics, and Triton's; `ready` is for this worker."""
        self._fold()
        return await asyncio.to_thread(self._page, ready)

    def _page(self, ready: bool) -> bytes:
        shared = bool(os.environ.get(metrics.FOLDER))  # then what the user's code reads is all that there is
        own = b"" if shared else prometheus_client.generate_latest(self._registry)
        notice = Notice() if self._notices is None else self._notices.read()
        labels = (("service_name", self._service[0]), ("service_version", self._service[1]))
        text = "Whether the worker that answered can serve requests: what /readyz says."
        numbers = (Number("adapter_ready", text, labels, float(ready), "gauge"), *notice.numbers)
        page = own + metrics.generate_latest() + _numbers(numbers)
        engine = notice.metrics_url or self._engine
        return page if engine is None else with_engine(page, engine)


def _numbers(numbers: Iterable[Number]) -> bytes:
    """What the launcher has counted, as lines of the page."""
    families: dict[str, Metric] = {}
    for number in numbers:
        name = number.name.removesuffix("_total")
        family = families.setdefault(name, Metric(name, number.text, number.kind))
        family.add_sample(number.name, dict(number.labels), number.value)
    return prometheus_client.generate_latest(cast(Any, Families(families.values())))


def forget(pid: int, folder: str) -> None:
    """Take what a process that has ended was doing, though not what it has done, from the numbers in a folder."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]  # prometheus_client's own

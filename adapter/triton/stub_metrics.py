"""What user code counts in a worker, as metrics of Triton: they stand on its page, and so on `/metrics`.

Triton 2.51 takes a metric that two stubs share from its page when the first of them lets go of it, while the other goes
on writing to it. So nothing is ever let go of: counts are shared by all instances, and outlive them.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapter.exceptions import sentence
from adapter.ledger import Reader, Record, create
from adapter.triton import worker_log

INSTANCE, MODE = "adapter_instance", "adapter_mode"
"""Labels of a gauge, which each instance has for itself: whose it is, and how those of all become one."""
_PAUSE_S = 0.5  # how old the numbers may be on the page


class StubMetrics:
    """Shows what the worker of this stub counts; its thread sleeps while nothing is counted."""

    def __init__(self, pb_utils: Any, entry: str, instance: str) -> None:
        """`instance` tells this stub from every other that there is, also from one of another version."""
        self._pb_utils = pb_utils
        self._entry = entry
        self._instance = instance
        self._lock = threading.Lock()
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._reader: Reader | None = None
        self._shown: dict[int, list[float]] = {}  # by the place of a record
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._memory: int | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="worker-metrics", daemon=True)

    def begin(self) -> tuple[int, int]:
        """Show what the last worker counted to its end; what the next one needs, as file descriptors to pass on."""
        with self._lock:
            self._end()
            self._memory = create()
            self._reader = Reader(self._memory)
        if not self._thread.is_alive():
            self._thread.start()
        return self._memory, self._wake

    def count(self, name: str, documentation: str, *, by: float = 1, **labels: str) -> None:
        """Count something of adapter's own: `name` ends in `_total`."""
        with self._lock:
            self._add("COUNTER", name, documentation, labels, by)

    def close(self) -> None:
        """Show what is left, and end."""
        self._closed.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._end()
        os.close(self._wake)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._closed.is_set():
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while self._show() and not self._closed.wait(_PAUSE_S):
                pass

    def _show(self) -> bool:
        with self._lock:
            if self._reader is None or not self._reader.changed():
                return False
            self._apply(self._reader)
            return True

    def _end(self) -> None:
        """Be done with the ledger of a worker that has ended: its counts stay, and its gauges are no more."""
        if self._reader is None or self._memory is None:
            return
        self._apply(self._reader)
        for record in self._reader.records:
            mode = record.about.get("multiprocess_mode", "")
            if mode.startswith("live") and not _is_shared(record):
                self._set(record, 0.0 if mode == "livesum" else math.nan)
        os.close(self._memory)
        self._reader = self._memory = None
        self._shown.clear()

    # ---- numbers of a ledger as metrics ---------------------------------------------------------------------------

    def _apply(self, reader: Reader) -> None:
        for record, numbers in reader.read():
            before = self._shown.get(record.place)
            if numbers == before:
                continue
            self._shown[record.place] = numbers
            if record.about["kind"] == "Gauge":
                if not (_is_shared(record) and math.isnan(numbers[0])):
                    self._set(record, numbers[0])
                continue
            changes = [new - old for new, old in zip(numbers, before or [0.0] * record.count, strict=True)]
            for kind, name, labels, change in added(record.about, changes):
                self._add(kind, name, record.about["help"], labels, change)

    def _set(self, record: Record, value: float) -> None:
        about = record.about
        mode = about["multiprocess_mode"]
        own = {} if _is_shared(record) else {INSTANCE: self._instance}
        self._change("GAUGE", about["name"], about["help"], {**about["labels"], MODE: mode, **own}, "set", value)

    def _add(self, kind: str, name: str, documentation: str, labels: Mapping[str, str], change: float) -> None:
        self._change(kind, name, documentation, labels, "increment", change if math.isfinite(change) else 0.0)

    def _change(
        self, kind: str, name: str, documentation: str, labels: Mapping[str, str], verb: str, value: float
    ) -> None:
        key = name, tuple(labels.items())
        try:
            if key not in self._metrics:
                self._metrics[key] = self._made(kind, name, documentation, labels)
            metric = self._metrics[key]
            if metric is not None and (value or verb == "set"):
                getattr(metric, verb)(value)
        except Exception as error:  # noqa: BLE001  # of a class that exists in Triton's stub only
            self._metrics[key] = None
            text = f"the metric {name} is not on the page, since Triton refuses it: {sentence(error)}"
            worker_log.say(self._entry, "WARNING", text)

    def _made(self, kind: str, name: str, documentation: str, labels: Mapping[str, str]) -> Any:
        family = self._families.get(name)
        if family is None:
            kinds = self._pb_utils.MetricFamily
            # Triton writes the text as it is
            family = kinds(name=name, description=" ".join(documentation.split()), kind=getattr(kinds, kind))
            self._families[name] = _kept(family)
        return _kept(family.Metric(labels=dict(labels)))


def _is_shared(record: Record) -> bool:
    """Whether all instances have one number together: the one that was set last, NaN in a ledger where none was."""
    return bool(record.about.get("multiprocess_mode", "").endswith("mostrecent"))


def added(about: Mapping[str, Any], changes: Sequence[float]) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
    """What is added to which metrics of Triton for the changes of a record: kind, name, labels, number.

    Triton's own histograms take one value at a time, at the price of a message to the server for each; so a histogram
    is written as what it is on the page: a counter for each bucket.
    """
    name, labels = about["name"], about["labels"]
    if about["kind"] == "Counter":
        yield "COUNTER", f"{name}_total", labels, changes[0]
        return
    total, *counts = changes
    if about["kind"] == "Histogram":
        below = 0.0
        for bound, count in zip((*about["buckets"], math.inf), counts, strict=True):
            below += count
            yield "COUNTER", f"{name}_bucket", {**labels, "le": bound_text(bound)}, below
    yield "COUNTER", f"{name}_count", labels, sum(counts)
    yield "GAUGE", f"{name}_sum", labels, total  # values may be negative


def bound_text(bound: float) -> str:
    """The label `le` of a bucket, as prometheus_client writes it."""
    return "+Inf" if math.isinf(bound) else repr(float(bound))


def _kept(found: Any) -> Any:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(found))
    return found

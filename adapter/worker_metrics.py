"""Metrics of user code in a worker: they count in a ledger, which the stub reads and shows on Triton's page.

They stand where those of prometheus_client stand in other processes, and have the methods that `adapter.metrics` calls.
"""

from __future__ import annotations

import bisect
import functools
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adapter.ledger import Ledger

logger = logging.getLogger(__name__)

ledger: Ledger | None = None
"""Where the metrics of this process count; None in every process but a worker."""


def use(found: Ledger) -> None:
    """Let all metrics that are made from now on count in a ledger."""
    global ledger
    ledger = found


class Metric:
    """A metric with all its children; each of them takes `numbers` of the ledger, from its `_place` on."""

    numbers = 1
    first = 0.0

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], options: Mapping[str, Any], into: Ledger
    ) -> None:
        self._about = {"kind": type(self).__name__, "name": name, "help": documentation, **options}
        self._names = tuple(labelnames)
        self._ledger = into
        self._children: dict[tuple[str, ...], Metric] = {}
        self._lock = threading.Lock()
        self._place: int | None = None
        self._prepare(options)
        if not labelnames:
            self._begin({})

    def _prepare(self, options: Mapping[str, Any]) -> None:
        """Read the options of a kind."""

    def _begin(self, labels: Mapping[str, str]) -> None:
        self._place = self._ledger.record({**self._about, "labels": labels}, self.numbers, self.first)
        if self._place is None:
            _too_many(self._about["name"])

    def labels(self, *values: str) -> Metric:
        """The child of these values."""
        child = self._children.get(values)
        if child is None:
            with self._lock:
                child = self._children.get(values)
                if child is None:
                    child = object.__new__(type(self))
                    child.__dict__.update(self.__dict__)
                    child._begin(dict(zip(self._names, values, strict=True)))
                    self._children[values] = child
        return child

    def _count(self, amount: float, at: int) -> None:
        """Add to the sum of values, and one to another number."""
        if self._place is not None:
            self._ledger.add((self._place, amount), (self._place + at, 1))


@functools.cache
def _too_many(name: str) -> None:
    """Say so once for each name."""
    logger.warning("There are too many metrics: %r has labels that are not counted.", name)


class Counter(Metric):
    def inc(self, amount: float = 1) -> None:
        if not amount >= 0:
            raise ValueError("Counters can only be incremented by non-negative amounts.")
        if self._place is not None:
            self._ledger.add((self._place, amount))


class Gauge(Metric):
    def _prepare(self, options: Mapping[str, Any]) -> None:
        self._recent = options["multiprocess_mode"].endswith("mostrecent")
        if self._recent:
            self.first = math.nan  # nobody has set it: what another worker has set stays

    def inc(self, amount: float = 1) -> None:
        if self._recent:
            raise RuntimeError("inc must not be used with the mostrecent mode")
        if self._place is not None:
            self._ledger.add((self._place, amount))

    def dec(self, amount: float = 1) -> None:
        self.inc(-amount)

    def set(self, value: float) -> None:
        if self._place is not None:
            self._ledger.put(self._place, value)

    def set_to_current_time(self) -> None:
        self.set(time.time())


class Histogram(Metric):
    """Its numbers are the sum, and the count of each bucket by itself."""

    def _prepare(self, options: Mapping[str, Any]) -> None:
        bounds = tuple(bound for bound in options["buckets"] if bound < math.inf)
        self._about["buckets"] = self._bounds = bounds
        self.numbers = 1 + len(bounds) + 1

    def observe(self, amount: float) -> None:
        if not math.isnan(amount):
            self._count(amount, 1 + bisect.bisect_left(self._bounds, amount))


class Summary(Metric):
    """Its numbers are the sum and the count."""

    numbers = 2

    def observe(self, amount: float) -> None:
        if not math.isnan(amount):
            self._count(amount, 1)


KINDS = {kind.__name__: kind for kind in (Counter, Gauge, Histogram, Summary)}

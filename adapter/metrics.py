"""Metrics of a person's own code, shown on `/metrics` beside those of the server.

    orders = adapter.metrics.Counter("orders_total", "Orders that were taken.", ["kind"])
    ...
    orders.labels("coffee").inc()

Make them once, where the service is defined, and use them in APIs and hooks: the page is the sum over all workers of
`adapter serve`. In a Runnable, which runs in a process of its own beside Triton, they can be used as well, but are not
on the page.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adapter.exceptions import ConfigException, message_of

try:
    import prometheus_client
    import prometheus_client.multiprocess
    import prometheus_client.parser
except ImportError:  # an entry of a model repository runs without it
    prometheus_client = None  # type: ignore[assignment]  # asked for before each use

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the workers of one service keep their numbers; prometheus_client's own name
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

M = TypeVar("M", bound="_Metric")


@dataclass(frozen=True)
class _Definition:
    kind: str
    name: str
    documentation: str
    labelnames: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def same(self) -> tuple[Any, ...]:
        """What two definitions of one metric have to agree on."""
        return self.kind, self.labelnames, self.options


class _Metric:
    """What the four kinds share: a name, labels, and that a name always leads to the same object.

    It can be pickled, as a Runnable may name it: what arrives is the metric of that name there, not its numbers.
    """

    _kind: ClassVar[str]
    _definition: _Definition
    _labels: tuple[str, ...]
    _own: Any  # prometheus_client's metric, or the one of its children that belongs to the labels

    def labels(self: M, *values: object, **named: object) -> M:
        """The same metric for these values of its labels, given in order or by name.

        Every combination is kept for ever: use labels with few values, never an id.
        """
        try:
            child = self._own.labels(*values, **named)
        except ValueError as error:
            raise ConfigException(f"{self._told}: {message_of(error)}.") from error
        names = self._definition.labelnames
        found = object.__new__(type(self))
        found._definition, found._own = self._definition, child
        found._labels = tuple(str(named[name]) for name in names) if named else tuple(map(str, values))
        return found

    @property
    def _told(self) -> str:
        return f"The {self._kind.lower()} {self._definition.name!r} with the labels {list(self._definition.labelnames)}"

    def __repr__(self) -> str:
        return f"adapter.metrics.{self._kind}({self._definition.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._definition, self._labels)


def _again(cls: type[M], definition: _Definition, labels: tuple[str, ...]) -> M:
    metric = _make(cls, definition)
    return metric.labels(*labels) if labels else metric


_made: dict[str, _Metric] = {}


def _make(cls: type[M], definition: _Definition) -> M:
    options = dict(definition.options)
    name = "_".join(part for part in (options.get("namespace"), options.get("subsystem"), definition.name) if part)
    known = _made.get(name)
    if known is not None:
        if not isinstance(known, cls) or known._definition.same != definition.same:
            raise ConfigException(
                f"There is a metric {name!r} already, {known!r} with the labels {list(known._definition.labelnames)}: "
                "give this one another name, or the same kind, labels and options."
            )
        return known
    metric = object.__new__(cls)
    metric._definition, metric._labels = definition, ()
    metric._own = _NOTHING
    if prometheus_client is not None:
        kind = getattr(prometheus_client, definition.kind)
        try:
            metric._own = kind(definition.name, definition.documentation, definition.labelnames, **options)
        except ValueError as error:
            raise ConfigException(f"The metric {name!r} cannot be made: {message_of(error)}.") from error
    _made[name] = metric
    return metric


def _define(
    cls: type[M], name: str, documentation: str, labelnames: Iterable[str], registry: object, **options: Any
) -> M:
    if registry is not None:
        raise ConfigException(f"The metric {name!r} cannot have a registry of its own: leave `registry=` out.")
    if isinstance(labelnames, str):
        raise ConfigException(f"The label names of {name!r} are {labelnames!r}: give a list, such as [{labelnames!r}].")
    labelnames = tuple(labelnames)
    around = [(part, options[part]) for part in ("namespace", "subsystem", "unit") if options[part]]
    for what, given in (("name of a metric", name), *around, *(("name of a label", label) for label in labelnames)):
        # prometheus_client takes any text, which not every Prometheus can read
        if not isinstance(given, str) or _NAME.fullmatch(given) is None:
            raise ConfigException(f"{given!r} cannot be the {what}: use letters, digits and '_', no digit first.")
    others = tuple(sorted((option, value) for option, value in options.items() if value != ""))
    return _make(cls, _Definition(cls._kind, name, documentation, labelnames, others))


class Counter(_Metric):
    """A number that only grows, such as of requests; its name ends in `_total` on the page."""

    _kind = "Counter"

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: None = None,
    ) -> Counter:
        return _define(
            cls, name, documentation, labelnames, registry, namespace=namespace, subsystem=subsystem, unit=unit
        )

    def inc(self, amount: float = 1) -> None:
        """Add an amount that is not negative."""
        _observable(self).inc(amount)

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> contextlib.AbstractContextManager[Any]:
        """Count the exceptions that leave a `with` block, or a function that this decorates."""
        return _context(_observable(self).count_exceptions(exception))


class Gauge(_Metric):
    """A number that goes up and down, such as of things in a queue.

    `multiprocess_mode` says how the numbers of several workers become one: "livesum" adds those of the workers that
    live, "livemax", "livemin" and "livemostrecent" choose one, "liveall" shows each with the label `pid`.
    """

    _kind = "Gauge"

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: None = None,
        multiprocess_mode: str = "livesum",
    ) -> Gauge:
        return _define(
            cls,
            name,
            documentation,
            labelnames,
            registry,
            namespace=namespace,
            subsystem=subsystem,
            unit=unit,
            multiprocess_mode=multiprocess_mode,
        )

    def inc(self, amount: float = 1) -> None:
        """Add an amount; not with "livemostrecent"."""
        _observable(self).inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Take an amount away; not with "livemostrecent"."""
        _observable(self).dec(amount)

    def set(self, value: float) -> None:
        """Set the number."""
        _observable(self).set(float(value))

    def set_to_current_time(self) -> None:
        """Set it to the seconds since 1970."""
        _observable(self).set_to_current_time()

    def track_inprogress(self) -> contextlib.AbstractContextManager[Any]:
        """Count how often a `with` block, or a function that this decorates, is being run."""
        return _context(_observable(self).track_inprogress())

    def time(self) -> contextlib.AbstractContextManager[Any]:
        """Set it to the seconds that a `with` block, or a function that this decorates, took last."""
        return _context(_observable(self).time())


class _Observing(_Metric):
    """What counts values one by one."""

    def observe(self, amount: float) -> None:
        """Count a value."""
        _observable(self).observe(amount)

    def time(self) -> contextlib.AbstractContextManager[Any]:
        """Count the seconds that a `with` block, or a function that this decorates, takes."""
        return _context(_observable(self).time())


class Histogram(_Observing):
    """How values are spread over `buckets`, each with an upper bound, and their sum."""

    _kind = "Histogram"

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: None = None,
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> Histogram:
        return _define(
            cls,
            name,
            documentation,
            labelnames,
            registry,
            namespace=namespace,
            subsystem=subsystem,
            unit=unit,
            buckets=tuple(buckets),
        )


class Summary(_Observing):
    """How many values there were, and their sum."""

    _kind = "Summary"

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: None = None,
    ) -> Summary:
        return _define(
            cls, name, documentation, labelnames, registry, namespace=namespace, subsystem=subsystem, unit=unit
        )


def generate_latest() -> bytes:
    """The metrics as text: of all workers under `adapter serve`, the server's own included; else of this process."""
    if prometheus_client is None:
        return b""
    registry = prometheus_client.REGISTRY
    if os.environ.get(FOLDER):
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # theirs
    return prometheus_client.generate_latest(registry)


def text_string_to_metric_families(text: str | None = None) -> Iterator[Family]:
    """Read metrics that were written as text, those of `generate_latest` by default, family by family."""
    if prometheus_client is not None:
        if text is None:
            text = generate_latest().decode()
        yield from prometheus_client.parser.text_string_to_metric_families(text)


class _Nothing(contextlib.ContextDecorator):
    """In place of a metric where prometheus_client is not installed: does nothing, whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


_NOTHING = _Nothing()


def _observable(metric: _Metric) -> Any:
    if metric._definition.labelnames and not metric._labels:
        names = ", ".join(f"{name}=…" for name in metric._definition.labelnames)
        raise ConfigException(f"{metric!r} has labels: call `.labels({names})` first.")
    return metric._own


def _context(manager: Any) -> contextlib.AbstractContextManager[Any]:
    found: contextlib.AbstractContextManager[Any] = manager
    return found

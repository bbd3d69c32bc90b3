"""Metrics of a person's own code, shown on `/metrics` beside those of the server.

    orders = adapter.metrics.Counter("orders_total", "Orders that were taken.", ["kind"])
    ...
    orders.labels("coffee").inc()

Make them once, where the service is defined, and use them in APIs, in hooks and in Runnables: the page is the sum over
all workers of `adapter serve` and all instances of a Runnable, wherever they run.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adapter import worker_metrics
from adapter.exceptions import ConfigException, message_of
from adapter.measured import Failures, InProgress, Measured, Timed

try:
    if worker_metrics.ledger is not None:  # a worker of Triton does without it
        raise ImportError
    import prometheus_client
    import prometheus_client.multiprocess
    import prometheus_client.parser
except ImportError:  # an entry of a model repository runs without it
    prometheus_client = None  # type: ignore[assignment]  # asked for before each use

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the workers of one service keep their numbers; prometheus_client's own name
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED = {"Histogram": "le", "Summary": "quantile"}
_SUFFIXES = {
    "Counter": ("", "_total", "_created"),
    "Gauge": ("",),
    "Histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "Summary": ("", "_count", "_sum", "_created"),
}
_MODES = ("livesum", "livemax", "livemin", "livemostrecent", "liveall", "sum", "max", "min", "mostrecent", "all")
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

    @property
    def full_name(self) -> str:
        """The name on the page, as prometheus_client puts it together, without the `_total` of a counter."""
        options = dict(self.options)
        name = "_".join(part for part in (options.get("namespace"), options.get("subsystem"), self.name) if part)
        if self.kind == "Counter":
            name = name.removesuffix("_total")
        unit = options.get("unit", "")
        return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"


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
        names = self._definition.labelnames
        if named and not values and len(named) == len(names) and all(name in named for name in names):
            values = tuple(named[name] for name in names)
        elif named or len(values) != len(names) or not names or self._labels:
            raise ConfigException(self._wrong(values, named))
        texts = tuple([_text(value) for value in values])
        found = object.__new__(type(self))
        found._definition, found._own, found._labels = self._definition, self._own.labels(*texts), texts
        return found

    def _wrong(self, values: Sequence[object], named: Mapping[str, object]) -> str:
        names = self._definition.labelnames
        if not names:
            return f"{self!r} has no labels: name them when it is made, with `labelnames=[…]`."
        if self._labels:
            return f"{self!r} has its labels already: call `.labels(…)` once."
        given = [*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())]
        wanted = ", ".join(f"{name}=…" for name in names)
        return f"{self!r} has other labels than `.labels({', '.join(given)})` gives: call `.labels({wanted})`."

    def __repr__(self) -> str:
        return f"adapter.metrics.{self._kind}({self._definition.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._definition, self._labels)


def _again(cls: type[M], definition: _Definition, labels: tuple[str, ...]) -> M:
    metric = _make(cls, definition)
    return metric.labels(*labels) if labels else metric


_made: dict[str, _Metric] = {}  # by each name that it has on the page


def _make(cls: type[M], definition: _Definition) -> M:
    name = definition.full_name
    names = [name + suffix for suffix in _SUFFIXES[definition.kind]]
    known = next((_made[taken] for taken in names if taken in _made), None)
    if known is not None:
        if not isinstance(known, cls) or known._definition.same != definition.same:
            raise ConfigException(
                f"There is a metric {known._definition.full_name!r} already, {known!r} with the labels "
                f"{list(known._definition.labelnames)}: give {name!r} another name, or the same kind, labels, options."
            )
        return known
    metric = object.__new__(cls)
    metric._definition, metric._labels, metric._own = definition, (), _own(definition)
    _made.update(dict.fromkeys(names, metric))
    return metric


def _own(definition: _Definition) -> Any:
    """What counts: in a worker of Triton a record for its stub, elsewhere prometheus_client's metric."""
    options = dict(definition.options)
    if worker_metrics.ledger is not None:
        kept = {key: value for key, value in options.items() if key in ("buckets", "multiprocess_mode")}
        kind = worker_metrics.KINDS[definition.kind]
        return kind(definition.full_name, definition.documentation, definition.labelnames, kept, worker_metrics.ledger)
    if prometheus_client is None:
        return _NOTHING
    try:
        made = getattr(prometheus_client, definition.kind)
        return made(definition.name, definition.documentation, definition.labelnames, **options)
    except ValueError as error:
        raise ConfigException(f"The metric {definition.full_name!r} cannot be made: {message_of(error)}.") from error


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
    for label in labelnames:
        if label.startswith("__") or label == _RESERVED.get(cls._kind) or labelnames.count(label) > 1:
            raise ConfigException(f"{label!r} cannot be a label of {name!r}: it is taken; use another name.")
    if not isinstance(documentation, str):
        raise ConfigException(f"The documentation of {name!r} is {documentation!r}: give a sentence.")
    if "buckets" in options:
        options["buckets"] = _bounds(name, options["buckets"])
    if options.get("multiprocess_mode", _MODES[0]) not in _MODES:
        raise ConfigException(
            f"The multiprocess_mode of {name!r} is {options['multiprocess_mode']!r}: there are {', '.join(_MODES)}."
        )
    others = tuple(sorted((option, value) for option, value in options.items() if value != ""))
    return _make(cls, _Definition(cls._kind, name, documentation, labelnames, others))


def _bounds(name: str, buckets: Any) -> tuple[float, ...]:
    """The upper bounds of a histogram, the last of them infinite."""
    try:
        found = [float(bound) for bound in buckets]
    except (TypeError, ValueError):
        found = []
    if found[-1:] == [math.inf]:
        found.pop()
    if not found or not all(low < high for low, high in zip((-math.inf, *found), (*found, math.inf), strict=True)):
        raise ConfigException(f"The buckets of {name!r} are {buckets!r}: give numbers in rising order.")
    return (*found, math.inf)


def _text(value: object) -> str:
    """The value of a label, as text that every protocol takes."""
    text = str(value)
    return text if text.isascii() and "\0" not in text else text.encode("utf-8", "replace").decode().replace("\0", "")


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
    ) -> Measured:
        """Count the exceptions that leave a `with` block, or a function that this decorates."""
        _observable(self)
        return Failures(self.inc, exception)


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

    def track_inprogress(self) -> Measured:
        """Count how often a `with` block, or a function that this decorates, is being run."""
        _observable(self)
        return InProgress(self.inc, self.dec)

    def time(self) -> Measured:
        """Set it to the seconds that a `with` block, or a function that this decorates, took last."""
        _observable(self)
        return Timed(self.set)


class _Observing(_Metric):
    """What counts values one by one."""

    def observe(self, amount: float) -> None:
        """Count a value."""
        _observable(self).observe(amount)

    def time(self) -> Measured:
        """Count the seconds that a `with` block, or a function that this decorates, takes."""
        _observable(self)
        return Timed(self.observe)


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
            buckets=buckets,
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


class _Nothing:
    """In place of a metric where prometheus_client is not installed: does nothing, whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self


_NOTHING = _Nothing()


def _observable(metric: _Metric) -> Any:
    if metric._definition.labelnames and not metric._labels:
        names = ", ".join(f"{name}=…" for name in metric._definition.labelnames)
        raise ConfigException(f"{metric!r} has labels: call `.labels({names})` first.")
    return metric._own

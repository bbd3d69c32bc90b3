"""What a benchmark found, as records that become a table, JSON and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from benchmarks.load import Reading


@dataclass(frozen=True)
class Measurement:
    """One contender at one number of connections: medians over the rounds, and each round's requests a second."""

    key: str
    name: str
    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, key: str, name: str, connections: int, readings: Sequence[Reading]) -> Measurement:
        return cls(
            key,
            name,
            connections,
            requests_per_s=statistics.median(r.requests_per_s for r in readings),
            p50_ms=statistics.median(r.p50_ms for r in readings),
            p99_ms=statistics.median(r.p99_ms for r in readings),
            rounds=tuple(r.requests_per_s for r in readings),
        )

    @property
    def spread(self) -> float:
        """How far apart the rounds are, as a part of the median; large where the machine was not quiet."""
        return (max(self.rounds) - min(self.rounds)) / self.requests_per_s


@dataclass(frozen=True)
class Check:
    """A value that was found; `floor` and `ceiling` are what it has to keep to, `aim` is what is hoped for."""

    name: str
    value: float
    floor: float | None = None
    ceiling: float | None = None
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it keeps to its limits; None where it has none."""
        if self.floor is None and self.ceiling is None:
            return None
        return (self.floor is None or self.value >= self.floor) and (self.ceiling is None or self.value <= self.ceiling)


@dataclass(frozen=True)
class Ratio:
    """One contender's figure by another's, at each number of connections; the limits hold at `at` alone.

    `figure` is `requests_per_s`, `p50_ms` or `p99_ms`.
    """

    top: str
    bottom: str
    figure: str = "requests_per_s"
    at: int | None = None
    floor: float | None = None
    ceiling: float | None = None
    aim: float | None = None
    only: bool = False  # at `at` and nowhere else
    sign: ClassVar[str] = "/"

    def value(self, top: float, bottom: float) -> float:
        """One figure by the other."""
        return top / bottom

    def of(self, measurements: Sequence[Measurement]) -> list[Check]:
        """The ratio at each number of connections that both were measured at."""
        found = {(m.key, m.connections): float(getattr(m, self.figure)) for m in measurements}
        checks = []
        for connections in sorted({m.connections for m in measurements}):
            top, bottom = found.get((self.top, connections)), found.get((self.bottom, connections))
            limited = self.at in (None, connections)
            if top is None or not bottom or (self.only and not limited):
                continue
            name = f"{_FIGURES[self.figure]} {self.top}{self.sign}{self.bottom} at {connections}"
            limits = (self.floor, self.ceiling, self.aim) if limited else (None, None, None)
            checks.append(Check(name, self.value(top, bottom), *limits))
        return checks


@dataclass(frozen=True)
class Difference(Ratio):
    """By how much one contender's figure is above another's."""

    sign: ClassVar[str] = " - "

    def value(self, top: float, bottom: float) -> float:
        """One figure less the other."""
        return top - bottom


@dataclass(frozen=True)
class Course:
    """How a figure went: its name, and its value after so many requests, in MiB."""

    name: str
    points: tuple[tuple[int, float], ...]


_FIGURES = {"requests_per_s": "req/s", "p50_ms": "p50", "p99_ms": "p99"}


@dataclass(frozen=True)
class Findings:
    """All that one scenario found, on one machine."""

    scenario: str
    title: str
    machine: Mapping[str, str]
    measurements: tuple[Measurement, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    courses: tuple[Course, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        for check, written in zip(self.checks, record["checks"], strict=True):
            written["met"] = check.met
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Findings:
        return cls(
            record["scenario"],
            record["title"],
            record["machine"],
            tuple(Measurement(**{**m, "rounds": tuple(m["rounds"])}) for m in record["measurements"]),
            tuple(Check(**{k: v for k, v in c.items() if k != "met"}) for c in record["checks"]),
            tuple(record["notes"]),
            tuple(Course(c["name"], tuple((n, value) for n, value in c["points"])) for c in record.get("courses", ())),
        )

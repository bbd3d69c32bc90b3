"""Scenarios that compare contenders under the same load."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import click

from benchmarks import load
from benchmarks.findings import Findings, Measurement, Ratio
from benchmarks.load import Reading, Sample
from benchmarks.server import Server
from benchmarks.stage import Stage

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Effort:
    """How long is measured: each contender in turn, `rounds` times, so that a slow minute hits all of them."""

    rounds: int = 3
    seconds: float = 4
    warm_up_s: float = 1
    connections: tuple[int, ...] | None = None
    requests: int = 500_000  # of scenarios that send a number of them


@dataclass(frozen=True)
class Contender:
    """One endpoint under load; `key` is what ratios call it."""

    key: str
    name: str
    server: Server
    path: str
    samples: Sequence[Sample]
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)

    @property
    def url(self) -> str:
        return self.server.url + self.path


@dataclass(frozen=True)
class Comparison:
    """A scenario: contenders that do the same work, and the ratios between them.

    `contenders` starts what it needs on the stage. `threads` are those of wrk. With `one_at_a_time` the other servers
    are paused while one is under load, for those that are busy when nobody asks them anything. To add a scenario, write
    a file in `benchmarks/scenarios/` with a tuple SCENARIOS.
    """

    name: str
    title: str
    contenders: Callable[[Stage], Sequence[Contender]]
    ratios: Sequence[Ratio]
    connections: tuple[int, ...] = (1, 16, 64)
    threads: int = 1
    notes: tuple[str, ...] = ()
    by_default: bool = True
    one_at_a_time: bool = False

    def run(self, stage: Stage, effort: Effort, machine: Mapping[str, str]) -> Findings:
        """Measure; BenchmarkError where any request fails or is answered wrongly."""
        contenders = self.contenders(stage)
        for contender in contenders:
            load.prepare(contender.url, contender.headers, contender.samples, stage.folder / contender.key)
        measurements = [
            measurement
            for connections in effort.connections or self.connections
            for measurement in self._measure(stage, contenders, connections, effort)
        ]
        checks = tuple(check for ratio in self.ratios for check in ratio.of(measurements))
        return Findings(self.name, self.title, machine, tuple(measurements), checks, self.notes)

    def _measure(
        self, stage: Stage, contenders: Sequence[Contender], connections: int, effort: Effort
    ) -> list[Measurement]:
        def run(contender: Contender, mode: str, seconds: float, threads: int) -> Reading:
            requests = stage.folder / contender.key
            others = {c.server for c in contenders if c.server is not contender.server} if self.one_at_a_time else ()
            with _paused(others):
                return load.run(
                    contender.url, requests, mode=mode, connections=connections, seconds=seconds, threads=threads
                )

        readings: dict[str, list[Reading]] = {contender.key: [] for contender in contenders}
        for contender in contenders:
            run(contender, "check", effort.warm_up_s, connections)
        for number in range(effort.rounds):
            for contender in contenders:
                reading = run(contender, "measure", effort.seconds, self.threads)
                readings[contender.key].append(reading)
                _say(f"{connections:>3} connections, round {number + 1}: {_told(contender, reading)}")
        _say("")
        return [Measurement.of(c.key, c.name, connections, readings[c.key]) for c in contenders]


@contextlib.contextmanager
def _paused(servers: Collection[Server]) -> Iterator[None]:
    for server in servers:
        server.pause()
    try:
        yield
    finally:
        for server in servers:
            server.resume()


def _told(contender: Contender, reading: Reading) -> str:
    return f"({contender.key}) {reading.requests_per_s:8.0f} req/s, p50 {reading.p50_ms:.2f} ms"


def _say(text: str) -> None:
    """Tell a person who watches how far it is, in one line that the next one replaces."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        click.echo("\r" + text[:width].ljust(width) + ("" if text else "\r"), nl=False, err=True)

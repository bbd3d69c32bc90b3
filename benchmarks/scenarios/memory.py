"""Whether a front process grows with the requests that it has answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import load
from benchmarks.comparison import JSON, Effort
from benchmarks.exceptions import BenchmarkError
from benchmarks.findings import Check, Findings
from benchmarks.scenarios.small import CLASSIFIED
from benchmarks.server import rss_bytes
from benchmarks.stage import IRIS, Stage

_CONNECTIONS = 64
_PATHS = ("/classify_async", "/classify")


@dataclass(frozen=True)
class Memory:
    """RSS of the one front process after `first` and after `last` requests, async and sync in turn."""

    name: str = "memory"
    title: str = "Memory of a front worker"
    by_default: bool = True
    first: int = 10_000
    last: int = 100_000
    most: float = 1.05

    def run(self, stage: Stage, effort: Effort, machine: Mapping[str, str]) -> Findings:
        """Send the requests; `effort` does not matter, since their number is given."""
        stage.train_iris()
        server = stage.adapter("service:svc", working_dir=IRIS)
        (worker,) = server.workers()
        folder = stage.folder / "requests"
        for path in _PATHS:
            load.prepare(server.url + path, JSON, CLASSIFIED, folder)
        sent = 0

        def answer(until: int) -> tuple[int, float]:
            nonlocal sent
            while sent < until:
                for path in _PATHS:
                    reading = load.run(server.url + path, folder, mode="measure", connections=_CONNECTIONS, seconds=1)
                    sent += reading.requests
            return sent, rss_bytes(worker) / 2**20

        early, after_early = answer(self.first)
        late, after_late = answer(self.last)
        if server.workers() != [worker]:
            raise BenchmarkError("The front process was replaced under load.")
        growth = Check("RSS after the last / after the first", after_late / after_early, ceiling=self.most)
        notes = (
            f"RSS is {after_early:.1f} MiB after {early:,} requests and {after_late:.1f} MiB after {late:,}, "
            f"half of them async and half sync, at {_CONNECTIONS} connections.",
        )
        return Findings(self.name, self.title, machine, checks=(growth,), notes=notes)


SCENARIOS = (Memory(),)

"""Whether any process grows with the requests that it has answered, over very many of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from benchmarks import answers, load
from benchmarks.comparison import JSON, Effort
from benchmarks.exceptions import BenchmarkError
from benchmarks.findings import Check, Course, Findings
from benchmarks.load import Sample
from benchmarks.server import Server, rss_bytes
from benchmarks.stage import Stage

_CONNECTIONS = 32
_NUMBERS = [Sample(json.dumps([[n]]).encode(), answers.same_json([[-n]])) for n in (1.5, 2.5, 3.5)]
_TEXTS = [Sample(text.encode(), answers.same_text(text.upper())) for text in ("a" * 500, "bc" * 250, "déf" * 100)]
_PATHS: Mapping[str, tuple[Sequence[Sample], Mapping[str, str]]] = {
    "/negate": (_NUMBERS, JSON),
    "/negate_sync": (_NUMBERS, JSON),
    "/shout": (_TEXTS, {"Content-Type": "text/plain"}),
}
_ROUNDS = 25  # readings of the memory, at least


@dataclass(frozen=True)
class Soak:
    """RSS of every process of a service, from a tenth of the requests on, when caches and pools have filled, to all."""

    name: str = "soak"
    title: str = "Memory of all processes under a long load"
    by_default: bool = False
    most: float = 1.05

    def run(self, stage: Stage, effort: Effort, machine: Mapping[str, str]) -> Findings:
        """Send `effort.requests` requests; BenchmarkError where one fails, or a process was replaced."""
        server = stage.adapter("benchmarks.services.soaking:svc")
        for path, (samples, headers) in _PATHS.items():
            load.prepare(server.url + path, headers, samples, stage.folder / path[1:])
        processes = server.processes()
        points: list[tuple[int, dict[str, float]]] = []
        sent, seconds = 0, 1.0
        while sent < effort.requests:
            before = sent
            for path in _PATHS:
                reading = load.run(
                    server.url + path,
                    stage.folder / path[1:],
                    mode="measure",
                    connections=_CONNECTIONS,
                    seconds=seconds,
                )
                sent += reading.requests
            if server.processes() != processes:
                raise BenchmarkError("A process was replaced under load.")
            points.append((sent, _memory(server)))
            # wrk knows whole seconds only
            seconds = max(1, round(seconds * effort.requests / _ROUNDS / (sent - before)))
        self._look(server)
        early = next(point for point in points if point[0] >= effort.requests / 10)
        late = points[-1]
        checks = [
            Check(f"RSS of {kind}, last / after {early[0]:,}", late[1][kind] / early[1][kind], ceiling=self.most)
            for kind in late[1]
        ]
        courses = [Course(kind, tuple((n, memory[kind]) for n, memory in points)) for kind in late[1]]
        grown = ", ".join(f"{kind} {early[1][kind]:.1f} to {late[1][kind]:.1f} MiB" for kind in late[1])
        notes = (
            f"{sent:,} requests at {_CONNECTIONS} connections; between {early[0]:,} of them and the end: {grown}. "
            "A kind with several processes is added up.",
        )
        return Findings(self.name, self.title, machine, checks=tuple(checks), notes=notes, courses=tuple(courses))

    def _look(self, server: Server) -> None:
        """See that what was counted in the Runnables is on the page."""
        page = httpx.get(f"{server.url}/metrics", timeout=10).text
        if 'soaking_calls_total{method="negate"}' not in page:
            raise BenchmarkError("The metrics of the Runnables are not on the page.")


def _memory(server: Server) -> dict[str, float]:
    """MiB of each kind of process."""
    return {kind: sum(map(rss_bytes, pids)) / 2**20 for kind, pids in server.processes().items()}


SCENARIOS = (Soak(),)

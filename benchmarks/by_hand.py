"""Comparisons of one API of ours with the same endpoint written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.comparison import Comparison, Contender
from benchmarks.findings import Ratio
from benchmarks.load import Sample
from benchmarks.server import Server
from benchmarks.stage import Stage

Servers = tuple[Server, Server]


@dataclass(frozen=True)
class Endpoint:
    """A path that both servers have, and what is sent there; `samples` are made when they are needed."""

    name: str
    title: str
    path: str
    samples: Callable[[], Sequence[Sample]]
    headers: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def contenders(self, ours: Server, hand: Server) -> list[Contender]:
        """Both servers at this path, with the same samples."""
        samples = self.samples()
        return [
            Contender("ours", "adapter", ours, self.path, samples, self.headers),
            Contender("hand", "written by hand", hand, self.path, samples, self.headers),
        ]

    def comparison(self, start: Callable[[Stage], Servers], *, floor: float) -> Comparison:
        """The scenario: `start` starts ours, and the one by hand."""
        return Comparison(
            self.name,
            self.title,
            lambda stage: self.contenders(*start(stage)),
            (Ratio("ours", "hand", floor=floor), Ratio("ours", "hand", "p50_ms")),
            connections=(1, 16),
            notes=self.notes,
        )

"""What can be measured: each file here has a tuple SCENARIOS."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

from benchmarks.comparison import Effort
from benchmarks.findings import Findings
from benchmarks.stage import Stage


class Scenario(Protocol):
    """One thing to measure."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def by_default(self) -> bool: ...

    def run(self, stage: Stage, effort: Effort, machine: Mapping[str, str]) -> Findings:
        """Start what is needed on the stage, and measure it; BenchmarkError where anything is answered wrongly."""
        ...


_FIRST = "small"  # what a person wants to see first


def scenarios() -> dict[str, Scenario]:
    """All scenarios, by name; those of one file in the order that it gives them."""
    files = sorted((found.name for found in pkgutil.iter_modules(__path__)), key=lambda name: (name != _FIRST, name))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in files]
    return {scenario.name: scenario for module in modules for scenario in module.SCENARIOS}

"""Entries of saved models for Triton's own backends, where `adapter export --backends` asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from adapter.runner import RunnerSpec
from adapter.triton import spec as spec_file
from adapter.triton.config import Entry
from adapter.triton.export import PlannedEntry, entry_spec, fingerprint_of
from adapter.triton.exporters import Checked, convert


@dataclass
class Conversion:
    """Converts entries as `plan` wants it, and keeps a sentence about what became of each in `told`."""

    backends: Sequence[str]
    told: list[str] = field(default_factory=list)

    def __call__(self, entry: Entry, runner: RunnerSpec) -> PlannedEntry | None:
        """The entry for the first backend that answers as the model itself; None where the python backend keeps it."""
        if runner.model is None:  # a class of Python code
            return None
        (method,) = entry.methods
        found = convert(runner.model, method, self.backends)
        if not isinstance(found, Checked):
            self.told.append(f"{entry.name} stays with the python backend. {'. '.join(found)}.")
            return None
        planned = _planned(entry, runner, found)
        self.told.append(
            f"{planned.name} is served by {found.converted.native.backend}: over {found.parity.rows} rows its labels "
            f"are those of the model, and its scores differ by at most {found.parity.largest_difference:.2g}."
        )
        return planned


def _planned(entry: Entry, runner: RunnerSpec, found: Checked) -> PlannedEntry:
    assert runner.model is not None
    native = found.converted.native
    named = replace(entry, name=f"{entry.name}.{native.backend}", native=native)
    made_of = f"{fingerprint_of(runner.model)}\0{sorted(found.versions.items())}"
    spec = entry_spec(
        named,
        runner,
        fingerprint=hashlib.sha256(made_of.encode()).hexdigest(),
        native=native.to_dict(),
        parity={**found.parity.to_dict(), "versions": dict(found.versions)},
    )
    return PlannedEntry(named, spec, {**found.converted.files, spec_file.FILE: spec.to_json().encode()})

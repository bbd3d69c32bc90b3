"""Which entries of the repository one Triton of the chart serves: read by start.py and probe.py."""

import json
import os
from pathlib import Path

MODELS = Path(os.environ.get("MODELS", "/models"))


def names(variable: str) -> set[str]:
    return set(os.environ.get(variable, "").split())


def entries() -> dict[str, set[str]]:
    """The entries of each runner; a runner of several services has those of all of them."""
    manifest = json.loads((MODELS / "manifest.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for service in manifest["services"].values():
        for runner, methods in service["runners"].items():
            found.setdefault(runner, set()).update(methods.values())
    return found


def needed() -> set[str]:
    """The entries that fronts call here: of the runner of this group, or of those that have no group."""
    own, others, known = names("RUNNERS"), names("OTHER_RUNNERS"), entries()
    if missing := (own | others) - set(known):
        raise SystemExit(
            f"The manifest has no runner {', '.join(sorted(missing))}, which `runners` of the chart's values names "
            f"(it has: {', '.join(sorted(known)) or 'none'})."
        )
    here = own or set(known) - others
    return names("ENTRIES").union(*(known[runner] for runner in here))


def loaded() -> set[str]:
    """The entries to start with: those needed, and in the group of all runners what else lies there.

    What lies there may be called by fronts of before, and by other entries.
    """
    if names("RUNNERS"):
        return needed()
    there = {p.parent.name for p in MODELS.glob("*/config.pbtxt")}
    known = entries()
    elsewhere = set().union(*(known[runner] for runner in names("OTHER_RUNNERS"))) - needed()
    return needed() | (there - elsewhere)

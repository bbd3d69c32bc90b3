"""The sample that is kept beside a saved model: some rows of what it takes, among them those with the extremes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapter.frameworks.trial import numbers

MOST_ROWS = 1000
_MOST_COLUMNS = 200  # of which the extremes are looked for: an image has too many


def thinned(sample: Any) -> Any:
    """A sample of at most `MOST_ROWS` rows: of a longer one, those with the least and the greatest value of each column
    and, from the first to the last, as many of the others as there is room for.

    What has no rows stays as it is, and so do several arguments with different numbers of rows.
    """
    if isinstance(sample, Mapping):
        return dict(zip(sample, thinned(tuple(sample.values())), strict=True))
    parts = sample if isinstance(sample, tuple) else (sample,)
    lengths = {_rows(part) for part in parts}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is None or length <= MOST_ROWS:
        return sample
    chosen = _extremes(parts)
    spread = np.unique(np.linspace(0, length - 1, MOST_ROWS - len(chosen)).astype(int)).tolist()
    rows = sorted({*chosen, *spread})
    kept = tuple(_taken(part, rows) for part in parts)
    return kept if isinstance(sample, tuple) else kept[0]


def _rows(part: Any) -> int | None:
    if isinstance(part, list) or hasattr(part, "iloc"):
        return len(part)
    shape = getattr(part, "shape", None)
    return int(shape[0]) if shape else None


def _taken(part: Any, rows: list[int]) -> Any:
    if isinstance(part, list):
        return [part[i] for i in rows]
    return part.iloc[rows] if hasattr(part, "iloc") else part[rows]


def _extremes(parts: tuple[Any, ...]) -> set[int]:
    """The rows with the least and the greatest value of each column of the tables of numbers among some arguments."""
    found: set[int] = set()
    for part in parts:
        table = numbers(part)
        if table is None or table.ndim != 2 or table.shape[1] > _MOST_COLUMNS:
            continue
        for column in table.T:
            known = np.flatnonzero(column == column)  # NaN is neither the least nor the greatest
            if len(known):
                found |= {int(known[column[known].argmin()]), int(known[column[known].argmax()])}
    return found

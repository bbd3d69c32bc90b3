from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import models
from adapter.frameworks import picklable_model
from adapter.frameworks.sample import MOST_ROWS, thinned

TABLE = np.random.default_rng(0).normal(size=(5000, 3))


@pytest.mark.parametrize(
    "sample", ["text", ["a", "b"], {"a": 1}, {}, (), ("a", TABLE[:5]), 3, np.float32(1), [[1], [2, 3]]]
)
def test_thinned_when_there_is_nothing_to_leave_out(sample: Any) -> None:
    assert repr(thinned(sample)) == repr(sample)


def test_thinned_keeps_the_extremes_of_each_column() -> None:
    table = TABLE.copy()
    table[7] = np.nan
    for sample in (table, pd.DataFrame(table)):
        found = np.asarray(thinned(sample))
        assert len(found) <= MOST_ROWS
        assert np.array_equal(np.nanmin(found, axis=0), np.nanmin(table, axis=0))
        assert np.array_equal(np.nanmax(found, axis=0), np.nanmax(table, axis=0))
    assert type(thinned(pd.DataFrame(table))) is pd.DataFrame


def test_thinned_takes_the_same_rows_of_several_arguments() -> None:
    numbers = list(range(5000))
    table, labels = thinned((TABLE, numbers))
    assert np.array_equal(table, TABLE[labels])
    assert thinned({"a": TABLE, "b": numbers})["b"] == labels
    assert len(thinned((TABLE, numbers[:-1]))[0]) == 5000


def test_thinned_when_the_rows_are_images_or_text() -> None:
    assert thinned(np.zeros((1200, 30, 30), "uint8")).shape == (MOST_ROWS, 30, 30)
    words = [str(i) for i in range(3000)]
    found = thinned(words)
    assert (found[0], found[-1], len(found)) == ("0", "2999", MOST_ROWS)


@settings(max_examples=25)
@given(st.integers(MOST_ROWS + 1, 4 * MOST_ROWS), st.integers(1, 250))
def test_thinned_is_never_longer_than_it_may_be(rows: int, width: int) -> None:
    table = np.random.default_rng(rows).integers(0, 1000, (rows, width))
    found = thinned(table)
    assert 0 < len(found) <= MOST_ROWS


@pytest.mark.parametrize(
    "sample", [TABLE[:3], pd.DataFrame({"a": ["x", None]}), ["a", "b"], (TABLE[:2], ["a"]), {"record": {"a": 1}}]
)
def test_sample_of_a_saved_model_is_the_one_that_was_given(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))
    picklable_model.save_model("m", len, sample=sample)
    assert repr(models.get("m").sample) == repr(sample)


def test_sample_that_cannot_travel_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path))
    assert picklable_model.save_model("m", len, sample=object()).sample is None

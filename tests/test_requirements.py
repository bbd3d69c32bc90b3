from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from sklearn.svm import SVC

from adapter.requirements import is_installed, pickled_modules, requirements_of, versions_of


def test_requirements_name_the_distribution_of_a_module() -> None:
    import sklearn
    import yaml

    lines = list(requirements_of(["sklearn", "yaml", "json", "no_such_module"]))
    assert lines == [f"PyYAML=={yaml.__version__}", f"scikit-learn=={sklearn.__version__}"]
    assert versions_of([]) == {}


def uses_pandas(rows: Any) -> Any:
    return pd.DataFrame(rows)


uses_pandas.__module__ = "__main__"  # so that its pickle holds its code


@pytest.mark.parametrize(
    ("value", "modules"),
    [
        (SVC(), {"sklearn"}),
        ({"a": [np.zeros(3), "pandas", "yaml"]}, {"numpy"}),
        (uses_pandas, {"pandas", "cloudpickle"}),
        (Path("x"), set()),
        ([SVC, SVC(), {"again": SVC()}], {"sklearn"}),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_modules_are_those_that_loading_imports(
    value: Any, modules: set[str], protocol: int, tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "value.pkl").write_bytes(cloudpickle.dumps(value, protocol=protocol))
    assert pickled_modules(tmp_path) == modules


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2])[:-3], b"\x80\x05\xff"])
def test_pickled_modules_when_the_file_is_no_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.pkl").write_bytes(content)
    assert pickled_modules(tmp_path) == set()


def test_modules_of_ones_own_are_not_installed() -> None:
    assert is_installed("numpy")
    assert not is_installed("tests")
    assert not is_installed("json")
    assert not is_installed("no_such_module")

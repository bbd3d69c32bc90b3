from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapter import _LAZY
from tests.frameworks import environments
from tests.frameworks.environments import GROUPS, Group, Result

HERE = Path(__file__).parent


def test_every_framework_has_tests() -> None:
    frameworks = {name for name, place in _LAZY.items() if ".frameworks." in place}
    assert {f"test_{name}.py" for name in frameworks} <= {path.name for path in HERE.glob("test_*.py")}
    named = [file for group in GROUPS.values() for file in group.tests]
    assert len(named) == len(set(named))
    assert all((HERE / file).exists() for file in named)


def test_groups_take_the_lower_bounds_of_the_extras() -> None:
    project = (environments.ROOT / "pyproject.toml").read_text()
    for group in GROUPS.values():
        assert all(f"\n{extra} = [" in project for extra in group.extras)
        # what an extra does not say: a build for CPUs alone, or the one version that all of them bear
        assert all("==" in each or each.startswith("tensorflow-cpu>=") for each in group.requirements)


MISSING = [
    ("pytorch", "torch", "torch"),
    ("torchscript", "torch", "torch"),
    ("keras", "keras", "keras"),
    ("tensorflow", "tensorflow", "tensorflow"),
    ("transformers", "transformers", "transformers"),
    ("diffusers", "diffusers", "diffusers"),
    ("flax", "flax", "flax"),
    ("fastai", "fastai", "fastai"),
    ("mlflow", "mlflow", "mlflow"),
    ("easyocr", "easyocr", "easyocr"),
]


@pytest.mark.parametrize(("framework", "library", "extra"), MISSING)
def test_library_that_is_missing_is_named_with_its_extra(framework: str, library: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "import adapter\n"
        f"try: adapter.{framework}.save_model('m', '/tmp')\n"
        "except adapter.exceptions.MissingDependencyException as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == (
        f"{library} is not installed, and adapter.{framework} needs it: run `pip install 'triton-adapter[{extra}]'`.\n"
    )
    assert f"\n{extra} = [" in (environments.ROOT / "pyproject.toml").read_text()


def test_files_of_groups_are_left_out_where_nobody_names_them() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", str(HERE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=environments.ROOT)
    assert "test_sklearn.py" in done.stdout
    assert "test_flax.py" not in done.stdout


def test_counts_when_some_failed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError\ndef test_d(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", str(tmp_path), f"--junit-xml={report}"]
    subprocess.run(command, check=False, capture_output=True, cwd=tmp_path)
    assert environments.counts(report) == (1, 3)
    assert environments.counts(tmp_path / "none.xml") == (0, 0)


def test_table_when_a_file_ran_no_test() -> None:
    results = [
        Result("flax", "test_flax.py", "flax 1.0, jax 2.0", 6, 0, 12.4),
        Result("vision", "test_fastai.py", "fastai 3.0", 4, 1, 100),
        Result("mlflow", "test_mlflow.py", "mlflow 4.0", 0, 0, 1),
    ]
    assert environments.table(results) == [
        "group   tests           libraries          result              seconds",
        "flax    test_flax.py    flax 1.0, jax 2.0  6 passed            12",
        "vision  test_fastai.py  fastai 3.0         4 passed, 1 FAILED  100",
        "mlflow  test_mlflow.py  mlflow 4.0         ran no test         1",
    ]


def test_group_whose_library_is_missing_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is no skip: an environment that was made wrongly would else pass."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    group = Group((), (), ("test_easyocr.py",), ())
    (result,) = environments.tried("bare", group, tmp_path)
    assert (result.passed, result.failed) == (0, 1)
    assert "No module named 'easyocr'" in capfd.readouterr().out


def test_main_when_a_group_is_unknown() -> None:
    with pytest.raises(SystemExit):
        environments.main(["flaxx"])

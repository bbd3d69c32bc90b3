"""The environments in which frameworks are tried: `python -m tests.frameworks.environments [GROUP …]`.

Libraries whose pins agree share one, in `.venv-frameworks/<group>`, which is kept until its requirements change. Its
tests fail, not skip, where a library is missing. The last lines are a table of what was tried.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-frameworks"
_TESTS = "tests/frameworks"
_OF_EVERY_GROUP = ("pytest>=8.2", "pytest-timeout>=2.3")
# the last PyTorch that the libraries here agree on; a package index may have it as a CPU build
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Group:
    """Libraries that one environment holds; `tests` are the files that need them, `shown` what the table names.

    `extras` are those of `pyproject.toml`, whose lower bounds hold here too; `requirements` are what else is needed.
    `warnings` are pytest's `-W`: a library that warns when it is imported would fail its tests.
    """

    extras: tuple[str, ...]
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    shown: tuple[str, ...]
    warnings: str = "error"


GROUPS = {
    "torch": Group(
        ("torch", "lightning"),
        (_TORCH,),
        ("test_pytorch.py", "test_torchscript.py", "test_pytorch_lightning.py", "test_libtorch.py"),
        ("torch", "pytorch-lightning"),
    ),
    "huggingface": Group(
        ("transformers", "diffusers"),
        (_TORCH,),
        ("test_transformers.py", "test_diffusers.py"),
        ("transformers", "diffusers"),
    ),
    # the extra's own tensorflow would bring the libraries of CUDA
    "tensorflow": Group(
        (), ("tensorflow-cpu>=2.16",), ("test_keras.py", "test_tensorflow.py"), ("keras", "tensorflow-cpu")
    ),
    "flax": Group(("flax",), (), ("test_flax.py",), ("flax", "jax")),
    "mlflow": Group(("mlflow", "sklearn"), (), ("test_mlflow.py",), ("mlflow",)),
    # torchvision knows no CPU build of torch: this one brings the libraries of CUDA, several gigabytes
    "vision": Group(
        ("fastai", "easyocr"),
        ("torch==2.14.1", "torchvision==0.29.1"),
        ("test_fastai.py", "test_easyocr.py"),
        ("fastai", "easyocr", "torch"),
        warnings="ignore",
    ),
    "catboost": Group(("catboost",), (), ("test_catboost.py",), ("catboost",)),
}


@dataclass(frozen=True)
class Result:
    """What became of one file of tests."""

    group: str
    file: str
    libraries: str
    passed: int
    failed: int
    seconds: float

    @property
    def text(self) -> str:
        if not self.passed and not self.failed:
            return "ran no test"
        return f"{self.passed} passed" + (f", {self.failed} FAILED" if self.failed else "")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frameworks.environments", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; by default all")
    parser.add_argument("--python", default=sys.executable, help="the Python that the environments are made of")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the environments lie")
    given = parser.parse_args(arguments)
    for name in given.groups:
        if name not in GROUPS:
            parser.error(f"there is no group {name!r}; there are {', '.join(GROUPS)}")
    results: list[Result] = []
    for name in given.groups or GROUPS:
        environment = made(given.folder / name, GROUPS[name], given.python)
        results += tried(name, GROUPS[name], environment)
    print("\n".join(table(results)))
    wrong = [r for r in results if r.failed or not r.passed]
    passed, failed = sum(r.passed for r in results), sum(r.failed for r in results)
    print(f"{passed} passed, {failed} failed")
    return 1 if wrong else 0


def made(folder: Path, group: Group, python: str) -> Path:
    """An environment with the libraries of a group, made anew where what it was made of has changed."""
    stamp, project = folder / "made-of", (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = subprocess.run([python, "-VV"], check=True, capture_output=True, text=True).stdout
    of = [digest(version, *group.extras, *group.requirements), digest(project, *_OF_EVERY_GROUP)]
    before = stamp.read_text().split() if stamp.exists() else []
    if before == of:
        return folder
    print(f"making {folder}: {', '.join((*group.extras, *group.requirements))}", flush=True)
    if before[:1] != of[:1]:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    stamp.unlink(missing_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    itself = f"{ROOT}[{','.join(group.extras)}]" if group.extras else str(ROOT)
    subprocess.run([*pip, "--editable", itself, *group.requirements, *_OF_EVERY_GROUP], check=True)
    stamp.write_text("\n".join(of))
    return folder


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def tried(name: str, group: Group, environment: Path) -> Iterator[Result]:
    """Run the tests of a group, each file by itself; libraries of two files may not bear each other's threads."""
    programs = environment / "bin"
    found = versions(programs / "python", group.shown)
    for file in group.tests:
        report = environment / f"{Path(file).stem}.xml"
        report.unlink(missing_ok=True)
        print(f"\n{name}: {file}", flush=True)
        began = time.monotonic()
        command = [str(programs / "python"), "-m", "pytest", f"{_TESTS}/{file}", f"--junit-xml={report}"]
        # a worker for each entry imports the library anew, which takes its time where they are many
        command += ["-W", group.warnings, "--timeout=600"]
        # the command line of adapter that tests run is this environment's
        path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, check=False)
        passed, failed = counts(report)
        yield Result(name, file, found, passed, failed, time.monotonic() - began)


def versions(python: Path, distributions: Sequence[str]) -> str:
    code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    done = subprocess.run([str(python), "-c", code, *distributions], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def counts(report: Path) -> tuple[int, int]:
    """How many tests passed and failed; a skipped one counts as failed, since each of these has what it needs."""
    if not report.exists():
        return 0, 0
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    numbers = [[int(s.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")] for s in suites]
    failed = sum(sum(row[1:]) for row in numbers)
    return sum(row[0] for row in numbers) - failed, failed


def table(results: Sequence[Result]) -> list[str]:
    head = ("group", "tests", "libraries", "result", "seconds")
    rows = [head, *((r.group, r.file, r.libraries, r.text, f"{r.seconds:.0f}") for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

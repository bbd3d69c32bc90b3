from __future__ import annotations

import importlib.metadata
import re

import pytest

from benchmarks import machine


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some  CPU @ 3GHz \nprocessor\t: 1\nmodel name\t: B\n",
            "Some CPU @ 3GHz",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", ""),
        ("", ""),
    ],
)
def test_cpu_model(cpuinfo: str, model: str) -> None:
    assert machine.cpu_model(cpuinfo) == model


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ("cpu  130 0 20 700 150 0 0 0 0 0\ncpu0 1 2 3\n", 0.4),  # 30 + 10 of 100 at work, 40 idle, 20 for a disk
        ("cpu  100 0 10 760 130 0 0 0 0 0\ncpu0 1 2 3\n", 0.0),
        ("cpu  100 0 10 660 130 0 0 0 0 0\ncpu0 1 2 3\n", 0.0),  # no time has gone by
    ],
)
def test_busy(after: str, share: float) -> None:
    before = "cpu  100 0 10 660 130 0 0 0 0 0\ncpu0 1 2 3\n"
    assert machine.busy(before, after) == pytest.approx(share)


def test_libraries_that_are_not_installed_are_left_out() -> None:
    installed = {"triton-adapter": "0.1", "numpy": "2.0"}

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    assert machine.libraries(version) == "adapter 0.1, numpy 2.0"


def test_describe_names_what_matters() -> None:
    found = machine.describe("2.51.0", "4.1.0")
    assert int(found["CPUs"]) >= 1
    assert found["Triton"] == "2.51.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert all(found.values())

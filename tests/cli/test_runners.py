from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import adapter
from adapter.cli import main

SERVICE = """
import adapter

class Chips(adapter.Strategy):
    @classmethod
    def get_worker_count(cls, runnable_class, resource_request, workers_per_resource):
        return resource_request["chips"]
    @classmethod
    def get_worker_env(cls, runnable_class, resource_request, workers_per_resource, worker_index):
        return {"CUDA_VISIBLE_DEVICES": "0,1"}

class Two(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu", "nvidia.com/gpu")
    @adapter.Runnable.method(batchable=True)
    def first(self, x): ...
    @adapter.Runnable.method
    def second(self, x): ...

class Stream(adapter.Runnable):
    @adapter.Runnable.method
    def words(self, text):
        yield text

class Typed(adapter.Runnable):
    @adapter.Runnable.method(batchable=True, input_spec=("float32", (-1, 2)), output_spec=("int64", (-1,)))
    def f(self, rows): ...

svc = adapter.Service("shown", runners=[
    adapter.Runner(Two, max_batch_size=7),
    adapter.Runner(Typed, cpu=2),
    adapter.Runner(Typed, name="chips", strategy=Chips, custom_resources={"chips": 3}),
    adapter.Runner(Two, name="inside", embedded=True),
])
others = adapter.Service("others", runners=[
    adapter.Runner(Stream), adapter.triton.Runner("theirs", "grpc://127.0.0.1:1")
])
bare = adapter.Service("bare")
"""
SETTINGS = """
runners:
  max_latency_ms: 900
  two:
    max_wait_ms: 5
    runnable_method_configs: {first: {max_wait_ms: 2}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shown.py").write_text(SERVICE)
    (tmp_path / "adapter.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("shown", "modelled"):
        sys.modules.pop(name, None)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["runners", *arguments])


def records(*arguments: str) -> list[dict[str, Any]]:
    done = invoke("shown.py:svc", "-o", "json", *arguments)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


def row(text: str, *cells: str) -> Sequence[str]:
    """The one row of the tables that begins with some cells; the first table for a runner and a method alone."""
    if len(cells) == 2 and cells[1] in ("first", "second", "f"):
        text = text.partition("Setting")[0]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    (found,) = [cells_of for cells_of in rows if tuple(cells_of[: len(cells)]) == cells]
    return found


def test_table_tells_how_each_method_is_served() -> None:
    text = invoke("shown.py:svc", "--gpus", "2").output
    assert row(text, "two", "first")[2:] == [
        "shown.two",
        "one blob",
        "up to 7 items, waits 2 ms, 503 after 900 ms",
        "2",
        "GPU 0, 1",
    ]
    assert row(text, "two", "second")[2:] == ["shown.two", "one blob", "none", "2", "GPU 0, 1"]
    assert row(text, "typed", "f")[2:] == [
        "shown.typed",
        "rows float32[-1, 2] -> output_0 int64[-1]",
        "up to 100 items, 503 after 900 ms",
        "2",
        "CPU, 1 thread each",
    ]
    assert row(text, "chips", "f")[5:] == ["3", "GPUs 0,1 together"]
    assert row(text, "inside", "first")[2:] == ["embedded", "one blob", "none", "one in each front", "CPU"]
    assert "Placed on 2 GPUs, as --gpus says, and " in text


def test_table_tells_where_each_setting_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_CONFIG_OPTIONS", "runners.typed.cpu=1 runners.workers_per_resource=2")
    text = invoke("shown.py:svc").output
    assert row(text, "two", "first", "max_batch_size")[3:] == ["7", "code"]
    assert row(text, "two", "first", "max_latency_ms")[3:] == ["900", "adapter.yaml:3"]
    assert row(text, "two", "first", "max_wait_ms")[3:] == ["2", "adapter.yaml:6"]
    assert row(text, "two", "cpu")[2:] == ["-", "default"]
    assert row(text, "two", "workers_per_resource")[2:] == ["2", "environment ADAPTER_CONFIG_OPTIONS"]
    assert row(text, "typed", "cpu")[2:] == ["1", "environment ADAPTER_CONFIG_OPTIONS"]
    assert row(text, "typed", "f", "max_batch_size")[3:] == ["100", "default"]
    assert row(text, "chips", "custom_resources")[2:] == ['{"chips": 3}', "code"]
    assert "inside  " not in text[text.index("Setting") :]


def test_json_says_the_same() -> None:
    two, typed, chips, inside = records("--gpus", "none", "--prefix", "blue")
    assert two["serves"].endswith(".Two")
    first, second = two["methods"]
    assert first["entry"] == "blue.shown.two"
    assert first["batching"] == {"max_batch_size": 7, "max_latency_ms": 900.0, "max_wait_ms": 2.0}
    assert second["batching"] is None
    assert first["devices"] == ["CPU, 1 thread each"]
    assert typed["methods"][0]["inputs"] == [{"name": "rows", "dtype": "float32", "shape": [-1, 2]}]
    assert chips["methods"][0]["instances"] == 3
    assert inside["methods"][0] == {
        "method": "first",
        "entry": None,
        "inputs": None,
        "stream": False,
        "outputs": None,
        "batching": None,
        "instances": None,
        "devices": [],
    }
    assert (inside["runs"], inside["settings"]) == ("embedded", [])
    assert {"method": None, "setting": "cpu", "value": 2.0, "from": "code"} in typed["settings"]


def test_saved_model_has_an_entry_for_each_method(folder: Path) -> None:
    adapter.picklable_model.save_model("shown_model", len, signatures={"__call__": {"batchable": True}})
    (folder / "modelled.py").write_text(
        "import adapter\n"
        "runner = adapter.picklable_model.get('shown_model').to_runner(max_wait_ms=1)\n"
        "svc = adapter.Service('modelled', runners=[runner])\n"
    )
    done = CliRunner().invoke(main, ["runners", "modelled.py:svc", "--config", "/dev/null", "-o", "json"])
    (found,) = json.loads(done.output)
    assert found["serves"].startswith("shown_model:")
    assert [method["entry"] for method in found["methods"]] == ["shown_model.__call__"]
    assert found["methods"][0]["batching"]["max_wait_ms"] == 1


def test_streams_and_entries_that_exist_already_are_told_as_such(folder: Path) -> None:
    (folder / "adapter.yaml").unlink()
    text = invoke("shown.py:others").output
    assert row(text, "stream", "words")[2:5] == ["others.stream", "one blob", "none, it streams"]
    assert row(text, "theirs", "theirs")[2:] == ["theirs", "as it is", "none", "as it is", "as it is"]


def test_service_without_runners_says_so(folder: Path) -> None:
    (folder / "adapter.yaml").unlink()
    assert invoke("shown.py:bare").output == "bare has no runner.\n"
    assert json.loads(invoke("shown.py:bare", "-o", "json").output) == []


@pytest.mark.parametrize("gpus", ["-1", "two", "1.5", ""])
def test_number_of_gpus_that_is_none_is_refused(gpus: str) -> None:
    done = invoke("shown.py:svc", f"--gpus={gpus}")
    assert done.exit_code == 2
    assert "is neither a number of GPUs nor 'none'" in done.output


def test_what_cannot_be_placed_is_one_sentence(folder: Path) -> None:
    (folder / "adapter.yaml").write_text("runners: {two: {nvidia_gpu: [5]}}")
    done = invoke("shown.py:svc", "--gpus", "2")
    assert done.exit_code == 1
    assert "The runner 'two' names GPU 5, but the machine has 2 GPUs" in done.output
    assert "Traceback" not in done.output


def test_export_tells_what_it_placed_instances_on(folder: Path) -> None:
    done = CliRunner().invoke(main, ["export", "shown.py:svc", "--gpus", "3", "--repository", "repository"])
    assert done.exit_code == 0, done.output
    assert "Instances are placed on 3 GPUs, as --gpus says, and " in done.output
    config = (folder / "repository" / "shown.two" / "config.pbtxt").read_text()
    assert "kind: KIND_GPU" in config
    assert config.count("gpus:") == 3
    done = CliRunner().invoke(main, ["export", "shown.py:svc", "--gpus", "none", "--repository", "repository"])
    assert "Instances are placed on no GPU, as --gpus says, and " in done.output
    assert "kind: KIND_CPU" in (folder / "repository" / "shown.two" / "config.pbtxt").read_text()
    done = CliRunner().invoke(main, ["export", "shown.py:svc", "--repository", "repository"])
    assert "as this machine has; --gpus says what another has" in done.output

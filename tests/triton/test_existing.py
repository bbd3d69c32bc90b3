"""Runners of entries that exist already, before Triton is asked, and with a server that answers texts like it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import adapter
from adapter.exceptions import ConfigException, EngineError, ExportError, InvalidArgument, StateException
from adapter.loader import load_service
from adapter.services import Service
from adapter.triton.client import TritonClient
from adapter.triton.copies import read_config, refuse_wrong_numbers
from adapter.triton.existing import ExistingTransport
from adapter.triton.export import ExportPlan, plan, write
from adapter.triton.manifest import Manifest
from tests.triton.project import MACHINE

PAGE = Path(__file__).parents[2] / "docs" / "native-backends.md"


def entry(folder: Path, name: str, text: str = 'backend: "python" max_batch_size: 4') -> Path:
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    (folder / name / "config.pbtxt").write_text(text)
    (folder / name / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    return folder


def methods(runner: adapter.Runner) -> dict[str, bool]:
    return {name: method.signature.batchable for name, method in runner.spec.methods.items()}


def test_entries_of_a_folder_are_methods(tmp_path: Path) -> None:
    entry(tmp_path, "one")
    entry(tmp_path, "two", "max_batch_size: 0")
    (tmp_path / "notes").mkdir()
    assert methods(adapter.triton.Runner("r", tmp_path)) == {"one": True, "two": False}
    assert methods(adapter.triton.Runner("r", tmp_path, models=["two"])) == {"two": False}
    chosen = adapter.triton.Runner("r", tmp_path, cli_args=["--model-control-mode=explicit", "--load-model=one"])
    assert methods(chosen) == {"one": True}
    assert chosen.async_run is not None
    assert chosen.one.name == "one"


def test_entry_of_a_triton_is_called_like_the_runner() -> None:
    assert methods(adapter.triton.Runner("resnet", "grpc://triton:8001")) == {"resnet": False}
    assert methods(adapter.triton.Runner("r", "grpc://triton:8001", models=["a", "b"])) == {"a": False, "b": False}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tritonserver_type": "http"}, "over gRPC"),
        ({"cli_args": ["--http-port=1"]}, "--http-port=1"),
        ({"models": ["three"]}, "has no entry 'three'; it has one"),
        ({"models": ["a/b"]}, "cannot be the name of an entry"),
        ({"models": [3]}, "cannot be the name of an entry"),
        ({"models": "one"}, "models is a list of entries"),
        ({"max_latency_ms": -1}, "max_latency_ms"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(tmp_path: Path, options: Any, reason: str) -> None:
    entry(tmp_path, "one")
    with pytest.raises(InvalidArgument, match=reason):
        adapter.triton.Runner("r", tmp_path, **options)


@pytest.mark.parametrize("place", [None, "", "http://triton:8000", "grpc://"])
def test_place_that_is_no_folder_and_no_triton_is_refused(place: Any) -> None:
    with pytest.raises(InvalidArgument, match="model_repository is a folder, or the address of a Triton"):
        adapter.triton.Runner("r", place)


@pytest.mark.parametrize("name", ["destroy", "spec", "name"])
def test_entry_that_hides_what_a_runner_has_is_refused(tmp_path: Path, name: str) -> None:
    entry(tmp_path, name)
    with pytest.raises(InvalidArgument, match="give the method another name"):
        adapter.triton.Runner("r", tmp_path)


def test_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    entry(tmp_path, "one", "max_batch_size: many")
    with pytest.raises(ConfigException, match=r"one/config\.pbtxt cannot be read"):
        adapter.triton.Runner("r", tmp_path)


def test_runner_of_triton_cannot_run_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(StateException, match="cannot run in this process"):
        adapter.triton.Runner("r", "grpc://triton:8001").init_local(quiet=True)


def test_page_of_the_documentation_runs(tmp_path: Path) -> None:
    entry(tmp_path / "by_hand", "encoder")
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "documented.py").write_text(code)
    (runner,) = load_service("documented:svc", tmp_path).runners
    assert methods(runner) == {"encoder": True}


# ---- copies ---------------------------------------------------------------------------------------------------------


def planned(*runners: adapter.Runner, name: str = "s") -> ExportPlan:
    return plan(Service(name, runners=runners), folder=Path.cwd(), machine=MACHINE)


def changes(given: ExportPlan, repository: Path) -> dict[str, tuple[int, bool]]:
    return {w.name: (w.version, w.changed) for w in write(given, repository)}


def test_entries_are_copied_whole_and_again_when_they_change(tmp_path: Path) -> None:
    source, target = entry(tmp_path / "source", "one"), tmp_path / "target"
    entry(source, "helper")
    (source / "helper" / "2").mkdir()
    (source / "one" / "1" / "__pycache__").mkdir()
    (source / "one" / "1" / "__pycache__" / "model.pyc").write_bytes(b"")
    runner = adapter.triton.Runner("r", source, models=["one"])
    # what the runner does not call may be called by what it does
    assert changes(planned(runner), target) == {"helper": (2, True), "one": (1, True)}
    assert changes(planned(runner), target) == {"helper": (2, False), "one": (1, False)}
    assert not list(target.rglob("__pycache__"))
    assert Manifest.read(target).entries("s", "r") == {"one": "one"}
    (source / "one" / "1" / "model.py").write_text("class TritonPythonModel:\n    pass\n")
    assert changes(planned(runner), target) == {"helper": (2, False), "one": (1, True)}
    assert (target / "one" / "1" / "model.py").read_text() == (source / "one" / "1" / "model.py").read_text()
    assert not [p for p in target.iterdir() if p.name.startswith(".one")]


def test_entry_of_others_is_not_overwritten(tmp_path: Path) -> None:
    source, target = entry(tmp_path / "source", "one"), entry(tmp_path / "target", "one", "max_batch_size: 0")
    with pytest.raises(ExportError, match="is another entry than"):
        write(planned(adapter.triton.Runner("r", source)), target)
    assert read_config(target, "one").max_batch_size == 0


def test_folder_may_be_the_repository_itself(tmp_path: Path) -> None:
    entry(tmp_path, "one")
    assert changes(planned(adapter.triton.Runner("r", tmp_path)), tmp_path) == {"one": (1, False)}


def test_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    one, other = entry(tmp_path / "a", "one"), entry(tmp_path / "b", "one")
    with pytest.raises(ExportError, match="have one name, 'one'"):
        planned(adapter.triton.Runner("r", one), adapter.triton.Runner("q", other))
    assert len(planned(adapter.triton.Runner("r", one), adapter.triton.Runner("q", one)).copies) == 1


def test_folder_that_is_missing_is_named_when_it_is_needed(tmp_path: Path) -> None:
    runner = adapter.triton.Runner("r", tmp_path / "missing")
    with pytest.raises(ExportError, match=r"missing, where there are none: each is a folder with a config\.pbtxt"):
        planned(runner)


def test_triton_elsewhere_brings_nothing_into_the_repository(tmp_path: Path) -> None:
    assert changes(planned(adapter.triton.Runner("r", "grpc://triton:8001")), tmp_path) == {}


@pytest.mark.parametrize("code", ["x = tensor.as_numpy()", "answer = pb_utils.Tensor('Y', y)"])
def test_code_that_triton_would_give_wrong_numbers_is_refused(tmp_path: Path, code: str) -> None:
    source = entry(tmp_path, "one")
    copies = planned(adapter.triton.Runner("r", source)).copies
    refuse_wrong_numbers(copies)
    (source / "one" / "1" / "model.py").write_text(code)
    if np.__version__.startswith("1."):
        refuse_wrong_numbers(copies)
    else:
        with pytest.raises(EngineError, match=r"one/1/model\.py calls .*wrong numbers.*numpy<2"):
            refuse_wrong_numbers(copies)


# ---- texts, and entries that a runner cannot call --------------------------------------------------------------------


class Texts(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """As much of Triton as a runner asks: it answers texts as they came, behind one another."""

    def __init__(self, **config: Any) -> None:
        self._config = config
        self.requests: list[Any] = []

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = pb.ModelConfigResponse()
        answer.config.max_batch_size = 4
        answer.config.input.add(name="text", data_type="TYPE_STRING", dims=[1])
        answer.config.input.add(name="more", data_type="TYPE_FP16", dims=[-1], optional=True)
        answer.config.output.add(name="text", data_type="TYPE_STRING", dims=[1])
        for key in self._config:
            getattr(answer.config, key).SetInParent()
        if "model_transaction_policy" in self._config:
            answer.config.model_transaction_policy.decoupled = True
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        answer = pb.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="text", datatype="BYTES", shape=request.inputs[0].shape)
        answer.raw_output_contents.append(request.raw_input_contents[0])
        return answer


def called(triton: Texts, call: Callable[[adapter.Runner], Any]) -> Any:
    async def main() -> Any:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        client = TritonClient(f"127.0.0.1:{port}")
        runner = adapter.triton.Runner("texts", f"grpc://127.0.0.1:{port}")
        runner.connect(ExistingTransport(client, runner.spec))
        try:
            return await call(runner)
        finally:
            runner.destroy()
            await client.close()
            await server.stop(0)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "value",
    [
        [["a"], ["grüße"], [""]],
        [[b"\x00\xff\x00"], ["b"]],
        np.array([["a"], ["bc"]]),
        np.array([[b"a"], [b"bc"]]),
        np.array([["a", b"b"]], dtype=object).T,
        [[str(i)] for i in range(11)],  # more than a batch
    ],
)
def test_texts_come_back_as_bytes(value: Any) -> None:
    found = called(Texts(), lambda runner: runner.async_run(value))
    expected = [[v.encode() if isinstance(v, str) else v for v in row] for row in np.asarray(value, object).tolist()]
    assert found.tolist() == expected
    assert found.dtype == object


def test_optional_inputs_are_sent_where_they_are_given() -> None:
    triton = Texts()

    async def calls(runner: Any) -> None:
        await runner.async_run([["a"]])
        await runner.texts.async_run(more=[[1.0, 2.0]], text=[["a"]])

    called(triton, calls)
    assert [[i.name for i in r.inputs] for r in triton.requests] == [["text"], ["text", "more"]]
    assert [i.datatype for i in triton.requests[1].inputs] == ["BYTES", "FP16"]
    assert np.frombuffer(triton.requests[1].raw_input_contents[1], np.float16).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1.5]], "holds float"),
        (np.zeros((1, 1)), "takes texts or bytes, not float64"),
        ("a", r"takes an array of shape \(-1, 1\).*but \(\) came"),
        (np.zeros((0, 1), "U1"), "batch size above 0"),
    ],
)
def test_values_that_are_no_texts_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        called(Texts(), lambda runner: runner.async_run(value))


@pytest.mark.parametrize(
    ("what", "reason"), [("model_transaction_policy", "any number of times"), ("sequence_batching", "keeps state")]
)
def test_entries_that_answer_in_other_ways_are_refused(what: str, reason: str) -> None:
    with pytest.raises(StateException, match=reason):
        called(Texts(**{what: True}), lambda runner: runner.async_run([["a"]]))

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.method import MethodSpec, methods_of
from adapter.model import BatchingConfig
from adapter.runnable import Runnable
from adapter.triton.config import BLOB, INTERFACE, Entry, Placement, method_record, model_config, to_text

ROWS = ("float32", (-1, 4))


class Methods(Runnable):
    @Runnable.method
    def plain(self, x: Any) -> Any: ...

    @Runnable.method(batchable=True)
    def batched(self, x: Any) -> Any: ...

    @Runnable.method(batchable=True, input_spec=ROWS, output_spec=[("int64", (-1,)), ("float64", (-1, 2))])
    def typed(self, x: Any) -> Any: ...

    @Runnable.method(input_spec={"a": ("uint8", (2, -1)), "b": ("bool", ())}, output_spec=("float16", (3,)))
    def typed_alone(self, a: Any, b: Any) -> Any: ...

    @Runnable.method(batchable=True, batch_dim=(1, 2), input_spec=("int8", (3, -1)), output_spec=("int32", (4, 5, -1)))
    def axes(self, x: Any) -> Any: ...

    @Runnable.method(batchable=True, input_spec=("str", (-1,)), output_spec=("int64", (-1,)))
    def words(self, x: Any) -> Any: ...

    @Runnable.method(batchable=True, input_spec=ROWS, output_spec=ROWS)
    def same(self, x: Any) -> Any: ...

    @Runnable.method(batchable=True, input_spec=ROWS, output_spec=ROWS)
    def as_same(self, x: Any) -> Any: ...


LIMITS = {"batched": BatchingConfig(8, 500), "typed": BatchingConfig(16, 60_000)}
METHODS = methods_of(Methods, lambda name: LIMITS.get(name, BatchingConfig()))


def entry(*methods: str, name: str = "s.r", placement: Placement | None = None) -> Entry:
    return Entry(name, "r", tuple(METHODS[m] for m in methods), placement or Placement(2))


def read(given: Entry) -> pb.ModelConfig:
    """What Triton reads of the file."""
    return text_format.Parse(to_text(model_config(given)), pb.ModelConfig())


def tensors(found: Any) -> list[tuple[str, str, list[int]]]:
    return [(t.name, pb.DataType.Name(t.data_type), list(t.dims)) for t in found]


BLOBS = [(BLOB, "TYPE_UINT8", [-1])]


@pytest.mark.parametrize(
    ("methods", "most", "inputs", "outputs"),
    [
        (["plain"], 0, BLOBS, BLOBS),
        (["batched"], 8, BLOBS, BLOBS),
        (["plain", "batched", "typed"], 16, BLOBS, BLOBS),
        (["words"], 100, BLOBS, BLOBS),
        (
            ["typed"],
            16,
            [("x", "TYPE_FP32", [4])],
            [("output_0", "TYPE_INT64", [1]), ("output_1", "TYPE_FP64", [2])],
        ),
        (
            ["typed_alone"],
            0,
            [("a", "TYPE_UINT8", [2, -1]), ("b", "TYPE_BOOL", [1])],
            [("output_0", "TYPE_FP16", [3])],
        ),
        (["axes"], 100, [("x", "TYPE_INT8", [3])], [("output_0", "TYPE_INT32", [4, 5])]),
        (["same", "as_same"], 100, [("x", "TYPE_FP32", [4])], [("output_0", "TYPE_FP32", [4])]),
        (["same", "typed"], 100, BLOBS, BLOBS),
    ],
)
def test_config_has_batching_and_tensors_of_the_methods(
    methods: list[str], most: int, inputs: Any, outputs: Any
) -> None:
    config = read(entry(*methods))
    assert (config.name, config.backend, config.max_batch_size) == ("s.r", "python", most)
    assert tensors(config.input) == inputs
    assert tensors(config.output) == outputs
    # requests of several lengths are joined by the worker, not by Triton
    assert all(t.allow_ragged_batch == (most > 0) for t in config.input)


def test_batchable_entry_has_dynamic_batching_without_a_queue_policy() -> None:
    config = read(entry("batched"))
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_entry_that_is_not_batchable_says_so_in_the_file() -> None:
    given = entry("plain", name="backend.max_batch_size")
    assert "max_batch_size: 0\n" in to_text(model_config(given))
    config = read(given)
    assert config.name == "backend.max_batch_size"
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("placement", "kind", "count", "gpus"),
    [
        (Placement(), "KIND_CPU", 1, []),
        (Placement(3, threads=1), "KIND_CPU", 3, []),
        (Placement(1, gpus=(0, 1)), "KIND_GPU", 1, [0, 1]),
    ],
)
def test_instances_are_placed(placement: Placement, kind: str, count: int, gpus: list[int]) -> None:
    (group,) = read(entry("plain", placement=placement)).instance_group
    assert (pb.ModelInstanceGroup.Kind.Name(group.kind), group.count, list(group.gpus)) == (kind, count, gpus)


def test_text_is_the_same_each_time() -> None:
    assert to_text(model_config(entry("typed"))) == to_text(model_config(entry("typed")))


# ---- the interface --------------------------------------------------------------------------------------------------


def test_interface_is_written_into_the_config() -> None:
    given = entry("typed")
    assert read(given).parameters[INTERFACE].string_value == given.interface
    assert len(given.interface) == 16


def variant(**options: Any) -> Entry:
    class Variant(Runnable):
        pass

    limits = options.pop("limits", BatchingConfig())
    names = options.pop("names", ["f"])
    function = options.pop("function", lambda self, x: x)
    for name in names:
        Variant.add_method(function, name, **options)
    methods: tuple[MethodSpec, ...] = tuple(methods_of(Variant, lambda name: limits).values())
    return Entry("s.r", "r", methods)


@pytest.mark.parametrize(
    "options",
    [
        {"names": ["g"]},
        {"names": ["f", "g"]},
        {"batchable": True},
        {"batchable": True, "batch_dim": 1},
        {"batchable": True, "limits": BatchingConfig(8)},
        {"batchable": True, "limits": BatchingConfig(max_latency_ms=5)},
        {"function": lambda self, y: y},
        {"function": lambda self, x, y=1: y},
        {"input_spec": ROWS, "output_spec": ROWS},
        {"input_spec": ROWS, "output_spec": ("float64", (-1, 4))},
    ],
)
def test_interface_changes_with_what_a_front_must_know(options: Any) -> None:
    assert variant(**options).interface != variant().interface
    assert variant(**options).interface == variant(**options).interface


def test_interface_stays_when_name_or_placement_changes() -> None:
    assert entry("typed").interface == entry("typed", name="other", placement=Placement(9)).interface


def test_method_record_can_be_read_again() -> None:
    record = method_record(METHODS["batched"])
    assert record == {
        "name": "batched",
        "batchable": True,
        "batch_dim": [0, 0],
        "parameters": [{"name": "x", "kind": "POSITIONAL_OR_KEYWORD", "required": True}],
        "max_batch_size": 8,
        "max_latency_ms": 500,
    }

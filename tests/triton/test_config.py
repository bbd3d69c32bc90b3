from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.method import MethodSpec, methods_of
from adapter.model import BatchingConfig
from adapter.runnable import Runnable
from adapter.triton.config import BLOB, INTERFACE, Entry, method_record, model_config, to_text
from adapter.triton.placement import Group, Placement

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
    return Entry(name, "r", tuple(METHODS[m] for m in methods), placement or Placement((Group(2),)))


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


def test_instances_are_placed() -> None:
    def groups(*given: Group) -> list[tuple[str, str, int, list[int]]]:
        found = read(entry("plain", placement=Placement(given))).instance_group
        return [(g.name, pb.ModelInstanceGroup.Kind.Name(g.kind), g.count, list(g.gpus)) for g in found]

    assert groups(Group()) == [("s.r", "KIND_CPU", 1, [])]
    assert groups(Group(3, environment={"OMP_NUM_THREADS": "1"})) == [("s.r", "KIND_CPU", 3, [])]
    assert groups(Group(1, (0, 1))) == [("s.r", "KIND_GPU", 1, [0, 1])]
    assert groups(Group(2, environment={"CUDA_VISIBLE_DEVICES": "0,1"}), Group(1, (2,))) == [
        ("s.r_0", "KIND_MODEL", 2, []),
        ("s.r_1", "KIND_GPU", 1, [2]),
    ]


@pytest.mark.parametrize(
    ("methods", "waits", "expected"),
    [(["batched"], [2.5], 2500), (["batched", "typed"], [5, 1], 1000), (["batched", "typed"], [5, 0], 0)],
)
def test_requests_wait_no_longer_than_any_method_allows(methods: list[str], waits: list[float], expected: int) -> None:
    limits = {m: BatchingConfig(max_wait_ms=w) for m, w in zip(methods, waits, strict=True)}
    specs = tuple(methods_of(Methods, lambda name: limits.get(name, BatchingConfig()))[m] for m in methods)
    config = read(Entry("s.r", "r", specs))
    assert config.dynamic_batching.max_queue_delay_microseconds == expected
    assert not config.dynamic_batching.HasField("default_queue_policy")


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
    assert entry("typed").interface == entry("typed", name="other", placement=Placement((Group(9),))).interface


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


class Streaming(Runnable):
    @Runnable.method(input_spec={"x": ROWS}, output_spec=ROWS)
    def rows(self, x: Any) -> Any:
        yield x

    @Runnable.method
    async def words(self, text: str) -> Any:
        yield text


def test_entry_of_generators_answers_by_streams_of_blobs() -> None:
    methods = methods_of(Streaming, lambda name: BatchingConfig())
    for some in (("rows", "words"), ("rows",)):
        entry = Entry("e", "r", tuple(methods[name] for name in some))
        config = model_config(entry)
        assert not entry.typed
        assert config.model_transaction_policy.decoupled
        assert [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)] == [
            (BLOB, pb.TYPE_UINT8, [-1])
        ] * 2
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")
        assert [method_record(m)["stream"] for m in entry.methods] == [True] * len(some)


def test_front_that_expects_no_stream_sees_another_interface() -> None:
    method = methods_of(Streaming, lambda name: BatchingConfig())["words"]
    as_function = dataclasses.replace(method, stream=False)
    assert Entry("e", "r", (method,)).interface != Entry("e", "r", (as_function,)).interface

"""Entries of a model repository, and their `config.pbtxt`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.method import MethodSpec

INTERFACE = "adapter_interface"  # the parameter of config.pbtxt with the fingerprint that readiness compares
BLOB = "payload"  # the one tensor of an entry that is not typed
_WIRE_VERSION = 2


@dataclass(frozen=True)
class Placement:
    """Where the instances of an entry run: how many, on which GPUs (none: CPU), with how many threads each."""

    count: int = 1
    gpus: tuple[int, ...] = ()
    threads: int | None = None


@dataclass(frozen=True)
class Entry:
    """One model of a Triton repository: a saved model's method, or a Runnable with all of its methods."""

    name: str
    runner: str
    methods: tuple[MethodSpec, ...]
    placement: Placement = Placement()

    @cached_property
    def typed(self) -> bool:
        """Whether its tensors are the method's own: there is one method, or all have the same signature."""
        first = self.methods[0].signature
        return all(m.typed and m.signature == first for m in self.methods)

    @cached_property
    def batched(self) -> bool:
        return any(m.signature.batchable for m in self.methods)

    @cached_property
    def max_batch_size(self) -> int:
        """Items in one Triton request, 0 where Triton sees no batch axis."""
        return max((m.batching.max_batch_size for m in self.methods if m.signature.batchable), default=0)

    @cached_property
    def interface(self) -> str:
        """A fingerprint of what a front must agree on: methods, tensors and batching."""
        text = json.dumps(
            [_WIRE_VERSION, self.typed, *([m.name, method_record(m)] for m in self.methods)], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_record(method: MethodSpec) -> Mapping[str, Any]:
    """What `spec.json` says of a method."""
    return {
        "name": method.name,
        **method.signature.to_dict(),
        "max_batch_size": method.batching.max_batch_size,
        "max_latency_ms": method.batching.max_latency_ms,
    }


def model_config(entry: Entry) -> pb.ModelConfig:
    """The complete configuration of an entry; Triton need not (and does not) complete it.

    Source: model_configuration.md of the Triton server.
    """
    config = pb.ModelConfig(name=entry.name, backend="python", max_batch_size=entry.max_batch_size)
    method = entry.methods[0]
    if entry.typed:
        first = 1 if entry.batched else 0
        for spec in method.inputs:
            shape = method.wire_shape(spec, method.signature.batch_dim[0])
            config.input.add(
                name=spec.name, data_type=f"TYPE_{spec.triton}", dims=shape[first:], allow_ragged_batch=entry.batched
            )
        for spec in method.outputs:
            shape = method.wire_shape(spec, method.signature.batch_dim[1])
            config.output.add(name=spec.name, data_type=f"TYPE_{spec.triton}", dims=shape[first:])
    else:
        config.input.add(name=BLOB, data_type=pb.TYPE_UINT8, dims=[-1], allow_ragged_batch=entry.batched)
        config.output.add(name=BLOB, data_type=pb.TYPE_UINT8, dims=[-1])
    place = entry.placement
    kind = pb.ModelInstanceGroup.KIND_GPU if place.gpus else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(name=entry.name, kind=kind, count=place.count, gpus=place.gpus)
    if entry.batched:
        # No queue policy: with any of its settings, Triton's batcher hands nothing ahead to a busy instance and then
        # sleeps up to 0.5 s between batches (measured on 2.51; triton-inference-server/server#8870 for later ones).
        # The client keeps `max_latency_ms` itself, and Triton drops a waiting request when its call is cancelled.
        config.dynamic_batching.SetInParent()
    config.parameters[INTERFACE].string_value = entry.interface
    return config


def to_text(config: pb.ModelConfig) -> str:
    """The text of `config.pbtxt`."""
    text = str(text_format.MessageToString(config))
    # protobuf's text leaves out a 0, and Triton would then complete the batch size by itself
    return text if config.max_batch_size else text.replace("backend:", "max_batch_size: 0\nbackend:", 1)

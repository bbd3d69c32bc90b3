"""Entries of a model repository, and their `config.pbtxt`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter.method import MethodSpec
from adapter.triton.native import Native
from adapter.triton.placement import Placement

INTERFACE = "adapter_interface"  # the parameter of config.pbtxt with the fingerprint that readiness compares
BLOB = "payload"  # the one tensor of an entry that is not typed
_WIRE_VERSION = 2


@dataclass(frozen=True)
class Entry:
    """One model of a Triton repository: a saved model's method, or methods of a Runnable that share an object.

    All of them are generators, or none is: Triton answers a request once, or ("decoupled") any number of times.
    `native` is set where another backend than Triton's python one serves it.
    """

    name: str
    runner: str
    methods: tuple[MethodSpec, ...]
    placement: Placement = field(default_factory=Placement)
    native: Native | None = None

    @property
    def stream(self) -> bool:
        """Whether a request is answered by a stream of values."""
        return self.methods[0].stream

    @cached_property
    def typed(self) -> bool:
        """Whether its tensors are the method's own: there is one method, or all have the same signature."""
        first = self.methods[0].signature
        return not self.stream and all(m.typed and m.signature == first for m in self.methods)

    @cached_property
    def batched(self) -> bool:
        return any(m.signature.batchable for m in self.methods)

    @cached_property
    def max_batch_size(self) -> int:
        """Items in one Triton request, 0 where Triton sees no batch axis."""
        if self.batched and self.native is not None and self.native.max_batch_size:
            return self.native.max_batch_size
        return max((m.batching.max_batch_size for m in self.methods if m.signature.batchable), default=0)

    @property
    def max_wait_ms(self) -> float:
        """How long Triton keeps a request back for others: no longer than any of the methods allows."""
        return min((m.batching.max_wait_ms for m in self.methods if m.signature.batchable), default=0)

    @cached_property
    def interface(self) -> str:
        """A fingerprint of what a front must agree on: methods, tensors and batching."""
        record = [_WIRE_VERSION, self.typed, *([m.name, method_record(m)] for m in self.methods)]
        if self.native is not None:
            record.append(self.native.to_dict())
        text = json.dumps(record, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_record(method: MethodSpec) -> Mapping[str, Any]:
    """What `spec.json` says of a method."""
    return {
        "name": method.name,
        **method.signature.to_dict(),
        "max_batch_size": method.batching.max_batch_size,
        "max_latency_ms": method.batching.max_latency_ms,
        **({"stream": True} if method.stream else {}),
    }


def model_config(entry: Entry, version: int | None = None) -> pb.ModelConfig:
    """The complete configuration of an entry; Triton need not (and does not) complete it.

    It serves `version` and no other, so that a version which is being written, or tried, is loaded by nobody; None is
    the latest. Source: model_configuration.md of the Triton server.
    """
    config = _python_config(entry) if entry.native is None else _native_config(entry, entry.native)
    if version is not None:
        config.version_policy.specific.versions.append(version)
    return config


def _python_config(entry: Entry) -> pb.ModelConfig:
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
    groups = entry.placement.groups
    for i, group in enumerate(groups):
        # the backend finds the environment of an instance by the name of its group
        name = entry.name if len(groups) == 1 else f"{entry.name}_{i}"
        config.instance_group.add(name=name, kind=group.kind, count=group.count, gpus=group.gpus)
    if entry.batched:
        # No queue policy: with any of its settings, Triton's batcher hands nothing ahead to a busy instance and then
        # sleeps up to 0.5 s between batches (measured on 2.51; triton-inference-server/server#8870 for later ones).
        # The client keeps `max_latency_ms` itself, and Triton drops a waiting request when its call is cancelled.
        config.dynamic_batching.SetInParent()
        config.dynamic_batching.max_queue_delay_microseconds = round(entry.max_wait_ms * 1000)
    if entry.stream:
        config.model_transaction_policy.decoupled = True
    config.parameters[INTERFACE].string_value = entry.interface
    return config


def _native_config(entry: Entry, native: Native) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name=entry.name,
        backend=native.backend,
        platform=native.platform,
        max_batch_size=native.max_batch_size,
        default_model_filename=native.file,
    )
    for tensors, add in ((native.inputs, config.input.add), (native.outputs, config.output.add)):
        for tensor in tensors:
            added = add(name=tensor.name, data_type=f"TYPE_{tensor.dtype}", dims=tensor.dims)
            if tensor.scalar:
                added.reshape.SetInParent()  # to no axis at all
    gpus = sorted({gpu for group in entry.placement.groups for gpu in group.gpus})
    config.instance_group.add(name=entry.name, kind="KIND_GPU" if gpus else native.kind, count=1, gpus=gpus)
    if entry.batched and native.max_batch_size:
        config.dynamic_batching.SetInParent()
        config.dynamic_batching.max_queue_delay_microseconds = round(entry.max_wait_ms * 1000)
    for name, value in native.parameters.items():
        config.parameters[name].string_value = value
    config.parameters[INTERFACE].string_value = entry.interface
    return config


def to_text(config: pb.ModelConfig) -> str:
    """The text of `config.pbtxt`."""
    text = str(text_format.MessageToString(config))
    # protobuf's text leaves out a 0, and Triton would then complete the batch size by itself
    return text if config.max_batch_size else text.replace("backend:", "max_batch_size: 0\nbackend:", 1)

"""OpenVINO: models of adapter.onnx.

Its dims are whole shapes: the backend's own batching serves one batch size only (its README, "Known Issues"). Calls are
joined by the client all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array
from adapter.triton.exporters import graph
from adapter.triton.exporters.base import CannotConvert, Converted, Exporter
from adapter.triton.native import Native


class OpenVino(Exporter):
    backend = "openvino"
    libraries = {"onnx": "onnx", "openvino": "openvino"}  # noqa: RUF012  # declared ClassVar in Exporter

    def convert(self, model: Model, method: MethodSpec) -> Iterator[Converted]:
        if model.info.module != "adapter.onnx":
            raise CannotConvert(f"OpenVINO serves models of adapter.onnx, not {model.info.module}")
        found = graph.saved(model, method, batched=False)
        yield Converted(native_of(found), {graph.FILE: found.content}, _runner(found))


def native_of(found: graph.Graph) -> Native:
    return Native("openvino", found.inputs, found.outputs, file=graph.FILE, kind="KIND_CPU")


def _runner(found: graph.Graph) -> Callable[[Sequence[Array]], Sequence[Array]]:
    import openvino

    compiled = openvino.Core().compile_model(openvino.Core().read_model(found.content), "CPU")

    def run(arrays: Sequence[Array]) -> Sequence[Array]:
        answered = compiled({t.name: a for t, a in zip(found.inputs, arrays, strict=True)})
        return [answered[t.name] for t in found.outputs]

    return run

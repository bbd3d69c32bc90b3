"""ONNX Runtime: models of adapter.onnx, and those of scikit-learn that skl2onnx can convert."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array, numpy_dtype
from adapter.triton.exporters import graph
from adapter.triton.exporters.base import CannotConvert, Converted, Exporter, Run
from adapter.triton.native import Native, NativeTensor


class OnnxRuntime(Exporter):
    backend = "onnxruntime"
    libraries = {"onnx": "onnx", "onnxruntime": "onnxruntime", "skl2onnx": "skl2onnx"}  # noqa: RUF012  # ClassVar

    def convert(self, model: Model, method: MethodSpec) -> Iterator[Converted]:
        batched = method.signature.batchable
        if model.info.module == "adapter.onnx":
            graphs = iter([graph.saved(model, method, batched=batched)])
        elif model.info.module == "adapter.sklearn":
            graphs = graph.of_sklearn(model, method)
        else:
            raise CannotConvert(
                f"ONNX Runtime serves models of adapter.onnx and adapter.sklearn, not {model.info.module}"
            )
        for found in graphs:
            native = Native(
                self.backend,
                found.inputs,
                found.outputs,
                platform="onnxruntime_onnx",
                file=graph.FILE,
                kind="KIND_AUTO",
                max_batch_size=method.batching.max_batch_size if batched else 0,
                columns=found.columns,
            )
            run = functools.partial(_run, _Session(found.content), found.inputs, [t.name for t in found.outputs])
            yield Converted(native, {graph.FILE: found.content}, run, scores=_scores(model, found))


class _Session:
    """A session of onnxruntime, made when it is first used."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @functools.cached_property
    def opened(self) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(self._content, providers=["CPUExecutionProvider"])


def _run(
    session: _Session, inputs: Sequence[NativeTensor], outputs: Sequence[str] | None, arrays: Sequence[Array]
) -> Sequence[Array]:
    pairs = zip(inputs, arrays, strict=True)
    given = {t.name: (a[..., 0] if t.scalar else a).astype(numpy_dtype(t.dtype), copy=False) for t, a in pairs}
    return [np.asarray(a) for a in session.opened.run(outputs, given)]


def _scores(model: Model, found: graph.Graph) -> tuple[Run, Run] | None:
    if not found.scored:
        return None
    native = model.load_model()
    return (
        functools.partial(_run, _Session(found.scored), found.inputs, None),
        lambda arrays: [native.predict_proba(arrays[0])],
    )

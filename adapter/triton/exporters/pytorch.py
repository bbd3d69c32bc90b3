"""LibTorch: modules compiled to TorchScript.

Tensors are named INPUT__0, OUTPUT__0 and so on, which the backend reads as positions. Source: its README.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adapter.frameworks.torchscript import undeprecated
from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array, TensorSpec
from adapter.triton.exporters.base import CannotConvert, Converted, Exporter, demand_first_axis, tensor_dims
from adapter.triton.native import Native, NativeTensor

_FILE = "model.pt"
_SAVED = "saved_model.pt"
_MODULES = ("adapter.torchscript", "adapter.pytorch_lightning")
# what libtorch has no tensor for: https://pytorch.org/docs/stable/tensors.html
_UNKNOWN = ("UINT16", "UINT32", "UINT64")


class PyTorch(Exporter):
    backend = "pytorch"
    libraries = {"torch": "torch"}  # noqa: RUF012  # declared ClassVar in Exporter

    def convert(self, model: Model, method: MethodSpec) -> Iterator[Converted]:
        if model.info.module not in _MODULES:
            raise CannotConvert(f"LibTorch serves models of {' and '.join(_MODULES)}, not {model.info.module}")
        demand_first_axis(method)
        content = _evaluated((model.folder / _SAVED).read_bytes())
        yield Converted(native_of(method), {_FILE: content}, _runner(content, method))


def native_of(method: MethodSpec) -> Native:
    """How LibTorch serves a method, whichever module it is of."""
    if method.name not in ("__call__", "forward"):
        raise CannotConvert(f"LibTorch calls forward, and not {method.name}")
    batched = method.signature.batchable
    return Native(
        "pytorch",
        tuple(_tensor("INPUT", i, spec, method) for i, spec in enumerate(method.inputs)),
        tuple(_tensor("OUTPUT", i, spec, method) for i, spec in enumerate(method.outputs)),
        platform="pytorch_libtorch",
        file=_FILE,
        kind="KIND_AUTO",
        max_batch_size=method.batching.max_batch_size if batched else 0,
        parameters={"INFERENCE_MODE": "true"},
    )


def _tensor(name: str, index: int, spec: TensorSpec, method: MethodSpec) -> NativeTensor:
    if spec.triton is None or spec.triton in _UNKNOWN:
        raise CannotConvert(f"{spec.name} is of {spec.dtype}, which LibTorch has no tensors of")
    first = 1 if method.signature.batchable else 0
    scalar = len(spec.shape) == first
    return NativeTensor(f"{name}__{index}", spec.triton, tensor_dims(method, spec.shape) or (1,), scalar=scalar)


def _evaluated(content: bytes) -> bytes:
    """The file of a module in its eval mode: nobody says whether LibTorch puts one into it."""
    import torch

    with undeprecated():
        module: Any = torch.jit.load(io.BytesIO(content), map_location="cpu")
        if not any(getattr(part, "training", False) for part in module.modules()):
            return content
        file = io.BytesIO()
        torch.jit.save(module.eval(), file)
    return file.getvalue()


def _runner(content: bytes, method: MethodSpec) -> Callable[[Sequence[Array]], Sequence[Array]]:
    import torch

    with undeprecated():
        module: Any = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def run(arrays: Sequence[Array]) -> Sequence[Array]:
        given = [
            torch.from_numpy(a.reshape(a.shape[:-1]) if len(spec.shape) < a.ndim else a)
            for a, spec in zip(arrays, method.inputs, strict=True)
        ]
        with torch.inference_mode():
            result = module(*given)
        return [r.numpy() for r in (result if isinstance(result, (tuple, list)) else (result,))]

    return run

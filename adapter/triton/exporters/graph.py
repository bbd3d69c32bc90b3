"""ONNX graphs: where they come from, and what they take and return as `config.pbtxt` has it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter.exceptions import sentence
from adapter.frameworks.sklearn import parts
from adapter.method import MethodSpec
from adapter.model import Model
from adapter.triton.exporters.base import CannotConvert, demand_first_axis
from adapter.triton.native import NativeTensor

FILE = "model.onnx"
_SAVED = "saved_model.onnx"  # of adapter.onnx
_OPSETS = {"": 17, "ai.onnx.ml": 3}  # which every Triton since 23.01 reads
_MOST_BYTES = 2**31 - 1  # of a protobuf message
# elem_type of onnx.TensorProto
_TRITON_OF_ONNX = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
}


@dataclass(frozen=True)
class Graph:
    """One graph that does what a method does, with the names of a data frame's columns where they matter.

    `scored` is the same with the scores of a classifier in the place of its labels.
    """

    content: bytes
    inputs: tuple[NativeTensor, ...]
    outputs: tuple[NativeTensor, ...]
    columns: tuple[str, ...] = ()
    scored: bytes = b""


def saved(model: Model, method: MethodSpec, *, batched: bool) -> Graph:
    """The graph of a model of adapter.onnx."""
    import onnx

    whole = onnx.load(str(model.folder / _SAVED))
    return _graph(_serialized(whole), whole.graph, method, batched)


def of_sklearn(model: Model, method: MethodSpec) -> Iterator[Graph]:
    """The graphs that skl2onnx makes of a model of scikit-learn, with the numbers that it takes and with float32."""
    import skl2onnx
    from skl2onnx.common import data_types

    native = model.load_model()
    (spec,) = method.inputs
    output = _OUTPUT_OF_SKLEARN.get(method.name)
    if output is None or len(method.outputs) != 1:
        raise CannotConvert(f"skl2onnx has {', '.join(_OUTPUT_OF_SKLEARN)}, and no {method.name}")
    if any(np.isinf(getattr(getattr(part, "tree_", None), "threshold", 0)).any() for part in parts(native)):
        raise CannotConvert("it has splits on missing values, which skl2onnx never gets done with")
    columns = tuple(map(str, getattr(native, "feature_names_in_", ())))
    kinds = [data_types.FloatTensorType]
    if spec.dtype != "float32":
        kinds.insert(0, data_types.DoubleTensorType)
    refused: Exception | None = None
    for kind in kinds:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole = skl2onnx.to_onnx(
                    native,
                    initial_types=[("input", kind([None, *spec.shape[1:]]))],
                    options={id(native): {"zipmap": False}} if hasattr(native, "predict_proba") else None,
                    target_opset=_OPSETS,
                )
                names = [value.name for value in whole.graph.output]
                found = _only(whole, next((n for n in output if n in names), names[0]))
                scored = b""
                if method.name == "predict" and hasattr(native, "predict_proba"):
                    scored = _serialized(_only(whole, names[1]))
        except CannotConvert:
            raise
        except Exception as error:  # noqa: BLE001  # skl2onnx raises what it likes for what it does not know
            refused = error
            continue
        made = _graph(_serialized(found), found.graph, method, method.signature.batchable)
        yield replace(made, columns=columns, scored=scored)
    if refused is not None:
        raise CannotConvert(f"skl2onnx cannot convert it: {sentence(refused)}")


# method -> the names of what it returns in the graphs of skl2onnx
_OUTPUT_OF_SKLEARN = {
    "predict": ("output_label", "label", "variable"),
    "predict_proba": ("output_probability", "probabilities"),
    "transform": ("variable",),
}


def _only(whole: Any, output: str) -> Any:
    """The model with one of its outputs; what leads to the others is not run then."""
    kept = type(whole)()
    kept.CopyFrom(whole)
    del kept.graph.output[:]
    kept.graph.output.extend(value for value in whole.graph.output if value.name == output)
    return kept


def _serialized(whole: Any) -> bytes:
    if whole.ByteSize() > _MOST_BYTES:
        raise CannotConvert("it is larger than 2 GB")
    return bytes(whole.SerializeToString())


def _graph(content: bytes, graph: Any, method: MethodSpec, batched: bool) -> Graph:
    demand_first_axis(method)
    weights = {w.name for w in graph.initializer}  # older graphs list them among the inputs
    inputs = [value for value in graph.input if value.name not in weights]
    for values, specs, what in ((inputs, method.inputs, "inputs"), (graph.output, method.outputs, "outputs")):
        if len(values) != len(specs):
            raise CannotConvert(f"its graph has {len(values)} {what}, and {method.name}() has {len(specs)}")
    return Graph(
        content,
        tuple(_tensor(value, batched) for value in inputs),
        tuple(_tensor(value, batched) for value in graph.output),
    )


def _tensor(value: Any, batched: bool) -> NativeTensor:
    kind = value.type.tensor_type
    dtype = _TRITON_OF_ONNX.get(kind.elem_type)
    if dtype is None:
        raise CannotConvert(f"{value.name} of its graph has a data type that adapter sends no tensors of")
    if not kind.HasField("shape"):
        raise CannotConvert(f"{value.name} of its graph has no shape")
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    if not batched:
        # Triton has no `dims: []`
        return NativeTensor(value.name, dtype, tuple(shape) or (1,), scalar=not shape)
    if shape[:1] != [-1]:
        raise CannotConvert(f"{value.name} of its graph has the shape {tuple(shape)}, which takes no batch")
    return NativeTensor(value.name, dtype, tuple(shape[1:]) or (1,), scalar=len(shape) == 1)

"""`adapter.onnx`: ONNX models, run by ONNX Runtime."""

from __future__ import annotations

import inspect
import keyword
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Framework, described, gpu_visible, in_stub, threads
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo
from adapter.tensor import TensorSpec

FILE = "saved_model.onnx"
_WEIGHTS = "saved_model.onnx.data"
_LARGEST = 2**31 - 2**20  # what one protobuf message may hold is 2 GiB
_TENSOR = re.compile(r"tensor\((\w+)\)")
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}  # the others are called as numpy calls them


class Onnx(Framework):
    """Served is `run`, whose arguments are the inputs of the graph in their order, or by name.

    One output comes back as an array, several as a tuple. `providers` and `session_options` are options of `save_model`
    and of `with_options`, for runners, and of `load_model`; the latter is a mapping of the attributes of
    `onnxruntime.SessionOptions` and of its config entries, whose names have dots. Without them a session runs on the
    GPU of the worker, or on as many threads as the worker may use.
    """

    name = "onnx"
    libraries = {"onnxruntime": "onnxruntime", "onnx": "onnx", "numpy": "numpy"}  # noqa: RUF012  # ClassVar there
    default_signatures = {"run": {"batchable": False}}  # noqa: RUF012
    described_when_loaded = True
    options = ("partial_kwargs", "providers", "session_options")
    load_options = ("providers", "session_options")
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import onnx

        if not isinstance(model, (onnx.ModelProto, str, os.PathLike)):
            raise InvalidArgument(f"adapter.onnx saves an onnx.ModelProto or the path of one, not {described(model)}.")
        if not isinstance(model, onnx.ModelProto) and not Path(model).is_file():
            raise InvalidArgument(f"There is no file {os.fspath(model)!r}: give the path of an ONNX model.")

    def modules(self, model: Any) -> set[str]:
        return {"onnxruntime", "numpy"}  # of these, `onnx` is needed to save a model only

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        if not isinstance(model, onnx.ModelProto):
            try:
                model = onnx.load(os.fspath(model))
            except (DecodeError, onnx.checker.ValidationError) as error:  # the latter where a file of its weights lacks
                raise InvalidArgument(f"{os.fspath(model)!r} cannot be read as an ONNX model: {error}") from error
        if model.ByteSize() <= _LARGEST:
            onnx.save(model, str(folder / FILE))
        else:  # its tensors go into a file of their own, and out of the model: it gets them back
            onnx.save(model, str(folder / FILE), save_as_external_data=True, location=_WEIGHTS)
            onnx.load_external_data_for_model(model, str(folder))

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import onnxruntime

        providers = options.get("providers") or info.options.get("providers") or _usual_providers()
        _refuse_unknown_providers(providers)
        given = options.get("session_options") or info.options.get("session_options") or {}
        settings = given if isinstance(given, onnxruntime.SessionOptions) else _session_options(given)
        try:
            return onnxruntime.InferenceSession(str(folder / FILE), settings, providers=list(providers))
        except Exception as error:  # its errors have no class in common
            raise InvalidArgument(f"ONNX Runtime cannot load the model {info.tag}: {sentence(error)}") from error

    def start(self, model: Model) -> Any:
        return Graph.of(self.load_model(model))

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        return _function(model.get_inputs()) if method == "run" else None

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        graph = native if isinstance(native, Graph) else Graph.of(native)
        return graph.run(args, kwargs)

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        """What the graph says; where that is not all, what a trial on the sample tells."""
        for node in native.get_inputs():
            if node.type == "tensor(bfloat16)":
                raise InvalidArgument(
                    f"The input {node.name!r} of the graph is of bfloat16, which ONNX Runtime takes no arrays of: let "
                    "it take float32, and cast it in the graph."
                )
        graph = Graph.of(native)
        inputs, outputs = graph.inputs, _outputs(native)
        for name, spec in graph.inputs.items():
            axis = trial.axes[0]
            if trial.batchable and spec is not None and len(spec.shape) > axis and spec.shape[axis] >= 0:
                raise InvalidArgument(
                    f"The input {name!r} of the graph has the shape {spec.shape}, so calls cannot be joined on axis "
                    f"{axis}: export it with a dynamic axis there, or save it with `batchable` False."
                )
        if outputs is None or any(spec is None for spec in inputs.values()):
            return super().tensors(graph, method, trial)
        return tuple(spec for spec in inputs.values() if spec is not None), outputs


@dataclass(frozen=True)
class Graph:
    """A session with what it takes: the name of each input as a parameter, and its tensor where the graph tells it."""

    session: Any
    names: tuple[str, ...]
    inputs: Mapping[str, TensorSpec | None]
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, session: Any) -> Graph:
        nodes = session.get_inputs()
        names = _parameters([node.name for node in nodes])
        return cls(
            session,
            tuple(node.name for node in nodes),
            {name: _spec(node, name) for name, node in zip(names, nodes, strict=True)},
            {name: _dtype(node) or "" for name, node in zip(names, nodes, strict=True)},
        )

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        feed = {
            node: self._array(name, given[name])
            for node, name in zip(self.names, self.inputs, strict=True)
            if name in given
        }
        results = self.session.run(None, feed)
        return results[0] if len(results) == 1 else tuple(results)

    def _array(self, name: str, value: Any) -> Any:
        """An argument as the graph wants it; InvalidArgument where it does not fit."""
        spec, dtype = self.inputs[name], self.dtypes[name]
        if hasattr(value, "to_numpy"):
            value = value.to_numpy()
        if dtype == "str":
            return np.asarray(value, dtype=object)
        if spec is not None:
            return spec.cast(value)
        return np.asarray(value, dtype=dtype) if dtype else value


def _outputs(session: Any) -> tuple[TensorSpec, ...] | None:
    found = [_spec(node, f"output_{i}") for i, node in enumerate(session.get_outputs())]
    specs = tuple(spec for spec in found if spec is not None)
    return specs if len(specs) == len(found) else None


def _spec(node: Any, name: str) -> TensorSpec | None:
    """The tensor of an input or output; None for a sequence or a map, and where the graph does not tell the shape."""
    dtype = _dtype(node)
    if not dtype or not node.shape:  # a scalar and a tensor of any shape look alike
        return None
    return TensorSpec(dtype, tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape), name)


def _dtype(node: Any) -> str | None:
    """The numpy data type of a tensor; None where it is no tensor, or one of a type that numpy lacks (bfloat16)."""
    found = _TENSOR.fullmatch(node.type)
    name = _DTYPES.get(found[1], found[1]) if found else ""
    try:
        return np.dtype(name).name if name and name != "str" else name or None
    except TypeError:
        return None


def _parameters(names: Sequence[str]) -> list[str]:
    """The names of the inputs as Python can write them: `input:0` as `input_0`."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"_{plain}"
        while plain in found:
            plain += "_"
        found.append(plain)
    return found


def _function(inputs: Sequence[Any]) -> Callable[..., Any]:
    """A function whose parameters are the inputs of a graph."""

    def run(*args: Any, **kwargs: Any) -> None:
        """Only described, never called."""

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in _parameters([node.name for node in inputs])]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


def _usual_providers() -> list[str]:
    import onnxruntime

    cuda = gpu_visible() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


def _refuse_unknown_providers(providers: Any) -> None:
    """ONNX Runtime itself would only warn, and run on something else."""
    import onnxruntime

    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise InvalidArgument(f"providers is a list such as ['CPUExecutionProvider'], not {providers!r}.")
    known = onnxruntime.get_available_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in known:
            raise InvalidArgument(f"ONNX Runtime has no provider {name!r} here; it has {', '.join(known)}.")


def _session_options(given: Any) -> Any:
    import onnxruntime

    found = onnxruntime.SessionOptions()
    if not isinstance(given, Mapping):
        raise InvalidArgument(
            "session_options is a mapping such as {'intra_op_num_threads': 2}, or for load_model an "
            f"onnxruntime.SessionOptions, not {given!r}."
        )
    for name, value in {**_in_a_worker(), **given}.items():
        enum = {"execution_mode": "ExecutionMode", "graph_optimization_level": "GraphOptimizationLevel"}.get(name)
        try:
            if "." in name:
                found.add_session_config_entry(name, str(value))
            elif callable(getattr(found, name)):
                raise AttributeError(name)
            else:
                setattr(found, name, getattr(getattr(onnxruntime, enum), value) if enum else value)
        except (AttributeError, TypeError) as error:
            raise InvalidArgument(
                f"session_options has {name!r}: {value!r}, which onnxruntime.SessionOptions does not take."
            ) from error
    return found


def _in_a_worker() -> dict[str, Any]:
    """As many threads as the worker may use; between calls they leave the CPU to its other processes.

    ONNX Runtime's own would spin there, for twice the CPU time a call at no better latency beside a busy Triton. In
    Triton's stub there is no other process to wake for a call, and a lone one gains a third by it.
    """
    number = threads()
    if not number:
        return {}
    spinning: dict[str, Any] = {} if in_stub() else {"session.intra_op.allow_spinning": "0"}
    return {"intra_op_num_threads": number, **spinning}


framework = Onnx()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

"""`adapter.tensorflow`: modules of TensorFlow, as a SavedModel; models of Keras are those of `adapter.keras`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import ModelInfo
from adapter.tensor import TensorSpec, triton_dtype


class TensorFlow(Framework):
    """What is served are the functions that a SavedModel restores, or else its signatures (`serving_default`)."""

    name = "tensorflow"
    libraries = {"tensorflow": "tensorflow"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"__call__": {"batchable": False}}  # noqa: RUF012
    described_when_loaded = True
    save_options = ("tf_signatures", "tf_save_options")
    load_options = ("device_name",)
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        import tensorflow as tf

        try:
            tf.saved_model.save(
                model, str(folder), signatures=options.get("tf_signatures"), options=options.get("tf_save_options")
            )
        except (ValueError, AssertionError, TypeError) as error:
            raise InvalidArgument(
                f"adapter.tensorflow saves a tf.Module, and {described(model)} cannot be written as a SavedModel: "
                f"{sentence(error)}"
            ) from error

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import tensorflow as tf

        device = options.get("device_name")
        with tf.device(device) if device else contextlib.nullcontext():
            return tf.saved_model.load(str(folder))

    def usual_signatures(self, model: Any) -> Mapping[str, Mapping[str, Any]]:
        names = [name for name in dir(model) if name == "__call__" or not name.startswith("_")]
        restored = [name for name in names if hasattr(_named(model, name), "concrete_functions")]
        return {name: {} for name in restored or sorted(model.signatures) or self.default_signatures}

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        found = _named(model, method)
        return found if callable(found) else None

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        function = _named(native, method)
        if isinstance(function, tf.types.experimental.ConcreteFunction):
            # the functions of signatures take tensors, by name
            names = list(function.structured_input_signature[1])
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            specs = function.structured_input_signature[1]
            return _arrays(function(**{n: tf.convert_to_tensor(v, specs[n].dtype) for n, v in kwargs.items()}))
        return _arrays(function(*args, **kwargs))

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        """As the one traced signature of the function says; of a function with several, as a trial does."""
        function = _named(native, method)
        traced = getattr(function, "concrete_functions", None) or [function]
        if trial.sample is not None or len(traced) != 1 or not hasattr(traced[0], "structured_input_signature"):
            return super().tensors(native, method, trial)
        args, kwargs = traced[0].structured_input_signature
        results = traced[0].structured_outputs
        results = results if isinstance(results, (list, tuple)) else [results]
        names = [p.name for p in trial.parameters or ()]
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs = [_spec(spec, name) for name, spec in given.items()]
        outputs = [_spec(spec, f"output_{i}") for i, spec in enumerate(results)]
        known = tuple(s for s in inputs if s is not None), tuple(s for s in outputs if s is not None)
        return known if known[0] and (len(known[0]), len(known[1])) == (len(inputs), len(outputs)) else None


def _named(model: Any, name: str) -> Any:
    """A function of a SavedModel: an attribute, or one of its signatures."""
    found = getattr(model, name, None)
    return found if found is not None else getattr(model, "signatures", {}).get(name)


def _spec(given: Any, name: str) -> TensorSpec | None:
    """A traced tensor as a spec, None for another value, text, and a tensor of any number of axes."""
    import tensorflow as tf

    if not isinstance(given, tf.TensorSpec) or given.shape.rank is None:
        return None
    dtype = given.dtype.as_numpy_dtype
    if given.dtype in (tf.string, tf.bfloat16) or not triton_dtype(dtype):
        return None
    return TensorSpec(given.dtype.name, tuple(-1 if n is None else n for n in given.shape.as_list()), name)


def _arrays(value: Any) -> Any:
    """What a function returned with arrays for tensors, and a tuple for a list."""
    if isinstance(value, Mapping):
        return {key: _arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_arrays(item) for item in value)
    return value.numpy() if hasattr(value, "numpy") else value


framework = TensorFlow()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

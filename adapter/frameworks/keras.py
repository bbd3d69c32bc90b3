"""`adapter.keras`: models of Keras 3, with whichever backend it uses."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument, StateException, sentence
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo
from adapter.tensor import TensorSpec, triton_dtype

FILE = "saved_model.keras"


class Keras(Framework):
    """`predict` without further arguments runs as one batch (`predict_on_batch`), which is far quicker on few rows.

    A model of several inputs takes them one after another, `predict.run(image, text)`, under the names of its inputs.
    """

    name = "keras"
    libraries = {"keras": "keras"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"predict": {"batchable": False}}  # noqa: RUF012
    load_options = ("device_name", "compile")
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import keras

        if not isinstance(model, keras.Model):
            raise InvalidArgument(f"adapter.keras saves a keras.Model, not {described(model)}.")
        if not model.built:
            raise InvalidArgument(
                f"This {type(model).__name__} has no weights yet: call it once on some rows, then save it."
            )

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        model.save(folder / FILE)

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import keras

        device = options.get("device_name")
        custom = Model(info, folder).custom_objects
        try:
            with keras.device(device) if device else contextlib.nullcontext():
                return keras.models.load_model(
                    folder / FILE, custom_objects=custom or None, compile=options.get("compile", True)
                )
        except TypeError as error:  # what Keras raises for a class that it does not know
            raise StateException(
                f"The model {info.tag} cannot be read ({sentence(error)}): save it with "
                "`custom_objects={'Name': Name}` for each class of yours, which takes them along."
            ) from error

    def start(self, model: Model) -> Any:
        return self.load_model(model, compile=False)

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        found = super().function(model, "call" if method == "__call__" else method)
        names = _inputs(model)
        if found is None or method not in ("predict", "__call__") or len(names) < 2:
            return found

        def several(*args: Any, **kwargs: Any) -> Any:
            return found(*args, **kwargs)

        rest = list(inspect.signature(found).parameters.values())[1:]
        first = inspect.Parameter(names[0], inspect.Parameter.POSITIONAL_OR_KEYWORD)
        # the first alone may be a list or a mapping of all of them
        others = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for n in names[1:]]
        more = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in rest if p.name not in names and p.kind < 2]
        several.__signature__ = inspect.Signature([first, *others, *more])  # type: ignore[attr-defined]
        return several

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if method in ("predict", "__call__") and len(args) > 1 and len(args) == len(_inputs(native)):
            args = (list(args),)
        if method == "predict":
            if not kwargs and len(args) == 1:
                return as_arrays(native.predict_on_batch(*args))
            kwargs = {"verbose": 0, **kwargs}
        return as_arrays(getattr(native, method)(*args, **kwargs))

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        if trial.sample is not None or method not in ("predict", "__call__") or not _inputs(native):
            return super().tensors(native, method, trial)
        # a Sequential has these two only after a first call, and then one tensor in each
        if any(isinstance(getattr(native, side, None), dict) for side in ("input", "output")):
            return None
        names = [p.name for p in trial.parameters or ()]
        specs = (
            [_spec(t, name) for t, name in zip(native.inputs, names, strict=False)],
            [_spec(t, f"output_{i}") for i, t in enumerate(native.outputs)],
        )
        inputs, results = ([s for s in each if s is not None] for each in specs)
        whole = (len(inputs), len(results)) == (len(native.inputs), len(native.outputs))
        return (tuple(inputs), tuple(results)) if whole else None


def _inputs(model: Any) -> list[str]:
    """The names of a model's inputs, none where it takes a mapping, or its inputs are known only when it is called."""
    if isinstance(getattr(model, "input", None), dict):
        return []
    return [tensor.name for tensor in getattr(model, "inputs", None) or ()]


def _spec(tensor: Any, name: str) -> TensorSpec | None:
    """A symbolic tensor as a spec, None for text, sparse tensors and the like."""
    try:
        known = triton_dtype(tensor.dtype) and not tensor.sparse
    except TypeError:
        return None
    return TensorSpec(tensor.dtype, tuple(-1 if n is None else n for n in tensor.shape), name) if known else None


def as_arrays(value: Any) -> Any:
    """What a model returned with arrays for tensors, and a tuple for a list of several."""
    if isinstance(value, Mapping):
        return {key: as_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(as_arrays(item) for item in value)
    if isinstance(value, np.ndarray) or not hasattr(value, "shape"):
        return value
    import keras

    return keras.ops.convert_to_numpy(value)


framework = Keras()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

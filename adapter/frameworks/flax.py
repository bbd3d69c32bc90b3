"""`adapter.flax`: modules of Flax (Linen) with their state."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

FILE = "saved_model.msgpack"
MODULE_FILE = "saved_module.pkl"
_MOST_COMPILED = 64

_Key = tuple[int, int | str]  # 0 and the position of an argument, or 1 and its name


class Flax(Framework):
    """A model is a module and its state: `save_model(name, module, state)`, and `load_model` returns the pair.

    Calls are compiled by JAX, once for each shape: the batches of a batchable method are filled up to the next power of
    two with rows of their own, so that few shapes occur. An argument that is no array or float is a constant, for which
    the call is compiled anew.
    """

    name = "flax"
    libraries = {"flax": "flax", "jax": "jax"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"__call__": {"batchable": False}}  # noqa: RUF012
    load_options = ("init", "device")
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def save_model(self, name: Any, model: Any, state: Any = None, **options: Any) -> Model:
        """Save a module and its state, `{"params": …}` or a TrainState; `options` are those of every framework."""
        return super().save_model(name, (model, state), **options)

    def check(self, model: Any) -> None:
        import flax
        import flax.linen as nn

        module, state = model
        if not isinstance(module, nn.Module):
            nnx = isinstance(module, flax.nnx.Module)
            instead = "; adapter.picklable_model saves a module of flax.nnx" if nnx else ""
            raise InvalidArgument(f"adapter.flax saves a flax.linen.Module, not {described(module)}{instead}.")
        if not isinstance(_variables(state), Mapping):
            raise InvalidArgument(
                "The state of a module is what its `init` returns, {'params': …}, or a TrainState, not "
                f"{described(state)}."
            )

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        from flax import serialization

        module, state = model
        plain = serialization.to_state_dict(_variables(state))
        (folder / FILE).write_bytes(serialization.msgpack_serialize(plain))
        try:
            (folder / MODULE_FILE).write_bytes(cloudpickle.dumps(module))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"This {type(module).__name__} cannot be pickled: {error}.") from error

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import jax
        from flax import serialization

        with (folder / MODULE_FILE).open("rb") as file:
            module = pickle.load(file)
        state = serialization.msgpack_restore((folder / FILE).read_bytes())
        if options.get("init", True):  # on a device, else as arrays of numpy
            state = jax.device_put(state, jax.devices(options.get("device", "cpu"))[0])
        return module, state

    def start(self, model: Model) -> Any:
        import jax

        axes = {name: s.batch_dim for name, s in model.info.signatures.items() if s.batchable}
        module, state = self.load_model(model, device=jax.default_backend())
        return Served(module, state, axes, {})

    def modules(self, model: Any) -> set[str]:
        return super().modules(model[0])

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        return super().function(model[0], method)

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return (native if isinstance(native, Served) else _served(native)).call(method, args, kwargs)

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        served = _served(native)
        return trial.tensors(lambda args, kwargs: served.call(method, args, kwargs))


@dataclass(frozen=True)
class Served:
    """A module, its state, the axes of its batchable methods, and what was compiled by now."""

    module: Any
    state: Any
    axes: Mapping[str, tuple[int, int]]
    compiled: dict[Any, Callable[..., Any]]

    def call(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import jax

        given: dict[_Key, Any] = {(0, i): value for i, value in enumerate(args)}
        given |= {(1, name): value for name, value in kwargs.items()}
        traced = {key: value for key, value in given.items() if isinstance(value, (np.ndarray, np.generic, float))}
        constants = {key: value for key, value in given.items() if key not in traced}

        def whole(state: Any, traced: dict[_Key, Any]) -> Any:
            both = {**constants, **traced}
            positional = [value for _, value in sorted((key, value) for key, value in both.items() if key[0] == 0)]
            named = {str(name): value for (kind, name), value in both.items() if kind == 1}
            return self.module.apply(state, *positional, method=method, **named)

        state, key = _variables(self.state), (method, *constants.items())
        try:
            function = self.compiled.get(key)
        except TypeError:  # a list or the like is no constant
            return _arrays(whole(state, traced))
        if function is None:
            if len(self.compiled) == _MOST_COMPILED:  # callers choose the constants
                self.compiled.clear()
            function = self.compiled[key] = jax.jit(whole)
        filled, rows = _filled(traced, self.axes.get(method))
        result = function(state, filled)
        return _arrays(result if rows is None else _cut(result, rows, self.axes[method][1]))


def _served(native: tuple[Any, Any]) -> Served:
    module, state = native
    return Served(module, state, {}, {})


def _filled(traced: dict[_Key, Any], axes: tuple[int, int] | None) -> tuple[dict[_Key, Any], int | None]:
    """The arrays of a batch with their last row repeated, and how many rows they had; None: they are as they were."""
    sizes = {np.shape(value)[axes[0]] for value in traced.values() if np.ndim(value) > axes[0]} if axes else set()
    if axes is None or len(sizes) != 1 or 0 in sizes:
        return traced, None
    (rows,) = sizes
    chosen = np.minimum(np.arange(1 << (rows - 1).bit_length()), rows - 1)
    if len(chosen) == rows:
        return traced, None
    return {key: np.take(v, chosen, axes[0]) if np.ndim(v) > axes[0] else v for key, v in traced.items()}, rows


def _cut(value: Any, rows: int, axis: int) -> Any:
    import jax

    return jax.tree_util.tree_map(
        lambda leaf: leaf[(slice(None),) * axis + (slice(rows),)] if leaf.ndim > axis else leaf, value
    )


def _variables(state: Any) -> Any:
    """The state of a module as its `apply` takes it; of a TrainState its parameters."""
    params = getattr(state, "params", None)
    return state if params is None else {"params": params}


def _arrays(value: Any) -> Any:
    """What a module returned with arrays for those of JAX; of bfloat16, which numpy has not, as float32."""
    import jax

    def array(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        found = np.asarray(leaf)
        return found.astype(np.float32) if found.dtype.name == "bfloat16" else found

    return jax.tree_util.tree_map(array, value)


framework = Flax()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

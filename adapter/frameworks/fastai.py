"""`adapter.fastai`: learners of fastai, exported with their transforms."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

FILE = "saved_model.pkl"


class FastAI(Framework):
    """`predict` takes one item, as the learner's does, and returns its label, its index and all probabilities."""

    name = "fastai"
    libraries = {"fastai": "fastai", "torch": "torch"}  # noqa: RUF012  # declared ClassVar in Framework
    load_options = ("cpu",)
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        from fastai.learner import Learner

        if not isinstance(model, Learner):
            raise InvalidArgument(f"adapter.fastai saves a Learner, not {described(model)}.")

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        try:
            model.export(folder / FILE, pickle_module=cloudpickle)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"This {type(model).__name__} cannot be exported: {error}.") from error

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import torch

        found = torch.load(folder / FILE, map_location="cpu" if options.get("cpu", True) else None, weights_only=False)
        if options.get("cpu", True):
            found.dls.cpu()
        return found

    def start(self, model: Model) -> Any:
        learner = self.load_model(model)
        learner.remove_cbs([callback for callback in learner.cbs if type(callback).__name__ == "ProgressCallback"])
        return learner

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return _plain(getattr(native, method)(*args, **kwargs))

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        return None  # an item at a time, of any kind


def _plain(value: Any) -> Any:
    """What a learner returned in types of torch, pandas and Python alone."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu().as_subclass(torch.Tensor)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value)) if isinstance(value, tuple) else list(map(_plain, value))
    # a row of a table with its columns
    return value.items if type(value).__name__.startswith("Tabular") else value


framework = FastAI()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

"""`adapter.catboost`: models of CatBoost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework, described, gpu_visible, threads
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import ModelInfo

FILE = "saved_model.cbm"
_PREDICTIONS = ("predict", "predict_proba", "predict_log_proba")


class CatBoost(Framework):
    """Arrays and data frames go to the model as they are; numbers travel as float32, which CatBoost's borders are.

    A model with features that are categories, texts or embeddings takes what it was trained on, and its calls travel as
    blobs.
    """

    name = "catboost"
    libraries = {"catboost": "catboost", "numpy": "numpy"}  # noqa: RUF012  # declared ClassVar in Framework
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import catboost

        if not isinstance(model, catboost.CatBoost):
            raise InvalidArgument(f"adapter.catboost saves a catboost.CatBoost, not {described(model)}.")
        if getattr(catboost, type(model).__name__, None) is not type(model):
            raise InvalidArgument(
                f"adapter.catboost saves the classes of CatBoost itself, and {type(model).__name__} is one of your "
                "own: adapter.picklable_model saves it as it is."
            )
        if not model.is_fitted():
            raise InvalidArgument(f"This {type(model).__name__} is not fitted: call its `fit` before it is saved.")

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any]:
        model.save_model(str(folder / FILE))
        return {"training_class_name": type(model).__name__}

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import catboost

        cls = getattr(catboost, info.options.get("training_class_name") or "CatBoost")
        return cls().load_model(str(folder / FILE))

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        where: dict[str, Any] = {}
        if method in _PREDICTIONS:
            where = {"task_type": "GPU"} if gpu_visible() else {"thread_count": threads() or -1}
        return getattr(native, method)(*args, **{**where, **kwargs})

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        special = (
            native.get_cat_feature_indices,
            native.get_text_feature_indices,
            native.get_embedding_feature_indices,
        )
        if any(indices() for indices in special):
            return None
        on_numbers = trial.on_numbers(len(native.feature_names_), np.float32)
        return None if on_numbers is None else super().tensors(native, method, on_numbers)


framework = CatBoost()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

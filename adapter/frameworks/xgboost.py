"""`adapter.xgboost`: boosters of XGBoost, and its models that follow scikit-learn's conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework, described, gpu_visible, threads
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

FILE = "saved_model.ubj"
_CATEGORY = "c"


class XGBoost(Framework):
    """A booster takes arrays and data frames, of which a `DMatrix` is made; numbers travel as float32, XGBoost's own.

    Arrays are taken to have the columns of the training data, in their order. The parameters of an `XGBClassifier` and
    its like, which XGBoost's file lacks (`missing`, for one), are recorded beside it.
    """

    name = "xgboost"
    libraries = {"xgboost": "xgboost", "numpy": "numpy"}  # noqa: RUF012  # declared ClassVar in Framework
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import xgboost

        if not isinstance(model, (xgboost.Booster, getattr(xgboost, "XGBModel", xgboost.Booster))):
            raise InvalidArgument(f"adapter.xgboost saves an xgboost.Booster or an XGBModel, not {described(model)}.")
        if getattr(xgboost, type(model).__name__, None) is not type(model):
            raise InvalidArgument(
                f"adapter.xgboost saves the classes of XGBoost itself, and {type(model).__name__} is one of your own: "
                "adapter.sklearn saves it as it is, or save its `get_booster()`."
            )
        _fitted(model)

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any]:
        model.save_model(folder / FILE)
        found: dict[str, Any] = {"model_class": type(model).__name__}
        if hasattr(model, "get_params"):
            found["model_params"] = {name: value for name, value in model.get_params().items() if _is_plain(value)}
        return found

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import xgboost

        cls = getattr(xgboost, info.options.get("model_class") or "Booster")
        model = cls(**(info.options.get("model_params") or {}))
        model.load_model(folder / FILE)
        return model

    def start(self, model: Model) -> Any:
        native = self.load_model(model)
        place = {"device": "cuda"} if gpu_visible() else {"nthread": threads()} if threads() else {}
        if hasattr(native, "get_booster"):
            native.set_params(**{"n_jobs" if name == "nthread" else name: value for name, value in place.items()})
        _fitted(native).set_param(place)
        return native

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import xgboost

        if isinstance(native, xgboost.Booster) and method == "predict" and args:
            args = (_matrix(native, args[0]), *args[1:])
        return getattr(native, method)(*args, **kwargs)

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        import xgboost

        booster = _fitted(native)
        if isinstance(trial.sample, xgboost.DMatrix):
            raise InvalidArgument("A sample is rows as callers send them, an array or a data frame, and not a DMatrix.")
        if _CATEGORY in (booster.feature_types or ()):
            return None
        on_numbers = trial.on_numbers(booster.num_features(), np.float32)
        return None if on_numbers is None else super().tensors(native, method, on_numbers)


def _fitted(model: Any) -> Any:
    """The booster of a model, InvalidArgument where it was not trained."""
    import xgboost

    if not isinstance(model, xgboost.Booster):
        if not model.__sklearn_is_fitted__():
            raise InvalidArgument(f"This {type(model).__name__} is not fitted: call its `fit` before it is saved.")
        return model.get_booster()
    try:
        model.num_features()
    except xgboost.core.XGBoostError as error:
        raise InvalidArgument("This Booster is not trained: make it by xgboost.train.") from error
    return model


def _matrix(booster: Any, data: Any) -> Any:
    import xgboost

    categories = _CATEGORY in (booster.feature_types or ())
    named = hasattr(data, "columns") or np.ndim(data) != 2 or np.shape(data)[1] != booster.num_features()
    if named:  # it says itself what its columns are, or XGBoost says what is wrong with it
        return xgboost.DMatrix(data, enable_categorical=categories)
    names, types = booster.feature_names, booster.feature_types
    return xgboost.DMatrix(np.asarray(data), feature_names=names, feature_types=types, enable_categorical=categories)


def _is_plain(value: Any) -> bool:
    """Whether a parameter can be recorded, and says something: not functions, None, and the NaN that `missing` is."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


framework = XGBoost()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

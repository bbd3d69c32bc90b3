"""`adapter.lightgbm`: boosters of LightGBM, and its models that follow scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument, StateException
from adapter.frameworks import picklable_model
from adapter.frameworks.base import Framework, described, threads
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

FILE = "saved_model.ubj"  # LightGBM's own text format; the name is that of BentoML, whose files are read here


class LightGBM(Framework):
    """A booster is written in LightGBM's own format, an `LGBMClassifier` and its like are pickled.

    Numbers travel as float64, which LightGBM's thresholds are.
    """

    name = "lightgbm"
    libraries = {"lightgbm": "lightgbm", "numpy": "numpy"}  # noqa: RUF012  # declared ClassVar in Framework
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import lightgbm

        if not isinstance(model, (lightgbm.Booster, lightgbm.LGBMModel)):
            raise InvalidArgument(f"adapter.lightgbm saves a lightgbm.Booster or an LGBMModel, not {described(model)}.")
        if not isinstance(model, lightgbm.Booster) and not model.__sklearn_is_fitted__():
            raise InvalidArgument(f"This {type(model).__name__} is not fitted: call its `fit` before it is saved.")

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any]:
        import lightgbm

        if isinstance(model, lightgbm.Booster):
            model.save_model(folder / FILE)
        else:
            picklable_model.framework.save(model, folder)
        return {"model_class": type(model).__name__}

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import lightgbm

        if (folder / picklable_model.FILE).exists():
            return picklable_model.framework.load(folder, info)
        _demand_whole(folder / FILE)
        return lightgbm.Booster(model_file=folder / FILE)

    def start(self, model: Model) -> Any:
        native = self.load_model(model)
        # without a number it takes each core of the machine, whatever OMP_NUM_THREADS says
        return native.set_params(n_jobs=threads()) if threads() and hasattr(native, "set_params") else native

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        booster = getattr(native, "booster_", native)
        if booster.pandas_categorical:
            return None
        on_numbers = trial.on_numbers(booster.num_feature(), np.float64)
        return None if on_numbers is None else super().tensors(native, method, on_numbers)


def _demand_whole(file: Path) -> None:
    """Refuse a file that was cut short, on which LightGBM would end the process."""
    text = file.read_bytes()
    _, trees, rest = text.partition(b"\nend of trees")
    if not trees or (b"\nparameters:" in rest and b"\nend of parameters" not in rest):
        raise StateException(f"The file {file} ends in the middle of the model: it was not written or copied whole.")


framework = LightGBM()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

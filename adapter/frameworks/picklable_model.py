"""`adapter.picklable_model`: any object or function that cloudpickle can write."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework
from adapter.model import ModelInfo

FILE = "saved_model.pkl"


class PicklableModel(Framework):
    name = "picklable_model"
    libraries = {"cloudpickle": "cloudpickle"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"__call__": {"batchable": False}}  # noqa: RUF012

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        try:
            with (folder / FILE).open("wb") as file:
                cloudpickle.dump(model, file)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidArgument(
                f"This {type(model).__name__} cannot be pickled ({error}): keep open files, connections, locks and "
                "the like out of it, or write an adapter.Runnable that makes them in its `__init__`."
            ) from error

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        with (folder / FILE).open("rb") as file:
            return pickle.load(file)


framework = PicklableModel()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

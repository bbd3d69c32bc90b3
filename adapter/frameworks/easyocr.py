"""`adapter.easyocr`: readers of EasyOCR with their networks, so that nothing is downloaded where they are served."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import ModelInfo

FILE = "saved_model.pkl"
_METHODS = ("detect", "readtext", "readtextlang", "recognize")


class EasyOCR(Framework):
    name = "easyocr"
    libraries = {"easyocr": "easyocr", "torch": "torch"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {method: {} for method in _METHODS}  # noqa: RUF012  # declared ClassVar in Framework
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import easyocr

        if not isinstance(model, easyocr.Reader):
            raise InvalidArgument(f"adapter.easyocr saves an easyocr.Reader, not {described(model)}.")
        if model.device != "cpu":
            raise InvalidArgument(
                f"This Reader is on the device {model.device!r}, and readers are served on CPUs: make it with "
                "`gpu=False`."
            )

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        try:
            (folder / FILE).write_bytes(cloudpickle.dumps(model))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"This Reader cannot be pickled: {error}.") from error

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        with (folder / FILE).open("rb") as file:
            return pickle.load(file)

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # EasyOCR takes an array, a file or the bytes of one
        return getattr(native, method)(*map(_pixels, args), **{name: _pixels(v) for name, v in kwargs.items()})

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        return None  # lists of boxes and texts


def _pixels(value: Any) -> Any:
    """A picture of PIL as the array that OpenCV would read, blue before red; anything else as it is."""
    import numpy as np

    return (
        np.asarray(value.convert("RGB"))[:, :, ::-1] if hasattr(value, "convert") and hasattr(value, "mode") else value
    )


framework = EasyOCR()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

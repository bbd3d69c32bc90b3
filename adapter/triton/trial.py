"""The model that Triton loads for a version which is being tried: the version's own, within a limit of time.

`deployment.py` puts this file beside that version. Loaded as it lies there it is an empty model, so that what is being
tried does no harm to a Triton which starts meanwhile and loads all that it finds.
"""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

LIMIT = "adapter_trial_s"  # the parameter of a configuration that has the version loaded


class TritonPythonModel:
    """Triton's python backend calls these three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters") or {}
        self._model: Any = None
        if LIMIT not in parameters:
            return
        limit = float(parameters[LIMIT]["string_value"])

        def late(number: int, frame: FrameType | None) -> None:
            raise TimeoutError(f"it was not ready after {limit:g} s")

        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            self._model = importlib.import_module("model").TritonPythonModel()
            self._model.initialize(args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def execute(self, requests: Sequence[Any]) -> Any:
        if self._model is None:
            raise RuntimeError("This entry is for a version that is being tried, and not to be called.")
        return self._model.execute(requests)

    def finalize(self) -> None:
        if self._model is not None:
            self._model.finalize()

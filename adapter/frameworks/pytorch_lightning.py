"""`adapter.pytorch_lightning`: Lightning modules, compiled to TorchScript, so that serving needs no Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import described
from adapter.frameworks.pytorch import evaluated
from adapter.frameworks.torchscript import TorchScript, undeprecated


class PyTorchLightning(TorchScript):
    name = "pytorch_lightning"
    extra = "lightning"
    described_when_loaded = True  # what is served is what was compiled

    def check(self, model: Any) -> None:
        # by name: there is one such class in `lightning`, and one in `pytorch_lightning`
        if not any(parent.__name__ == "LightningModule" for parent in type(model).__mro__):
            raise InvalidArgument(f"adapter.pytorch_lightning saves a LightningModule, not {described(model)}.")

    def modules(self, model: Any) -> set[str]:
        return set(self.libraries)  # not Lightning's, of which nothing is left

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        with undeprecated(), evaluated(model):
            try:
                compiled = model.to_torchscript()
            except Exception as error:  # the compiler of TorchScript raises errors of many classes
                raise InvalidArgument(
                    f"This {type(model).__name__} cannot be compiled to TorchScript ({sentence(error)}): change what "
                    "it names, or save it with adapter.pytorch."
                ) from error
        super().save(compiled, folder)


framework = PyTorchLightning()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

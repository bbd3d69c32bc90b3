"""`adapter.torchscript`: modules compiled by `torch.jit.script` or `torch.jit.trace`, which need no class."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import described
from adapter.frameworks.pytorch import FILE, PyTorch
from adapter.model import ModelInfo


class TorchScript(PyTorch):
    name = "torchscript"
    load_options = ("device_id", "_extra_files")

    def check(self, model: Any) -> None:
        import torch

        if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
            raise InvalidArgument(
                f"adapter.torchscript saves what torch.jit.script or torch.jit.trace made of {described(model)}; "
                "adapter.pytorch saves the module itself."
            )
        if not isinstance(model, torch.jit.ScriptModule):
            raise InvalidArgument(f"adapter.torchscript saves a torch.jit.ScriptModule, not {described(model)}.")

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        import torch

        with undeprecated():
            torch.jit.save(model, str(folder / FILE))

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import torch

        device, files = options.get("device_id", "cpu"), options.get("_extra_files")
        with undeprecated():
            return torch.jit.load(str(folder / FILE), map_location=device, _extra_files=files).eval()

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        found = super().function(model, method)
        schema = getattr(found, "schema", None)
        if found is None or schema is None:
            return found

        def compiled(*args: Any, **kwargs: Any) -> Any:
            return found(*args, **kwargs)

        # Python cannot tell what a compiled method takes, but its schema does
        compiled.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect reads
            [
                inspect.Parameter(
                    a.name,
                    inspect.Parameter.KEYWORD_ONLY if a.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=a.default_value if a.has_default_value() else inspect.Parameter.empty,
                )
                for a in schema.arguments[1:]
            ]
        )
        return compiled


@contextlib.contextmanager
def undeprecated() -> Iterator[None]:
    """PyTorch and Lightning warn of each use of torch.jit, about which a person who has such a model can do nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


framework = TorchScript()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

"""`adapter.diffusers`: pipelines of Hugging Face Diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Framework, described
from adapter.frameworks.pytorch import device
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

FOLDER = "diffusion_model"


class Diffusers(Framework):
    """A runner returns a tuple, `images, *more = runner.run(prompt)`, unless the call says `return_dict=True`.

    A number as `generator=` is a seed: a torch.Generator cannot travel.
    """

    name = "diffusers"
    libraries = {"diffusers": "diffusers", "torch": "torch"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"__call__": {"batchable": False}}  # noqa: RUF012
    load_options = ("device_id", "pipeline_class", "torch_dtype")
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def import_model(self, name: Any, source: str, *, variant: str | None = None, **options: Any) -> Model:
        """Save a pipeline from a folder or the name of a model on the hub; `options` are those of `save_model`."""
        with self._library(f"the model {name}"):
            import diffusers

            try:
                pipeline = diffusers.DiffusionPipeline.from_pretrained(source, variant=variant)
            except (OSError, ValueError) as error:
                raise InvalidArgument(
                    f"No pipeline can be made of {source!r} ({sentence(error)}): give a folder that `save_pretrained` "
                    "wrote, or a name on the hub."
                ) from error
        return self.save_model(name, pipeline, **options)

    def check(self, model: Any) -> None:
        import diffusers

        if not isinstance(model, diffusers.DiffusionPipeline):
            raise InvalidArgument(f"adapter.diffusers saves a DiffusionPipeline, not {described(model)}.")

    def save(self, model: Any, folder: Path, **options: Any) -> None:
        model.save_pretrained(folder / FOLDER)

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import diffusers

        kind = options.get("pipeline_class") or diffusers.DiffusionPipeline
        wanted = (options.get("device_id"), options.get("torch_dtype"))
        return kind.from_pretrained(folder / FOLDER).to(*(w for w in wanted if w is not None))

    def start(self, model: Model) -> Any:
        pipeline = self.load_model(model, device_id=device())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import torch

        function: Callable[..., Any] = getattr(native, method)
        known = inspect.signature(function).parameters
        given = dict(kwargs)
        seed = given.get("generator")
        if isinstance(seed, int):
            given["generator"] = torch.Generator(native.device).manual_seed(seed)
        if "return_dict" in known:
            given.setdefault("return_dict", False)
        return function(*args, **given)

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        return None


framework = Diffusers()
save_model = framework.save_model
import_model = framework.import_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

"""`adapter.transformers`: pipelines, models, tokenizers and processors of Hugging Face Transformers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import described
from adapter.frameworks.pytorch import PyTorch, device
from adapter.frameworks.trial import Tensors, Trial
from adapter.model import Model, ModelInfo

PRETRAINED = "pretrained"
CLASS_FILE = "pretrained.pkl"
_PARTS = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")
_PARAMETERS = ("_preprocess_params", "_forward_params", "_postprocess_params")


class Transformers(PyTorch):
    """A pipeline is called as it is: texts, images or lists of them in, lists and dicts out.

    The calls of a batchable pipeline, lists, reach the model as one batch where its tokenizer can fill up short texts.
    A model is called as adapter.pytorch calls a module.
    """

    name = "transformers"
    libraries = {"transformers": "transformers", "torch": "torch"}  # noqa: RUF012  # declared ClassVar in Framework
    extra = "transformers"
    save_options = ("task_name", "task_definition")
    load_options = ("device", "dtype")

    def import_model(self, name: Any, source: str, *, task: str | None = None, **options: Any) -> Model:
        """Save a pipeline from a folder, or the name of a model on the hub; `options` are those of `save_model`."""
        with self._library(f"the model {name}"):
            import transformers

            try:
                pipeline = transformers.pipeline(task, model=source)
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise InvalidArgument(
                    f"No pipeline can be made of {source!r} ({sentence(error)}): give a folder that `save_pretrained` "
                    "wrote or a name on the hub, and `task=`, such as 'text-classification', where it does not say."
                ) from error
        return self.save_model(name, pipeline, **options)

    def check(self, model: Any) -> None:
        import transformers  # noqa: F401  # whose absence is said before anything else

        if isinstance(model, type) or not hasattr(model, "save_pretrained"):
            raise InvalidArgument(
                f"adapter.transformers saves a pipeline, model, tokenizer or processor, not {described(model)}."
            )

    def usual_signatures(self, model: Any) -> Mapping[str, Mapping[str, Any]]:
        generates = getattr(model, "can_generate", None)
        if callable(generates) and generates():
            return {"__call__": {}, "generate": {}}
        if hasattr(model, "batch_decode"):
            return {"__call__": {}, "decode": {}, "batch_decode": {}}
        return self.default_signatures

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any]:
        import transformers

        model.save_pretrained(folder / PRETRAINED)
        record: dict[str, Any] = {"class": type(model)}
        task = None
        if isinstance(model, transformers.Pipeline):
            task = options.get("task_name") or model.task
            parts = {name: part for name in _PARTS if (part := getattr(model, name, None)) is not None}
            if "processor" in parts:
                parts["processor"].save_pretrained(folder / PRETRAINED)
            record["model"] = type(model.model)
            record["parts"] = {name: type(part) for name, part in parts.items()}
            # what was given when the pipeline was made (`top_k=None`), which save_pretrained leaves out
            record["parameters"] = {name: getattr(model, name, {}) for name in _PARAMETERS}
        try:
            (folder / CLASS_FILE).write_bytes(cloudpickle.dumps(record))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                f"The class or the options of {described(model)} cannot be pickled: {error}."
            ) from error
        return {"task": task, "class": type(model).__name__}

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import torch
        import transformers

        with (folder / CLASS_FILE).open("rb") as file:
            record = pickle.load(file)
        files, place = folder / PRETRAINED, options.get("device")
        of_torch = {"dtype": options.get("dtype", "auto")}
        if not issubclass(record["class"], transformers.Pipeline):
            if not issubclass(record["class"], torch.nn.Module):
                return record["class"].from_pretrained(files)
            found = record["class"].from_pretrained(files, **of_torch).eval()
            return found if place is None else found.to(place)
        model = record["model"].from_pretrained(files, **of_torch).eval()
        parts = {name: kind.from_pretrained(files) for name, kind in record["parts"].items()}
        pipeline = record["class"](model=model, task=info.options["task"], device=place, **parts)
        for name, parameters in record["parameters"].items():
            setattr(pipeline, name, parameters)
        return pipeline

    def start(self, model: Model) -> Any:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        native = self.load_model(model, device=device())
        if isinstance(native, torch.nn.Module):
            return self.served(native, model)
        batchable = model.info.signatures.get("__call__")
        return Ready(native, batchable is not None and batchable.batchable and _fills(native))

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        import torch

        if isinstance(model, torch.nn.Module):
            return super().function(model, method)
        return super(PyTorch, self).function(model, method)

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not isinstance(native, Ready):
            result = super().call(native, method, args, kwargs)
            if not isinstance(result, Mapping):
                return result
            # the memory of a model that generates is of no use to a caller, and cannot travel
            return {key: value for key, value in result.items() if key != "past_key_values"}
        if native.batched and method == "__call__" and args and isinstance(args[0], list):
            kwargs = {"batch_size": len(args[0]), **kwargs}
        return _plain(getattr(native.native, method)(*args, **kwargs))

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        import torch

        return super().tensors(native, method, trial) if isinstance(native, torch.nn.Module) else None


@dataclass(frozen=True)
class Ready:
    """A pipeline, a tokenizer or a processor; `batched` where a list is one batch for the model."""

    native: Any
    batched: bool


def _fills(pipeline: Any) -> bool:
    """Whether texts of different lengths can be one batch, which takes a token to fill short ones up with."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    return hasattr(pipeline, "model") and (tokenizer is None or tokenizer.pad_token_id is not None)


def _plain(value: Any) -> Any:
    """What a pipeline or a tokenizer returned with dicts for its own mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


framework = Transformers()
save_model = framework.save_model
import_model = framework.import_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

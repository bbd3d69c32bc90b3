"""Saved models of BentoML 1.x as ours: what `model.yaml` says there, and here."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter import __version__
from adapter.exceptions import InvalidArgument, sentence
from adapter.model import Model, ModelInfo, Signature

logger = logging.getLogger(__name__)

_MARK = "bentoml"
# module there -> module here, for those whose files are read here as they are; to add a framework, add a line
MODULES: Mapping[str, str] = {
    "bentoml.sklearn": "adapter.sklearn",
    "bentoml.picklable_model": "adapter.picklable_model",
    "bentoml.catboost": "adapter.catboost",
    "bentoml.lightgbm": "adapter.lightgbm",
    "bentoml.onnx": "adapter.onnx",
    "bentoml.xgboost": "adapter.xgboost",
    "bentoml.diffusers": "adapter.diffusers",
    "bentoml.mlflow": "adapter.mlflow",
    "bentoml.easyocr": "adapter.easyocr",
    "bentoml.fastai": "adapter.fastai",
    "bentoml.tensorflow": "adapter.tensorflow",
    "bentoml.pytorch_lightning": "adapter.pytorch_lightning",
    "bentoml.torchscript": "adapter.torchscript",
    "bentoml.pytorch": "adapter.pytorch",
}
_SIGNATURE = ("batchable", "batch_dim", "input_spec", "output_spec")


def is_foreign(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of BentoML's."""
    found = record.get("context")
    context = found if isinstance(found, Mapping) else {}
    return "adapter_version" not in context and (f"{_MARK}_version" in context or _is_theirs(record.get("module")))


def _is_theirs(module: Any) -> bool:
    return isinstance(module, str) and module.startswith(f"{_MARK}.")


def migrated(record: Mapping[str, Any], folder: Path) -> ModelInfo:
    """The record as ours, with what a trial of the model in `folder` tells of its tensors.

    InvalidArgument where adapter has not the framework that it was saved with.
    """
    info = _read(record)
    if info.module not in MODULES.values() or not info.signatures:
        return info
    try:
        return Model(info, folder).inspected()
    except Exception as error:  # noqa: BLE001  # unpickling runs a person's own code
        logger.warning(
            "The model %s could not be loaded here, so its calls will travel as blobs: %s", info.tag, sentence(error)
        )
        return info


def _read(record: Mapping[str, Any]) -> ModelInfo:
    module = record.get("module") or ""
    if _is_theirs(module) and module not in MODULES:
        known = ", ".join(name.removeprefix(f"{_MARK}.") for name in MODULES)
        raise InvalidArgument(
            f"It was saved with {module}, and adapter reads models of {known} only: load it where BentoML is, and save "
            "it with adapter.picklable_model, or write an adapter.Runnable that loads it."
        )
    signatures = {
        method: Signature.of({key: given[key] for key in _SIGNATURE if given.get(key) is not None})
        for method, given in (record.get("signatures") or {}).items()
    }
    info = ModelInfo.from_dict({**record, "module": MODULES.get(module, module), "signatures": {}})
    return dataclasses.replace(info, context={**info.context, "adapter_version": __version__}, signatures=signatures)

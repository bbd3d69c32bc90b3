"""Model services in plain Python, served by NVIDIA Triton Inference Server.

Importing adapter imports nothing but the standard library; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adapter import client, exceptions, io, metrics, models, testing, triton, validators
    from adapter.classes import api, asgi_app, depends, on_deployment, on_shutdown, on_startup, service, task
    from adapter.context import Context, Cookie
    from adapter.frameworks import (
        catboost,
        diffusers,
        easyocr,
        fastai,
        flax,
        keras,
        lightgbm,
        mlflow,
        onnx,
        picklable_model,
        pytorch,
        pytorch_lightning,
        sklearn,
        tensorflow,
        torchscript,
        transformers,
        xgboost,
    )
    from adapter.loader import load_service as load
    from adapter.model import Model
    from adapter.runnable import Runnable
    from adapter.runner import Runner
    from adapter.server.http_server import HTTPServer
    from adapter.services import Service
    from adapter.strategy import DefaultStrategy, Strategy
    from adapter.tag import Tag
    from adapter.tensor import TensorSpec

# name -> the module it comes from, or "module:attribute"; a new framework is a file in frameworks/ and a line here
_LAZY = {
    "Context": "adapter.context:Context",
    "Cookie": "adapter.context:Cookie",
    "DefaultStrategy": "adapter.strategy:DefaultStrategy",
    "HTTPServer": "adapter.server.http_server:HTTPServer",
    "Model": "adapter.model:Model",
    "Runnable": "adapter.runnable:Runnable",
    "Runner": "adapter.runner:Runner",
    "Service": "adapter.services:Service",
    "Strategy": "adapter.strategy:Strategy",
    "Tag": "adapter.tag:Tag",
    "TensorSpec": "adapter.tensor:TensorSpec",
    "api": "adapter.classes:api",
    "asgi_app": "adapter.classes:asgi_app",
    "catboost": "adapter.frameworks.catboost",
    "client": "adapter.client",
    "depends": "adapter.classes:depends",
    "diffusers": "adapter.frameworks.diffusers",
    "easyocr": "adapter.frameworks.easyocr",
    "exceptions": "adapter.exceptions",
    "fastai": "adapter.frameworks.fastai",
    "flax": "adapter.frameworks.flax",
    "io": "adapter.io",
    "keras": "adapter.frameworks.keras",
    "lightgbm": "adapter.frameworks.lightgbm",
    "load": "adapter.loader:load_service",
    "metrics": "adapter.metrics",
    "mlflow": "adapter.frameworks.mlflow",
    "models": "adapter.models",
    "on_deployment": "adapter.classes:on_deployment",
    "on_shutdown": "adapter.classes:on_shutdown",
    "on_startup": "adapter.classes:on_startup",
    "onnx": "adapter.frameworks.onnx",
    "picklable_model": "adapter.frameworks.picklable_model",
    "pytorch": "adapter.frameworks.pytorch",
    "pytorch_lightning": "adapter.frameworks.pytorch_lightning",
    "service": "adapter.classes:service",
    "sklearn": "adapter.frameworks.sklearn",
    "task": "adapter.classes:task",
    "tensorflow": "adapter.frameworks.tensorflow",
    "testing": "adapter.testing",
    "torchscript": "adapter.frameworks.torchscript",
    "transformers": "adapter.frameworks.transformers",
    "triton": "adapter.triton",
    "validators": "adapter.validators",
    "xgboost": "adapter.frameworks.xgboost",
}

__all__ = [
    "Context",
    "Cookie",
    "DefaultStrategy",
    "HTTPServer",
    "Model",
    "Runnable",
    "Runner",
    "Service",
    "Strategy",
    "Tag",
    "TensorSpec",
    "api",
    "asgi_app",
    "catboost",
    "client",
    "depends",
    "diffusers",
    "easyocr",
    "exceptions",
    "fastai",
    "flax",
    "io",
    "keras",
    "lightgbm",
    "load",
    "metrics",
    "mlflow",
    "models",
    "on_deployment",
    "on_shutdown",
    "on_startup",
    "onnx",
    "picklable_model",
    "pytorch",
    "pytorch_lightning",
    "service",
    "sklearn",
    "task",
    "tensorflow",
    "testing",
    "torchscript",
    "transformers",
    "triton",
    "validators",
    "xgboost",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(importlib.import_module("adapter.absent").attribute(name))
    module, _, attribute = _LAZY[name].partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

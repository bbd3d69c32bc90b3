"""Model services in plain Python, served by NVIDIA Triton Inference Server.

Importing adapter imports nothing but the standard library; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adapter import client, exceptions, io, metrics, models, testing
    from adapter.context import Context, Cookie
    from adapter.frameworks import picklable_model, sklearn
    from adapter.loader import load_service as load
    from adapter.model import Model
    from adapter.runnable import Runnable
    from adapter.runner import Runner
    from adapter.server.http_server import HTTPServer
    from adapter.services import Service
    from adapter.tag import Tag
    from adapter.tensor import TensorSpec

# name -> the module it comes from, or "module:attribute"; a new framework is a file in frameworks/ and a line here
_LAZY = {
    "Context": "adapter.context:Context",
    "Cookie": "adapter.context:Cookie",
    "HTTPServer": "adapter.server.http_server:HTTPServer",
    "Model": "adapter.model:Model",
    "Runnable": "adapter.runnable:Runnable",
    "Runner": "adapter.runner:Runner",
    "Service": "adapter.services:Service",
    "Tag": "adapter.tag:Tag",
    "TensorSpec": "adapter.tensor:TensorSpec",
    "client": "adapter.client",
    "exceptions": "adapter.exceptions",
    "io": "adapter.io",
    "load": "adapter.loader:load_service",
    "metrics": "adapter.metrics",
    "models": "adapter.models",
    "picklable_model": "adapter.frameworks.picklable_model",
    "sklearn": "adapter.frameworks.sklearn",
    "testing": "adapter.testing",
}

__all__ = [
    "Context",
    "Cookie",
    "HTTPServer",
    "Model",
    "Runnable",
    "Runner",
    "Service",
    "Tag",
    "TensorSpec",
    "client",
    "exceptions",
    "io",
    "load",
    "metrics",
    "models",
    "picklable_model",
    "sklearn",
    "testing",
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

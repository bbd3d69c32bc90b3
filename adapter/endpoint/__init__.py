"""Endpoints: one Service class that sets up and infers, and the server that serves it.

    from adapter.endpoint import Service

    class Hello(Service):
        def infer(self, name: str) -> str:
            return "Hello, " + name

`adapter server run` serves it on port 8080. Source: seed 004.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapter.endpoint.server import Server as Server
    from adapter.endpoint.service import Service as Service
    from adapter.endpoint.service import path as path

_PLACES = {"Server": "server", "Service": "service", "path": "service"}
_MODULES = ("documenter", "fetching", "server", "service", "types")

__all__ = ["Server", "Service", "documenter", "fetching", "path", "server", "service", "types"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"adapter.endpoint.{_PLACES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"adapter.endpoint.{name}")
    raise AttributeError(f"module 'adapter.endpoint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES})

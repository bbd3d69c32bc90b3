"""Triton: the entries that adapter writes for it, and, as `adapter.triton.Runner`, those that exist already."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapter.triton.existing import Runner

__all__ = ["Runner"]


def __getattr__(name: str) -> Any:
    # this file travels with entries, whose processes need not have what the Runner needs
    if name == "Runner":
        return importlib.import_module("adapter.triton.existing").Runner
    raise AttributeError(f"module 'adapter.triton' has no attribute {name!r}")

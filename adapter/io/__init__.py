"""IO descriptors: what the body of a request and of a response is, and how it becomes a Python value.

Each is one file; it is imported when its name is first asked for, so a service pays for what it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapter.exceptions import InvalidArgument

if TYPE_CHECKING:
    from adapter.io.base import IODescriptor
    from adapter.io.fields import Fields
    from adapter.io.file import File
    from adapter.io.image import Image
    from adapter.io.json import JSON
    from adapter.io.multipart import Multipart
    from adapter.io.numpy import NumpyNdarray
    from adapter.io.pandas import PandasDataFrame, PandasSeries
    from adapter.io.sse import SSE
    from adapter.io.stream import Stream
    from adapter.io.text import Text
    from adapter.io.text import Text as String

__all__ = [
    "JSON",
    "SSE",
    "Fields",
    "File",
    "IODescriptor",
    "Image",
    "Multipart",
    "NumpyNdarray",
    "PandasDataFrame",
    "PandasSeries",
    "Stream",
    "String",
    "Text",
    "from_spec",
]

_DESCRIPTORS = {
    "Fields": "fields",
    "File": "file",
    "Image": "image",
    "JSON": "json",
    "Multipart": "multipart",
    "NumpyNdarray": "numpy",
    "PandasDataFrame": "pandas",
    "PandasSeries": "pandas",
    "Stream": "stream",
    "Text": "text",
}
_MODULES = {**_DESCRIPTORS, "IODescriptor": "base", "SSE": "sse"}
# what seed 001 calls it in its text
_OTHER_NAMES = {"String": "Text"}


if not TYPE_CHECKING:  # a checker that saw it would take every name for a member

    def __getattr__(name: str) -> Any:
        real_name = _OTHER_NAMES.get(name, name)
        if real_name not in _MODULES:
            raise AttributeError(f"adapter.io has no {name!r}; it has {', '.join(__all__)}.")
        value = globals()[name] = _load(real_name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def from_spec(spec: Mapping[str, Any]) -> IODescriptor[Any]:
    """Make the descriptor that `to_spec` described: `{"id": "adapter.io.NumpyNdarray", "args": {…}}`.

    Only the descriptors of adapter are made, since a spec may come from a server that is not trusted; for one of
    your own, call `from_spec` of its class.
    """
    name = str(spec.get("id", "")).removeprefix("adapter.io.")
    if name not in _DESCRIPTORS:
        raise InvalidArgument(
            f"There is no descriptor {spec.get('id')!r}; adapter.io has {', '.join(sorted(_DESCRIPTORS))}."
        )
    descriptor: IODescriptor[Any] = _load(name).from_spec(spec)
    return descriptor


def _load(name: str) -> Any:
    return getattr(importlib.import_module(f"adapter.io.{_MODULES[name]}"), name)

"""Whether an answer is right: functions for the `right` of a Sample."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Right = Callable[[bytes], bool]


def same_json(expected: Any) -> Right:
    """The JSON value itself."""
    return lambda body: bool(json.loads(body) == expected)


def same_text(expected: str) -> Right:
    return lambda body: body.decode() == expected


def same_npy(expected: npt.NDArray[Any]) -> Right:
    """The array as a .npy file, of the same data type and shape."""

    def right(body: bytes) -> bool:
        found = np.load(io.BytesIO(body))
        return found.dtype == expected.dtype and np.array_equal(found, expected)

    return right


def triton_output(expected: list[Any]) -> Right:
    """The values of the first output, as Triton's own HTTP endpoint answers them."""
    return lambda body: bool(json.loads(body)["outputs"][0]["data"] == expected)


def npy(array: npt.NDArray[Any]) -> bytes:
    """The .npy file of an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()

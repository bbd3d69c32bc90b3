"""An API that returns the array that it was sent: all that the front does, and nothing else."""

from typing import Any

import numpy.typing as npt

import adapter
from adapter.io import NumpyNdarray

svc = adapter.Service("echo")


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def echo(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array."""
    return array

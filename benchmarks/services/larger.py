"""Runners with larger work: arrays of 1 MB, batches of many rows, and texts of 100 KB, which travel as a blob."""

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import adapter
from adapter.io import NumpyNdarray, Text
from benchmarks.sizes import FLOATS, ROWS

Pixels = Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1, FLOATS))]


class Negative(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def negate(self, pixels: Pixels) -> Pixels:
        """Return the negative of an image."""
        return -pixels


class Capitals(adapter.Runnable):
    @adapter.Runnable.method
    def capitals(self, text: str) -> str:
        """Write a text in capitals."""
        return text.upper()


negative = adapter.Runner(Negative, name="negative", max_batch_size=16)
capitals = adapter.Runner(Capitals, name="capitals")
iris = adapter.sklearn.get("iris_clf:latest").to_runner(max_batch_size=ROWS)

svc = adapter.Service("larger", runners=[negative, capitals, iris])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def negate(pixels: npt.NDArray[np.float32]) -> Any:
    """Return the negatives of images."""
    return await negative.negate.async_run(pixels)


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def classify(rows: npt.NDArray[np.float64]) -> Any:
    """Classify irises."""
    return await iris.predict.async_run(rows)


@svc.api(input=Text(), output=Text())
async def shout(text: str) -> Any:
    """Return the text in capitals."""
    return await capitals.capitals.async_run(text)

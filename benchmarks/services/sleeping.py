"""Runners that take 5 ms for a batch, whatever its size: with batching, and without."""

import time
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import adapter
from adapter.io import NumpyNdarray

SECONDS, MOST = 0.005, 32

Numbers = Annotated[npt.NDArray[np.float64], adapter.TensorSpec("float64", (-1, 1))]


class Together(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def negate(self, numbers: Numbers) -> Numbers:
        """Return the negatives, a while later."""
        time.sleep(SECONDS)
        return -numbers


class Alone(adapter.Runnable):
    @adapter.Runnable.method(batchable=False)
    def negate(self, numbers: Numbers) -> Numbers:
        """Return the negatives, a while later."""
        time.sleep(SECONDS)
        return -numbers


together = adapter.Runner(Together, name="together", max_batch_size=MOST, cpu=1)
alone = adapter.Runner(Alone, name="alone", cpu=1)

svc = adapter.Service("sleeping", runners=[together, alone])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray(), route="/together")
async def negate_together(numbers: npt.NDArray[np.float64]) -> Any:
    """Return the negatives; calls share batches."""
    return await together.negate.async_run(numbers)


@svc.api(input=NumpyNdarray(), output=NumpyNdarray(), route="/alone")
async def negate_alone(numbers: npt.NDArray[np.float64]) -> Any:
    """Return the negatives; each call by itself."""
    return await alone.negate.async_run(numbers)

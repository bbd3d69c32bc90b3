"""A Runnable that does next to nothing, so that what is measured is the way to it."""

from typing import Annotated

import numpy as np
import numpy.typing as npt

import adapter

Vector = Annotated[npt.NDArray[np.float32], adapter.TensorSpec("float32", (-1, -1))]


class Doubling(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def double(self, x: Vector) -> Vector:
        """Return twice the vector."""
        twice: npt.NDArray[np.float32] = x * np.float32(2)
        return twice


svc = adapter.Service("doubling", runners=[adapter.Runner(Doubling, name="worker", max_batch_size=32, cpu=1)])

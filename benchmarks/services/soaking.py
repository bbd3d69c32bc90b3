"""What a service does all day: batches of tensors, texts as blobs, metrics and log, from async and sync APIs."""

import logging
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import adapter
from adapter.io import NumpyNdarray, Text

logger = logging.getLogger(__name__)
calls = adapter.metrics.Counter("soaking_calls", "Calls.", ["method"])
sizes = adapter.metrics.Histogram("soaking_sizes", "Sizes of batches.", buckets=(1, 4, 16, 64))

Numbers = Annotated[npt.NDArray[np.float64], adapter.TensorSpec("float64", (-1, 1))]


class Soaking(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def negate(self, numbers: Numbers) -> Numbers:
        """Return the negatives."""
        calls.labels("negate").inc()
        sizes.observe(len(numbers))
        return -numbers


class Shouting(adapter.Runnable):
    def __init__(self) -> None:
        self._seen = 0

    @adapter.Runnable.method(batchable=True)
    def capitals(self, texts: list[str]) -> list[str]:
        """Write texts in capitals."""
        calls.labels("capitals").inc()
        self._seen += 1
        if self._seen % 1000 == 0:
            logger.info("%s batches", self._seen)
        return [text.upper() for text in texts]


negating = adapter.Runner(Soaking, name="negating", max_batch_size=64)
shouting = adapter.Runner(Shouting, name="shouting", max_batch_size=64)

svc = adapter.Service("soaking", runners=[negating, shouting])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def negate(numbers: npt.NDArray[np.float64]) -> Any:
    """Return the negatives."""
    calls.labels("api").inc()
    return await negating.negate.async_run(numbers)


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
def negate_sync(numbers: npt.NDArray[np.float64]) -> Any:
    """Return the negatives, from a thread."""
    return negating.negate.run(numbers)


@svc.api(input=Text(), output=Text())
async def shout(text: str) -> Any:
    """Return the text in capitals."""
    return (await shouting.capitals.async_run([text]))[0]

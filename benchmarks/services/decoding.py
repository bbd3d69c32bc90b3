"""APIs that read what is expensive to read, and tell something of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL.Image import Image as Picture

import adapter
from adapter.io import JSON, Image, Multipart, NumpyNdarray, PandasDataFrame
from benchmarks import facts

svc = adapter.Service("decoding")


@svc.api(input=Image(), output=JSON())
async def image(picture: Picture) -> dict[str, Any]:
    """Tell of an image."""
    return facts.of_image(picture)


@svc.api(input=NumpyNdarray(dtype="float32"), output=JSON())
async def array(values: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Tell of an array."""
    return facts.of_array(values)


@svc.api(input=PandasDataFrame(), output=JSON())
async def frame(rows: pd.DataFrame) -> dict[str, Any]:
    """Tell of a data frame."""
    return facts.of_frame(rows)


@svc.api(input=Multipart(image=Image(), rows=PandasDataFrame()), output=JSON())
async def both(image: Picture, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Tell of an image and of a data frame."""
    return [facts.of_image(image), facts.of_frame(rows)]

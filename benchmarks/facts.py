"""What an API of ours, and the one by hand, tell of what they decoded: the same little work on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL.Image import Image


def of_image(image: Image) -> dict[str, Any]:
    return {"size": list(image.size), "mode": image.mode, "mean": float(np.asarray(image).mean())}


def of_array(array: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sum": float(array.sum(dtype=np.float64))}


def of_frame(frame: pd.DataFrame) -> dict[str, Any]:
    means = {name: float(frame[name].mean()) for name in frame.select_dtypes("number")}
    return {"rows": len(frame), "columns": list(frame.columns), "means": means}

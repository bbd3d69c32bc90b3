"""A service of tables and arrays: what comes is sent back, by way of a runner."""

import numpy as np
import numpy.typing as npt
import pandas as pd

import adapter
from adapter.io import NumpyNdarray, PandasDataFrame, PandasSeries


class Doubler(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def double(self, frame: pd.DataFrame) -> pd.DataFrame:
        doubled: pd.DataFrame = frame * 2
        return doubled


doubler = adapter.Runner(Doubler, name="doubler")
svc = adapter.Service("frames", runners=[doubler])


@svc.api(
    input=PandasDataFrame(columns=["a", "b"], dtype="float64", enforce_dtype=True, shape=(-1, 2), enforce_shape=True),
    output=PandasDataFrame(),
)
async def double(frame: pd.DataFrame) -> pd.DataFrame:
    return await doubler.double.async_run(frame)  # type: ignore[no-any-return]  # a runner returns anything


@svc.api(input=PandasDataFrame(), output=PandasDataFrame(default_format="csv"))
def echo(frame: pd.DataFrame, ctx: adapter.Context) -> pd.DataFrame:
    ctx.response.headers["x-rows"] = str(len(frame))
    return frame


@svc.api(input=PandasSeries(dtype="float32"), output=PandasSeries())
def total(series: "pd.Series[float]") -> list[float]:
    return [float(series.sum())]


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def negative(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    array *= -1
    return array

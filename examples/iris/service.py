"""The iris classifier of seed 001: a saved scikit-learn model behind a synchronous and an asynchronous API."""

import numpy as np
import numpy.typing as npt

import adapter
from adapter.io import NumpyNdarray

iris_clf_runner = adapter.sklearn.get("iris_clf:latest").to_runner()

svc = adapter.Service("iris_classifier", runners=[iris_clf_runner])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
def classify(input_series: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Classify irises by sepal length, sepal width, petal length and petal width in centimetres, a row each."""
    result: npt.NDArray[np.int64] = iris_clf_runner.predict.run(input_series)
    return result


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def classify_async(input_series: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The same on the event loop: many requests share one process without a thread for each."""
    result: npt.NDArray[np.int64] = await iris_clf_runner.predict.async_run(input_series)
    return result

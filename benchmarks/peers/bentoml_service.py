"""The service of `examples/iris` in BentoML 1.1."""

import bentoml
import numpy as np
from bentoml.io import NumpyNdarray

iris_clf_runner = bentoml.sklearn.get("iris_clf:latest").to_runner()

svc = bentoml.Service("iris_classifier", runners=[iris_clf_runner])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
def classify(input_series: np.ndarray) -> np.ndarray:
    """Classify irises."""
    return iris_clf_runner.predict.run(input_series)


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def classify_async(input_series: np.ndarray) -> np.ndarray:
    """Classify irises on the event loop."""
    return await iris_clf_runner.predict.async_run(input_series)

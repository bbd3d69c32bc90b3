"""`adapter.sklearn`: scikit-learn estimators and pipelines, and what follows their conventions.

Pickled by cloudpickle rather than joblib, which could not write functions and classes of a script or a notebook; read
by joblib, which reads both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Tensors
from adapter.frameworks.picklable_model import FILE, PicklableModel
from adapter.model import ModelInfo, Parameter
from adapter.tensor import TensorSpec, triton_dtype

logger = logging.getLogger(__name__)


class Sklearn(PicklableModel):
    name = "sklearn"
    libraries = {"sklearn": "scikit-learn", "numpy": "numpy"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"predict": {"batchable": False}}  # noqa: RUF012
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        from sklearn.base import BaseEstimator

        if not isinstance(model, BaseEstimator):
            raise InvalidArgument(
                f"adapter.sklearn saves estimators and pipelines of scikit-learn, not {_described(model)}; "
                "adapter.picklable_model saves any object that can be pickled."
            )

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import joblib

        return joblib.load(folder / FILE)  # a plain pickle, too; models that came from elsewhere are joblib's own

    def tensors(self, native: Any, method: str, sample: Any) -> Tensors | None:
        """One input as wide as the model was fitted, and the outputs that a trial on a few rows gives.

        None, so that a call travels as a blob, where arrays of numbers do not say it all: for text, mixed columns,
        sparse or nested results, string labels, results whose form depends on an argument.
        """
        name, width = _first_parameter(native, method), getattr(native, "n_features_in_", None)
        if name is None or width is None or any(_untypable(part, method) for part in _parts(native)):
            return None
        level = logging.DEBUG if sample is None else logging.WARNING
        sample = _trial(native, width) if sample is None else sample
        dtype = _numeric_dtype(sample)
        if dtype is None or np.ndim(sample) != 2 or not len(sample):
            return None
        try:
            if np.shape(sample)[1] != width:
                raise InvalidArgument(f"The sample has {np.shape(sample)[1]} columns, the model was fitted on {width}.")
            outputs = _outputs(native, method, sample)
        except Exception as error:  # noqa: BLE001  # user code, on rows that it may refuse for any reason
            called = f"{type(native).__name__}.{method}"
            logger.log(level, "A trial of %s failed, so its calls travel as blobs: %s", called, sentence(error))
            return None
        return ((TensorSpec(dtype.name, (-1, width), name),), outputs) if outputs else None


def _first_parameter(native: Any, method: str) -> str | None:
    """The name of a method's input, None where it needs more than one argument."""
    parameters = Parameter.all_of(getattr(native, method)) or ()
    if not parameters or parameters[0].kind not in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD"):
        return None
    alone = not any(p.required and not p.kind.startswith("VAR_") for p in parameters[1:])
    return parameters[0].name if alone else None


def _parts(native: Any) -> Iterator[Any]:
    """An estimator and those it is made of: the steps of a pipeline, the best of a search, …"""
    from sklearn.base import BaseEstimator

    waiting, seen = [native], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, BaseEstimator):
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield value
            waiting.extend(vars(value).values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())


def _untypable(part: Any, method: str) -> bool:
    from sklearn.compose import ColumnTransformer

    if isinstance(part, ColumnTransformer):
        return True
    # encoders and imputers that were fitted on text, and trees on a data frame's categories
    learned = [*_arrays(getattr(part, "categories_", None)), *_arrays(getattr(part, "statistics_", None))]
    if any(a.dtype.kind not in "biuf" for a in learned) or np.any(getattr(part, "is_categorical_", None)):
        return True
    # GaussianProcessRegressor.predict(X, return_std=True) returns a pair: no one list of tensors says so
    parameters = Parameter.all_of(getattr(part, method, None)) or ()
    return any(p.name.startswith("return_") for p in parameters)


def _arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    if value is None:
        return []
    return [np.asarray(v) for v in value] if isinstance(value, list) else [np.asarray(value)]


def _trial(native: Any, width: int) -> Any:
    names = getattr(native, "feature_names_in_", None)
    zeros = np.zeros((1, width))
    if names is None:
        return zeros
    import pandas as pd

    return pd.DataFrame(zeros, columns=list(names))


def _numeric_dtype(sample: Any) -> np.dtype[Any] | None:
    """The data type of a sample as Triton has it, None for text, mixed columns, sparse matrices and the like."""
    if hasattr(sample, "to_numpy"):
        sample = sample.to_numpy()
    elif isinstance(sample, (list, tuple)):
        sample = np.asarray(sample)
    return sample.dtype if isinstance(sample, np.ndarray) and triton_dtype(sample.dtype) else None


def _outputs(native: Any, method: str, sample: Any) -> tuple[TensorSpec, ...] | None:
    """What the method returns for two and for three rows, where that differs in the number of rows only."""
    found = []
    for rows in (2, 3):
        chosen = np.arange(rows) % len(sample)
        given = sample.iloc[chosen] if hasattr(sample, "iloc") else np.asarray(sample)[chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = getattr(native, method)(given)
        results = result if isinstance(result, tuple) else (result,)
        if not all(type(r) is np.ndarray and r.ndim and len(r) == rows and triton_dtype(r.dtype) for r in results):
            return None
        found.append(tuple(TensorSpec(r.dtype.name, (-1, *r.shape[1:]), f"output_{i}") for i, r in enumerate(results)))
    return found[0] if found[0] == found[1] else None


def _described(model: Any) -> str:
    return f"the class {model.__name__} itself" if isinstance(model, type) else f"a {type(model).__name__}"


framework = Sklearn()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

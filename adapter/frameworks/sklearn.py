"""`adapter.sklearn`: scikit-learn estimators and pipelines, and what follows their conventions.

Pickled by cloudpickle rather than joblib, which could not write functions and classes of a script or a notebook; read
by joblib, which reads both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapter.exceptions import InvalidArgument
from adapter.frameworks.base import described
from adapter.frameworks.picklable_model import FILE, PicklableModel
from adapter.frameworks.trial import Tensors, Trial, alone, numbers
from adapter.model import ModelInfo, Parameter


class Sklearn(PicklableModel):
    name = "sklearn"
    libraries = {"sklearn": "scikit-learn", "numpy": "numpy"}  # noqa: RUF012  # declared ClassVar in Framework
    default_signatures = {"predict": {"batchable": False}}  # noqa: RUF012
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        from sklearn.base import BaseEstimator

        if not isinstance(model, BaseEstimator):
            raise InvalidArgument(
                f"adapter.sklearn saves estimators and pipelines of scikit-learn, not {described(model)}; "
                "adapter.picklable_model saves any object that can be pickled."
            )
        for step in _steps(model):
            # a class of the user's own may not say in scikit-learn's way that it is fitted
            if type(step).__module__.startswith("sklearn.") and not _fitted(step):
                of = "" if step is model else f", a step of this {type(model).__name__},"
                raise InvalidArgument(f"This {type(step).__name__}{of} is not fitted: call `fit` before it is saved.")

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import joblib

        return joblib.load(folder / FILE)  # a plain pickle, too; models that came from elsewhere are joblib's own

    def modules(self, model: Any) -> set[str]:
        # callers of a model that was fitted on a data frame send such
        return super().modules(model) | ({"pandas"} if hasattr(model, "feature_names_in_") else set())

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a method; a sparse result becomes a dense array, and a list of arrays (one an output) a tuple of them.

        Neither could be cut into the answers of a batch otherwise.
        """
        result = getattr(native, method)(*args, **kwargs)
        if hasattr(result, "toarray"):
            return result.toarray()
        several = type(result) is list and result and all(isinstance(each, np.ndarray) for each in result)
        return tuple(result) if several else result

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        """One input as wide as the model was fitted, and the outputs that a trial on a few rows gives.

        None, so that a call travels as a blob, where arrays of numbers do not say it all: for text, mixed columns,
        sparse or nested results, string labels, results whose form depends on an argument.
        """
        width = getattr(native, "n_features_in_", None)
        if width is None or not _takes_one(trial.parameters):
            return None
        if _returns_more(native, method) or any(_untypable(part) for part in parts(native)):
            return None
        sample = _zeros(native, width) if trial.sample is None else alone(trial.sample)
        table = numbers(sample)
        if table is None or table.ndim != 2:
            return None

        def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if table.shape[1] != width:
                raise InvalidArgument(f"The sample has {table.shape[1]} columns, the model was fitted on {width}.")
            return self.call(native, method, args, kwargs)

        return trial.on(sample).tensors(called)


def _steps(native: Any) -> Iterator[Any]:
    """An estimator, or the steps of a pipeline, those of pipelines in it included."""
    from sklearn.base import BaseEstimator
    from sklearn.pipeline import Pipeline

    if isinstance(native, Pipeline):
        for _, step in native.steps:
            yield from _steps(step)
    elif isinstance(native, BaseEstimator):  # and not "passthrough"
        yield native


def _fitted(native: Any) -> bool:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if getattr(native, "vocabulary", None) is not None:  # of texts, which need not be learned then
        return True
    try:
        check_is_fitted(native)
    except NotFittedError:
        return False
    return True


def _takes_one(parameters: Sequence[Parameter] | None) -> bool:
    """Whether a method needs its input and no other argument."""
    if not parameters or parameters[0].kind not in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD"):
        return False
    return not any(p.required and not p.kind.startswith("VAR_") for p in parameters[1:])


def parts(native: Any) -> Iterator[Any]:
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


def _untypable(part: Any) -> bool:
    from sklearn.compose import ColumnTransformer

    if isinstance(part, ColumnTransformer):
        return True
    # encoders and imputers that were fitted on text, and trees on a data frame's categories
    learned = [*_arrays(getattr(part, "categories_", None)), *_arrays(getattr(part, "statistics_", None))]
    return any(a.dtype.kind not in "biuf" for a in learned) or bool(np.any(getattr(part, "is_categorical_", None)))


def _returns_more(native: Any, method: str) -> bool:
    """Whether an argument changes what the method returns: `predict(X, return_std=True)` of some returns a pair.

    A pipeline hands such arguments on to its last step.
    """
    parameters = Parameter.all_of(getattr(native, method, None)) or ()
    if any(p.name.startswith("return_") for p in parameters):
        return True
    handed_on = any(p.kind == "VAR_KEYWORD" for p in parameters)
    return handed_on and any(_returns_more(step, method) for _, step in getattr(native, "steps", [])[-1:])


def _arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    if value is None:
        return []
    return [np.asarray(v) for v in value] if isinstance(value, list) else [np.asarray(value)]


def _zeros(native: Any, width: int) -> Any:
    names = getattr(native, "feature_names_in_", None)
    zeros = np.zeros((1, width))
    if names is None:
        return zeros
    import pandas as pd

    return pd.DataFrame(zeros, columns=list(names))


framework = Sklearn()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner

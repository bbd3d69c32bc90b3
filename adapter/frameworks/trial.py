"""What a trial on a few rows tells of a method: the tensors it takes and returns."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapter.exceptions import sentence
from adapter.model import Parameter
from adapter.tensor import TensorSpec, triton_dtype

logger = logging.getLogger(__name__)

Tensors = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
Called = Callable[[tuple[Any, ...], dict[str, Any]], Any]

_ROWS = (2, 3)
_POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


@dataclass(frozen=True)
class Trial:
    """How a method may be tried: `subject` names it in messages, `sample` is what was given as `sample=`.

    `axes` are the batch axes of inputs and outputs (0 where it is not batchable), `partial` the keyword arguments of
    each call.
    """

    subject: str
    sample: Any = None
    parameters: Sequence[Parameter] | None = None
    axes: tuple[int, int] = (0, 0)
    batchable: bool = False
    partial: Mapping[str, Any] = field(default_factory=dict)
    level: int = logging.WARNING

    def on(self, sample: Any) -> Trial:
        """The same on another sample: on one that the framework made, a failure is no news."""
        return dataclasses.replace(self, sample=sample, level=logging.DEBUG if self.sample is None else self.level)

    def on_numbers(self, width: int, dtype: type[np.generic]) -> Trial | None:
        """The same on the sample as numbers of one type, or on a row of `width` zeros; None where it is no numbers."""
        sample = np.zeros((1, width)) if self.sample is None else numbers(alone(self.sample))
        return None if sample is None else self.on(sample.astype(dtype))

    def tensors(self, called: Called) -> Tensors | None:
        """Call a method with two and with three rows of the sample.

        None, so that its calls travel as blobs, where there is no sample, where the method takes or returns something
        else than arrays of numbers with a row for each row that came, or refuses the sample. A list or a mapping that
        it returns is such a thing, too: tensors would lose what it is.
        """
        given = named(self.sample, self.parameters)
        if given is None:
            return None
        arrays = {name: numbers(value) for name, value in given.items()}
        axis = self.axes[0]
        if not all(a is not None and a.ndim > axis and a.shape[axis] for a in arrays.values()):
            return None
        try:
            found = [self._outputs(given, called, rows) for rows in _ROWS]
        except Exception as error:  # noqa: BLE001  # user code, which may refuse the sample for any reason
            message = "A trial of %s failed, so its calls travel as blobs: %s"
            logger.log(self.level, message, self.subject, sentence(error))
            return None
        if found[0] is None or found[0] != found[1]:
            return None
        return tuple(_spec(a, axis, name) for name, a in arrays.items() if a is not None), found[0]

    def _outputs(self, given: Mapping[str, Any], called: Called, rows: int) -> tuple[TensorSpec, ...] | None:
        taken = {name: _take(value, rows, self.axes[0]) for name, value in given.items()}
        # as a call arrives in a worker
        keywords = {p.name for p in self.parameters or () if p.kind in _NAMED}
        starred = [value for name, value in taken.items() if name not in keywords]
        args, kwargs = positional(self.parameters, starred, {n: v for n, v in taken.items() if n in keywords})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = called(args, {**self.partial, **kwargs})
        axis, results = self.axes[1], result if isinstance(result, tuple) else (result,)
        if isinstance(result, tuple) and len(result) < 2:
            return None
        for value in results:
            array = type(value) is np.ndarray and triton_dtype(value.dtype) is not None
            if not array or value.ndim <= axis or value.shape[axis] != rows:
                return None
        return tuple(_spec(value, axis, f"output_{i}") for i, value in enumerate(results))


def named(sample: Any, parameters: Sequence[Parameter] | None) -> dict[str, Any] | None:
    """A sample as arguments by name: one input, a tuple of several, or a mapping; None where one is missing."""
    if sample is None:
        return None
    known = [p.name for p in parameters or () if p.kind in _POSITIONAL]
    if isinstance(sample, Mapping):
        found = {str(name): value for name, value in sample.items()}
    else:
        values = sample if isinstance(sample, tuple) else (sample,)
        names = [*known, *(f"input_{i}" for i in range(len(known), len(values)))]
        found = dict(zip(names, values, strict=False))
    required = {p.name for p in parameters or () if p.required and not p.kind.startswith("VAR_")}
    return found if found and required <= set(found) else None


def positional(
    parameters: Sequence[Parameter] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with as many as possible by position."""
    found, rest = list(args), dict(kwargs)
    names = [p.name for p in parameters or () if p.kind in _POSITIONAL]
    for name in names[len(found) :]:
        if name not in rest:
            break
        found.append(rest.pop(name))
    return tuple(found), rest


def alone(sample: Any) -> Any:
    """A sample of one argument as this argument, of several as it is."""
    if isinstance(sample, (tuple, Mapping)) and len(sample) == 1:
        return next(iter(sample.values() if isinstance(sample, Mapping) else sample))
    return sample


def numbers(value: Any) -> np.ndarray[Any, Any] | None:
    """A value as an array of numbers; None for text, mixed columns, sparse matrices, ragged lists and the like."""
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    elif isinstance(value, list):
        try:
            value = np.asarray(value)
        except ValueError:
            return None
    return value if isinstance(value, np.ndarray) and triton_dtype(value.dtype) else None


def _take(value: Any, rows: int, axis: int) -> Any:
    """So many rows of a value, the first again after the last."""
    if hasattr(value, "iloc"):
        return value.iloc[np.arange(rows) % len(value)]
    array = np.asarray(value)
    return np.take(array, np.arange(rows) % array.shape[axis], axis)


def _spec(array: np.ndarray[Any, Any], axis: int, name: str) -> TensorSpec:
    return TensorSpec.of(array, name, batch_dim=axis)

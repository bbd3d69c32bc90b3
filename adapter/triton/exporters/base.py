"""What converts saved models for Triton's own backends, and the check that a converted model answers as the original.

A backend is one file here; see `Exporter`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from adapter.exceptions import AdapterError
from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array
from adapter.triton.native import Native

Run = Callable[[Sequence[Array]], Sequence[Array]]


@dataclass(frozen=True)
class Scope:
    """Where the numbers of an input matter, as a converter knows from the model.

    `low` and `high` are the least and the greatest of each column, `thresholds` those of each, in their order.
    """

    low: Array
    high: Array
    thresholds: Sequence[Array]


class CannotConvert(AdapterError):
    """A backend cannot serve a method of a saved model; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Converted:
    """A model converted for a backend: how it is served, its files, and the same model as it can be run here.

    `run` takes the arrays that would be sent to Triton, and returns those that it would answer. `scope` is that of each
    input, where the model tells it. `scores` are those that the labels of a classifier come
    from, of the converted model and of the original: equal labels alone may be luck.
    """

    native: Native
    files: Mapping[str, bytes]
    run: Run
    scope: Sequence[Scope] = ()
    scores: tuple[Run, Run] | None = None


class Exporter(abc.ABC):
    """Converts methods of saved models for one of Triton's backends. To add a backend, write one file in this folder:

    - subclass Exporter, set `backend` (Triton's name of it) and `libraries` (import name -> what to install);
    - write `convert`: it yields the model as the backend takes it, with a Native record whose names, data types and
      dims are those that the backend demands, and whose `run` computes here what Triton will; where there are several
      ways, the one that is tried first comes first. Raise CannotConvert where there is none. Import libraries inside
      functions only;
    - put it into the table in `__init__.py`, and its name into BACKENDS of `adapter/settings.py`.

    Whether the converted model is good is not decided here: `parity.py` compares it with the original.
    """

    backend: ClassVar[str]
    libraries: ClassVar[Mapping[str, str]]

    @abc.abstractmethod
    def convert(self, model: Model, method: MethodSpec) -> Iterator[Converted]:
        """Yield the ways in which the backend can serve a method of a saved model, the best one first."""


def tensor_dims(method: MethodSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """The dims of a tensor in `config.pbtxt`, of its shape on the wire."""
    return tuple(shape[1:] if method.signature.batchable else shape)


def demand_first_axis(method: MethodSpec) -> None:
    """Refuse a method whose batch lies on another axis than the first: Triton knows no other."""
    if method.signature.batchable and method.signature.batch_dim != (0, 0):
        raise CannotConvert(
            f"its batch axes are {method.signature.batch_dim}, and Triton's own backends know (0, 0) alone"
        )

"""Whether a converted model answers as the original: both are run on the same rows, which are made anew alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter.exceptions import AdapterError, message_of, sentence
from adapter.method import MethodSpec
from adapter.tensor import Array, concat
from adapter.triton.exporters.base import CannotConvert, Converted, Rows, Run
from adapter.triton.native import from_native, to_native

ROWS = 256
TOLERANCE = 1e-4  # of scores: the difference to the original's, in parts of it where it is above 1
_SEED = 20_240_101
_NAN_ROWS = 32
_MIXED = 32
_SAMPLED = 128
_FREE_LENGTH = 8  # of an axis that may have any
_PIECE_BYTES = 16 << 20
_SPREADS = (1.0, 10.0, 1000.0)  # of made-up rows where nothing tells what the inputs look like


@dataclass(frozen=True)
class Parity:
    """What the comparison found: over how many rows, some with NaN, and the largest difference of a score."""

    rows: int
    nan_rows: int
    tolerance: float
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    converted: Converted, method: MethodSpec, original: Callable[[Sequence[Array]], Any], sample: Sequence[Array] | None
) -> Parity:
    """Compare a converted model with the original on at least 256 rows; CannotConvert where they differ.

    `original` takes the method's tensors as they are on the wire, `sample` are some that it was saved with. Labels,
    which are no floats, must be equal, and scores within TOLERANCE; NaN is among the rows where the original takes it,
    which is where it answers something else than NaN.
    """
    largest, rows, nan_rows, rowwise = 0.0, 0, 0, _rowwise(method)
    for arrays, with_nan in _cases(method, sample, converted.scope):
        try:
            expected = _called(original, method, arrays)
        except Exception as error:  # user code, on rows that it may refuse for any reason
            if with_nan:
                continue
            advice = "" if sample is not None else "; save it with `sample=`, some rows as it gets them"
            raise CannotConvert(f"the model cannot be tried on rows made for it ({sentence(error)}){advice}") from error
        try:
            native, run = converted.native, converted.run
            found = from_native(native, method, _run(run, to_native(native, method, arrays, {})))
            if converted.scores is not None:
                ours, theirs = converted.scores
                expected, found = [*expected, *_run(theirs, arrays)], [*found, *_run(ours, arrays)]
        except Exception as error:  # whatever a library raises on a model that it converted itself
            text = message_of(error) if isinstance(error, AdapterError) else sentence(error)
            raise CannotConvert(f"the converted model cannot be run: {text}") from error
        for e, f in zip(expected, found, strict=True):
            if e.shape != f.shape:
                raise CannotConvert(f"it returns the shape {f.shape} where {method.name}() returns {e.shape}")
        count = len(arrays[0]) if rowwise else 1
        if with_nan:
            taken = _answered(expected, count)
            expected, found = ([a[taken] if rowwise else a for a in each] for each in (expected, found))
            count = int(taken.sum())
        if count:
            largest = max(largest, *(_difference(e, f, method) for e, f in zip(expected, found, strict=True)))
        rows, nan_rows = rows + count, nan_rows + count * with_nan
    return Parity(rows, nan_rows, TOLERANCE, largest)


def _answered(outputs: Sequence[Array], rows: int) -> npt.NDArray[np.bool_]:
    """Which of so many rows were not answered with NaN."""
    answered = np.ones(rows, bool)
    for array in outputs:
        if array.dtype.kind == "f":
            answered &= ~np.isnan(array).reshape(rows, -1).any(axis=1)
    return answered


def _called(original: Callable[[Sequence[Array]], Any], method: MethodSpec, arrays: Sequence[Array]) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.pack_result(original([a.copy() for a in arrays]))


def _run(run: Run, arrays: Sequence[Array]) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [np.asarray(a) for a in run(arrays)]


def _difference(expected: Array, found: Array, method: MethodSpec) -> float:
    if expected.dtype.kind != "f":
        unequal = int((expected != found).sum())
        if unequal:
            raise CannotConvert(f"{unequal} of {expected.size} labels of {method.name}() are others")
        return 0.0
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))  # an infinite one is equal, too
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(expected - found) / np.maximum(1.0, np.abs(expected)))
    largest = float(apart.max(initial=0.0))
    if not largest <= TOLERANCE:
        raise CannotConvert(
            f"its scores differ from those of {method.name}() by up to {largest:.2g}, above {TOLERANCE:g}"
        )
    return largest


# ---- rows -----------------------------------------------------------------------------------------------------------


def _rowwise(method: MethodSpec) -> bool:
    """Whether the first axis of every tensor is that of rows, of which there may be any number."""
    outputs = (method.wire_shape(spec, method.signature.batch_dim[1]) for spec in method.outputs)
    return all(shape[:1] == (-1,) for shape in (*_wire_shapes(method), *outputs))


def _wire_shapes(method: MethodSpec) -> list[tuple[int, ...]]:
    return [method.wire_shape(spec, method.signature.batch_dim[0]) for spec in method.inputs]


def _cases(method: MethodSpec, sample: Sequence[Array] | None, scope: Rows) -> Iterator[tuple[list[Array], bool]]:
    """The arguments to try, each with whether NaN is among them."""
    random = np.random.default_rng(_SEED)
    rowwise = _rowwise(method)
    plain = []
    for i, (spec, shape) in enumerate(zip(method.inputs, _wire_shapes(method), strict=True)):
        known = None if sample is None else sample[i] if rowwise else sample[i][None]
        row = _row_shape(shape[1:] if rowwise else shape, known)
        edges = _edges(known, row) if known is not None and len(known) else scope[i] if scope else None
        plain.append(_rows(np.dtype(spec.dtype), row, random, known, edges))
    yield from _pieces(plain, rowwise, with_nan=False)
    if any(a.dtype.kind == "f" for a in plain):
        few = [a[:_NAN_ROWS] for a in plain]
        yield from _pieces([_with_holes(a, random) if a.dtype.kind == "f" else a for a in few], rowwise, with_nan=True)


def _pieces(arrays: Sequence[Array], rowwise: bool, *, with_nan: bool) -> Iterator[tuple[list[Array], bool]]:
    if not rowwise:
        for i in range(len(arrays[0])):
            yield [a[i] for a in arrays], with_nan
        return
    step = max(1, min(ROWS, _PIECE_BYTES // max(1, sum(a[:1].nbytes for a in arrays))))
    for start in range(0, len(arrays[0]), step):
        yield [a[start : start + step] for a in arrays], with_nan


def _row_shape(shape: tuple[int, ...], sample: Array | None) -> tuple[int, ...]:
    have = sample.shape[1:] if sample is not None else (_FREE_LENGTH,) * len(shape)
    return tuple(n if n >= 0 else have[i] for i, n in enumerate(shape))


def _edges(sample: Array, row: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the greatest value of each number of a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is NaN in every row
        low, high = (f(sample.astype(float), axis=0) for f in (np.nanmin, np.nanmax))
    return np.nan_to_num(low), np.nan_to_num(high)


def _rows(
    dtype: np.dtype[Any],
    row: tuple[int, ...],
    random: np.random.Generator,
    sample: Array | None,
    edges: tuple[Array, Array] | None,
) -> Array:
    """ROWS rows: of the sample, the edges and mixtures of them, and others between; spread widely without any edges."""
    found: list[Array] = []
    if edges is not None:
        low, high = (np.broadcast_to(edge, row) for edge in edges)
        mixed = np.where(random.random((_MIXED, *row)) < 0.5, low, high)
        found = [low[None], high[None], mixed]
        if sample is not None:
            found.append(sample[:_SAMPLED].astype(float))
        rest = ROWS - sum(map(len, found))
        found.append(low + random.random((rest, *row)) * (high - low))
    elif dtype.kind == "f":
        spread = np.repeat(_SPREADS, math.ceil(ROWS / len(_SPREADS)))[:ROWS]
        found.append(random.standard_normal((ROWS, *row)) * spread.reshape(-1, *(1 for _ in row)))
    else:
        found.append(random.integers(0, 2, (ROWS, *row)).astype(float))
    whole = concat(found, 0)
    if dtype.kind != "f":
        np.rint(whole, out=whole)
    made: Array = whole.astype(dtype)
    return made


def _with_holes(rows: Array, random: np.random.Generator) -> Array:
    holed: Array = rows.copy()
    holed[random.random(holed.shape) < 0.3] = np.nan
    flat = holed.reshape(len(holed), -1)  # a view: each row has one at least, and the first nothing else
    flat[np.arange(len(flat)), random.integers(0, flat.shape[1], len(flat))] = np.nan
    flat[0] = np.nan
    return holed

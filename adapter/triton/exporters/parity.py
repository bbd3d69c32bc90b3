"""Whether a converted model answers as the original: both are run on the same rows, which are made anew alike."""

from __future__ import annotations

import contextlib
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
from adapter.triton.exporters.base import CannotConvert, Converted, Run, Scope
from adapter.triton.native import from_native, to_native

ROWS = 256
TOLERANCE = 1e-4  # of scores, see `_Comparison`
_SEED = 20_240_101
_NAN_ROWS = 32
_NAN_COLUMNS = 64  # tried one by one where a model refuses NaN in all of them
_MIXED = 32
_BETWEEN = 64
_BEYOND = 128
_AT_THRESHOLDS = 128
_FINEST = 1e-5
_SAMPLED = 128  # of rows that are large; of others the whole sample
_LARGE_BYTES = 8 << 10
_FREE_LENGTH = 8  # of an axis that may have any
_PIECE_BYTES = 16 << 20
_SPREADS = (1.0, 10.0, 1000.0)  # of made-up rows where nothing tells what the inputs look like
_SMALLEST = 1e-6  # of a tensor's scores: a column that never comes near it counts as this large


@dataclass(frozen=True)
class Parity:
    """What the comparison found: over how many rows, some with NaN, and the largest difference of a score.

    `refuses_nan` says that the original raises wherever NaN comes, or that the converted model answers a number to it
    where the original answers NaN.
    """

    rows: int
    nan_rows: int
    tolerance: float
    largest_difference: float
    refuses_nan: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Refused(Exception):
    """The original raises on rows that were made for it."""


def compare(
    converted: Converted, method: MethodSpec, original: Callable[[Sequence[Array]], Any], sample: Sequence[Array] | None
) -> Parity:
    """Compare a converted model with the original on at least 256 rows; CannotConvert where they differ.

    `original` takes the method's tensors as they are on the wire, `sample` are some that it was saved with. Labels must
    be equal, scores within TOLERANCE. Beside the rows of the sample and others between them are some with zeros and
    some beyond its extremes, which both may refuse, and some with NaN, of which those count that the original takes:
    it may raise, or answer NaN to NaN.
    """
    random, rowwise = np.random.default_rng(_SEED), _rowwise(method)
    both = _Comparison(converted, method, original, rowwise=rowwise)
    plain = _plain(method, sample, converted.scope, random)
    for arrays in _pieces(plain, rowwise):
        try:
            both.on(arrays)
        except _Refused as refused:
            advice = "" if sample is not None else "; save it with `sample=`, some rows as it gets them"
            raise CannotConvert(f"the model cannot be tried on rows made for it ({refused}){advice}") from refused
    for others in _beyond(plain, converted.scope, random):
        for arrays in _pieces(others, rowwise):
            try:
                both.on(arrays)
            except _Refused as refused:
                if both.answers(arrays):
                    text = f"it answers where {method.name}() raises an error ({refused})"
                    raise CannotConvert(text) from refused
    refuses_nan = False
    if any(a.dtype.kind == "f" for a in plain):
        some = [a[:_NAN_ROWS] for a in plain]
        taken = _takes_nan(both, [_with_holes(a, random) if a.dtype.kind == "f" else a for a in some])
        # it may take NaN in some columns only
        taken = taken or any([_takes_nan(both, holed) for holed in _columns_of_nan(some)] if rowwise else ())
        refuses_nan = not taken or both.invents
    return Parity(both.rows, both.nan_rows, TOLERANCE, both.largest, refuses_nan)


class _Comparison:
    """Runs both models on rows, and keeps how many these were and how far the scores were apart.

    A difference counts in parts of the score where that is above 1, and of the largest of its column where all are
    below 1, unless they are probabilities: those of a price in millions or of a rate of 0.00001 say nothing otherwise.
    """

    def __init__(
        self,
        converted: Converted,
        method: MethodSpec,
        original: Callable[[Sequence[Array]], Any],
        *,
        rowwise: bool,
    ) -> None:
        self.rows = self.nan_rows = 0
        self.largest = 0.0
        self.invents = False  # a number where the original answers NaN
        self._converted, self._method, self._original, self.rowwise = converted, method, original, rowwise
        self._sizes: dict[int, Array] = {}

    def on(self, arrays: Sequence[Array], *, with_nan: bool = False) -> None:
        """Compare both on some rows; CannotConvert where they differ, _Refused where the original raises."""
        converted, method = self._converted, self._method
        try:
            expected = _called(self._original, method, arrays)
        except Exception as error:  # user code, on rows that it may refuse for any reason
            raise _Refused(sentence(error)) from error
        try:
            found = self._found(arrays)
            if converted.scores is not None:
                ours, theirs = converted.scores
                expected, found = [*expected, *_run(theirs, arrays)], [*found, *_run(ours, arrays)]
        except Exception as error:  # whatever a library raises on a model that it converted itself
            text = message_of(error) if isinstance(error, AdapterError) else sentence(error)
            raise CannotConvert(f"the converted model cannot be run: {text}") from error
        for e, f in zip(expected, found, strict=True):
            if e.shape != f.shape:
                raise CannotConvert(f"it returns the shape {f.shape} where {method.name}() returns {e.shape}")
        count = len(arrays[0]) if self.rowwise else 1
        if with_nan:
            taken = _answered(expected, count)
            pairs = zip(expected, found, strict=True)
            self.invents |= any((np.isnan(e) & ~np.isnan(f)).any() for e, f in pairs if e.dtype.kind == "f")
            expected, found = ([a[taken] if self.rowwise else a for a in each] for each in (expected, found))
            count = int(taken.sum())
        if count:
            apart = [self._difference(i, e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))]
            self.largest = max(self.largest, *apart)
        self.rows, self.nan_rows = self.rows + count, self.nan_rows + count * with_nan

    def answers(self, arrays: Sequence[Array]) -> bool:
        """Whether the converted model answers to some rows."""
        with contextlib.suppress(Exception):  # whatever a library raises
            return bool(self._found(arrays))
        return False

    def _found(self, arrays: Sequence[Array]) -> list[Array]:
        native = self._converted.native
        given = to_native(native, self._method, arrays, {})
        return from_native(native, self._method, _run(self._converted.run, given))

    def _difference(self, output: int, expected: Array, found: Array) -> float:
        name, labels = self._method.name, self._converted.scores is not None and output < len(self._method.outputs)
        if labels or expected.dtype.kind != "f":
            unequal = int((expected != found).sum())
            if unequal:
                raise CannotConvert(f"{unequal} of {expected.size} labels of {name}() are others")
            return 0.0
        same = (expected == found) | (np.isnan(expected) & np.isnan(found))  # an infinite one is equal, too
        size = np.abs(np.where(np.isfinite(expected), expected, 0)).astype(float)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            apart = np.where(same, 0.0, np.abs(expected - found) / np.maximum(size, self._unit(output, size)))
        largest = float(apart.max(initial=0.0))
        if not largest <= TOLERANCE:
            raise CannotConvert(f"its scores differ from those of {name}() by up to {largest:.2g}, above {TOLERANCE:g}")
        return largest

    def _unit(self, output: int, size: Array) -> Array:
        """What a difference of small scores counts in parts of: 1, or the largest of all rows so far where none is."""
        if self._method.name == "predict_proba" or output >= len(self._method.outputs):
            return np.ones(())
        columns = self.rowwise and size.ndim == 2
        seen = np.maximum(self._sizes.get(output, 0.0), size.max(axis=0 if columns else None, initial=0.0))
        self._sizes[output] = seen
        unit: Array = np.minimum(1.0, np.maximum(seen, _SMALLEST * np.max(seen, initial=0.0)))
        return unit


def _takes_nan(both: _Comparison, rows: Sequence[Array]) -> bool:
    """Compare both on rows with NaN; whether the original takes some."""
    taken = False
    for arrays in _pieces(rows, both.rowwise):
        with contextlib.suppress(_Refused):
            both.on(arrays, with_nan=True)
            taken = True
    return taken


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


# ---- rows -----------------------------------------------------------------------------------------------------------


def _rowwise(method: MethodSpec) -> bool:
    """Whether the first axis of every tensor is that of rows, of which there may be any number."""
    outputs = (method.wire_shape(spec, method.signature.batch_dim[1]) for spec in method.outputs)
    return all(shape[:1] == (-1,) for shape in (*_wire_shapes(method), *outputs))


def _wire_shapes(method: MethodSpec) -> list[tuple[int, ...]]:
    return [method.wire_shape(spec, method.signature.batch_dim[0]) for spec in method.inputs]


def _plain(
    method: MethodSpec, sample: Sequence[Array] | None, scope: Sequence[Scope], random: np.random.Generator
) -> list[Array]:
    """Rows that the original is meant to take, of each input."""
    rowwise, found = _rowwise(method), []
    for i, (spec, shape) in enumerate(zip(method.inputs, _wire_shapes(method), strict=True)):
        known = None if sample is None else sample[i] if rowwise else sample[i][None]
        row = _row_shape(shape[1:] if rowwise else shape, known)
        if known is not None and len(known):
            edges = _edges(known)
        elif scope:
            edges = scope[i].low, scope[i].high
        else:
            edges = None
        found.append(_rows(np.dtype(spec.dtype), row, random, known, edges))
    return found


def _beyond(plain: Sequence[Array], scope: Sequence[Scope], random: np.random.Generator) -> Iterator[list[Array]]:
    """Rows that both may refuse: with zeros, which some models take for missing; of whole numbers, where neighbours are
    equally near; at the thresholds of trees; and beyond the others as far as these are apart, and ten times as far."""
    few = [a[random.integers(0, len(a), _BEYOND)] for a in plain]
    zeroed = [np.where(random.random(a.shape) < 0.3, np.zeros((), a.dtype), a) for a in few]
    for a in zeroed:
        a[0] = 0
    yield zeroed
    yield [np.rint(a) if a.dtype.kind == "f" else a for a in plain]
    if scope:
        yield [_of_type(_at_thresholds(s, a, random), a.dtype) for s, a in zip(scope, plain, strict=True)]
    wide = []
    for a in plain:
        low, high = _edges(a)
        span = np.where(high > low, high - low, np.maximum(1.0, np.abs(low)))
        far = span * np.where(np.arange(_BEYOND) % 2, 1.0, 10.0).reshape(-1, *(1 for _ in a.shape[1:]))
        rows = low - far + random.random((_BEYOND, *a.shape[1:])) * (high - low + 2 * far)
        wide.append(a[:_BEYOND] if a.dtype.kind == "b" else _of_type(rows, a.dtype))
    if all(len(a) == _BEYOND for a in wide):
        yield wide


def _at_thresholds(scope: Scope, plain: Array, random: np.random.Generator) -> Array:
    """Rows at the thresholds as float32 has them, at its numbers next to these, and a hundred thousandth of the range
    of the column beside them: where float32 is coarser than that, the converted trees go other ways."""
    least, greatest = _edges(plain)
    rows: Array = scope.low + random.random((_AT_THRESHOLDS, len(scope.low))) * (scope.high - scope.low)
    for column, thresholds in enumerate(scope.thresholds):
        if len(thresholds):
            step = _FINEST * max(greatest[column] - least[column], scope.high[column] - scope.low[column])
            at = random.choice(thresholds, _AT_THRESHOLDS)
            near = at.astype(np.float32)
            ways = [near, *(np.nextafter(near, np.float32(way)) for way in (np.inf, -np.inf)), at - step, at + step]
            rows[:, column] = np.choose(random.integers(0, len(ways), _AT_THRESHOLDS), ways)
    return rows


def _pieces(arrays: Sequence[Array], rowwise: bool) -> Iterator[list[Array]]:
    if not rowwise:
        for i in range(len(arrays[0])):
            yield [a[i] for a in arrays]
        return
    step = max(1, min(ROWS, _PIECE_BYTES // max(1, sum(a[:1].nbytes for a in arrays))))
    for start in range(0, len(arrays[0]), step):
        yield [a[start : start + step] for a in arrays]


def _row_shape(shape: tuple[int, ...], sample: Array | None) -> tuple[int, ...]:
    have = sample.shape[1:] if sample is not None else (_FREE_LENGTH,) * len(shape)
    return tuple(n if n >= 0 else have[i] for i, n in enumerate(shape))


def _edges(rows: Array) -> tuple[Array, Array]:
    """The least and the greatest value of each number of a row."""
    known = np.where(np.isfinite(rows), rows, np.nan).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is NaN in every row
        return np.nan_to_num(np.nanmin(known, axis=0)), np.nan_to_num(np.nanmax(known, axis=0))


def _rows(
    dtype: np.dtype[Any],
    row: tuple[int, ...],
    random: np.random.Generator,
    sample: Array | None,
    edges: tuple[Array, Array] | None,
) -> Array:
    """At least ROWS rows: of the sample, the edges and mixtures of them, and others between; spread widely without any
    edges."""
    if edges is not None:
        low, high = (np.broadcast_to(edge, row) for edge in edges)
        found = [low[None], high[None], np.where(random.random((_MIXED, *row)) < 0.5, low, high)]
        if sample is not None:
            most = len(sample) if sample[:1].nbytes <= _LARGE_BYTES else _SAMPLED
            found.append(sample[:most].astype(float))
        found.append(low + random.random((max(_BETWEEN, ROWS - sum(map(len, found))), *row)) * (high - low))
    elif dtype.kind == "f":
        spread = np.repeat(_SPREADS, math.ceil(ROWS / len(_SPREADS)))[:ROWS]
        found = [random.standard_normal((ROWS, *row)) * spread.reshape(-1, *(1 for _ in row))]
    else:
        found = [random.integers(0, 2, (ROWS, *row)).astype(float)]
    return _of_type(concat(found, 0), dtype)


def _of_type(rows: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in a data type, whole and within its limits where it is not one of floats."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # the limits of 64 bits are no floats
        rows = np.clip(np.rint(rows), np.nextafter(float(limits.min), 0), np.nextafter(float(limits.max), 0))
    elif dtype.kind == "b":
        rows = np.rint(rows)
    elif dtype.itemsize < rows.dtype.itemsize:
        rows = np.clip(rows, np.finfo(dtype).min, np.finfo(dtype).max)  # NaN stays
    made: Array = rows.astype(dtype)
    return made


def _with_holes(rows: Array, random: np.random.Generator) -> Array:
    holed: Array = rows.copy()
    holed[random.random(holed.shape) < 0.3] = np.nan
    flat = holed.reshape(len(holed), -1)  # a view: each row has one at least, and the first nothing else
    flat[np.arange(len(flat)), random.integers(0, flat.shape[1], len(flat))] = np.nan
    flat[0] = np.nan
    return holed


def _columns_of_nan(rows: Sequence[Array]) -> Iterator[list[Array]]:
    """The same rows with NaN in one column of one table."""
    for i, table in enumerate(rows):
        if table.dtype.kind != "f" or table.ndim != 2:
            continue
        for column in range(0, table.shape[1], math.ceil(table.shape[1] / _NAN_COLUMNS)):
            holed = table.copy()
            holed[:, column] = np.nan
            yield [holed if j == i else a for j, a in enumerate(rows)]

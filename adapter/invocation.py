"""Running many calls of a Runnable's methods as few: joining what may be joined, calling, splitting what comes back.

The worker inside Triton and LocalTransport both run this code, so a method behaves the same in both.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from adapter.exceptions import AdapterError, InvalidArgument, RemoteException, sentence
from adapter.method import Call, described
from adapter.runnable import Runnable
from adapter.tensor import concat, split

END = "__adapter_end__"


class Outcome(NamedTuple):
    """What became of a call: a value, or the error it ended with."""

    value: Any = None
    error: BaseException | None = None

    def unwrap(self) -> Any:
        """The value; the error raised, but as RemoteException where it would end more than the call that it is of."""
        if self.error is not None:
            if isinstance(self.error, StopIteration) or not isinstance(self.error, Exception):
                raise RemoteException(sentence(self.error)) from self.error
            raise self.error
        return self.value


class Invoker:
    """Runs calls on one Runnable object.

    Calls of a batchable method whose arrays differ only in their batch axis, and whose other arguments are equal, run
    as one; no batch has more than `max_batch_size` items, and a longer call is cut and joined again. When a batch
    raises, its members run one by one (`retry_failed_batch`), so that one bad call hurts only itself.
    """

    def __init__(self, runnable: Runnable, *, retry_failed_batch: bool = True) -> None:
        self._runnable = runnable
        self._retry = retry_failed_batch
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """One outcome for each call, in their order."""
        outcomes: list[Outcome] = [Outcome()] * len(calls)
        for group, sizes in _groups(calls):
            for i, outcome in zip(group, self._batch([calls[i] for i in group], sizes), strict=True):
                outcomes[i] = outcome
        return outcomes

    def _batch(self, calls: Sequence[Call], sizes: Sequence[int]) -> list[Outcome]:
        try:
            if len(calls) == 1:
                return [Outcome(self._one(calls[0]))]
            joined = _join_calls(calls)
            result = self._invoke(joined)
            axis = joined.method.signature.batch_dim[1]
            return [Outcome(piece) for piece in split_value(result, sizes, axis, joined.method.name)]
        except BaseException as error:  # noqa: BLE001  # the edge to user code, which may raise SystemExit and its like
            if len(calls) == 1 or not self._retry:
                return [Outcome(error=error)] * len(calls)
            return [self._batch([call], sizes)[0] for call in calls]

    def _one(self, call: Call) -> Any:
        method = call.method
        size = batch_size(call) if method.signature.batchable else None
        if size is None:
            return self._invoke(call)
        most, axis = method.batching.max_batch_size, method.signature.batch_dim[1]
        if size <= most:
            (result,) = split_value(self._invoke(call), [size], axis, method.name)
            return result
        sizes = [min(most, size - start) for start in range(0, size, most)]
        pieces = [
            split_value(self._invoke(piece), [n], axis, method.name)[0]
            for piece, n in zip(_cut_call(call, sizes), sizes, strict=True)
        ]
        return join_values(pieces, axis)

    def _invoke(self, call: Call) -> Any:
        result = getattr(self._runnable, call.method.name)(*call.args, **call.kwargs)
        if type(result) is not np.ndarray and inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(_await(result))
        return result

    def close(self) -> None:
        end(self._runnable)
        if self._loop is not None:
            self._loop.close()


def end(runnable: Runnable) -> None:
    """Run the shutdown hooks of a class-based service; no other Runnable has any."""
    if (hooks := getattr(runnable, END, None)) is not None:
        hooks()


async def _await(value: Any) -> Any:
    return await value


# ---- which calls may run together --------------------------------------------------------------------------------


def _groups(calls: Sequence[Call]) -> Iterable[tuple[list[int], list[int]]]:
    """The calls that may run as one batch, none larger than its method allows: their indices, and their items."""
    if len(calls) == 1:
        return [([0], [1])]  # what runs alone is not cut by these
    if calls and (sizes := _sizes_of_alike(calls)) is not None:
        return [(list(range(len(calls))), sizes)]
    groups: list[tuple[list[int], list[int]]] = []
    open_groups: dict[Hashable, tuple[list[int], list[int], int]] = {}
    for i, call in enumerate(calls):
        key, size = _key(call)
        if key is None:
            groups.append(([i], [size]))
            continue
        group, sizes, filled = open_groups.get(key, ([], [], 0))
        if not group or filled + size > call.method.batching.max_batch_size:
            group, sizes, filled = [], [], 0
            groups.append((group, sizes))
        group.append(i)
        sizes.append(size)
        open_groups[key] = (group, sizes, filled + size)
    return groups


def _sizes_of_alike(calls: Sequence[Call]) -> list[int] | None:
    """The items of calls that are one batch at first sight, as those of most models are; None says nothing."""
    method, args, _ = calls[0]
    signature = method.signature
    if not signature.batchable or signature.batch_dim[0] or len(args) != 1:
        return None
    if type(args[0]) is not np.ndarray or not args[0].ndim:
        return None
    dtype, rest, sizes = args[0].dtype, args[0].shape[1:], []
    for other, arrays, kwargs in calls:
        if other is not method or kwargs or len(arrays) != 1 or type(arrays[0]) is not np.ndarray:
            return None
        array = arrays[0]
        if array.dtype != dtype or not array.ndim or array.shape[1:] != rest:
            return None
        sizes.append(array.shape[0])
    return sizes if sum(sizes) <= method.batching.max_batch_size else None


def _key(call: Call) -> tuple[Hashable | None, int]:
    """What two calls must have in common to be joined, and how many items this one has; None: it runs alone."""
    if not call.method.signature.batchable:
        return None, 1
    try:
        size = batch_size(call)
    except InvalidArgument:
        return None, 1
    if size is None:
        return None, 1
    axis = call.method.signature.batch_dim[0]
    kinds = [_kind(value, axis) for value in (*call.args, *call.kwargs.values())]
    if None in kinds:
        return None, size
    return (call.method.name, len(call.args), tuple(call.kwargs), *kinds), size


def _kind(value: Any, axis: int) -> Hashable | None:
    if isinstance(value, np.ndarray) and value.ndim > axis:
        return "array", value.dtype.str, value.shape[:axis], value.shape[axis + 1 :]
    if isinstance(value, list):
        return "list"
    if _is(value, "pandas", "DataFrame"):  # by data type, not its name: categories are of one type with the same values
        return ("frame", tuple(value.columns), tuple(value.dtypes)) if _numbered(value) else None
    if _is(value, "pandas", "Series"):
        return ("series", value.name, value.dtype) if _numbered(value) else None
    if _is(value, "torch", "Tensor") and value.ndim > axis:
        return "tensor", str(value.dtype), tuple(value.shape[:axis]), tuple(value.shape[axis + 1 :])
    if type(value) is float:
        return "float", value.hex()  # 0.0 and -0.0 are equal, and not the same
    if value is None or type(value) in (bool, int, str, bytes):
        return type(value).__name__, value
    return None


def _is(value: Any, module: str, name: str) -> bool:
    library = sys.modules.get(module)
    return library is not None and isinstance(value, getattr(library, name, ()))


def _numbered(frame: Any) -> bool:
    """Whether the rows of a frame or a series are numbered from 0 on; any other index says something, and is kept."""
    index = frame.index
    return index.name is None and bool(index.equals(sys.modules["pandas"].RangeIndex(len(index))))


def _size(value: Any, axis: int) -> int | None:
    """How many items a value brings along the batch axis, None where it has no such axis (a scalar, a string …)."""
    if isinstance(value, np.ndarray) or _is(value, "torch", "Tensor"):
        return int(value.shape[axis]) if value.ndim > axis else None
    if isinstance(value, list) or _is(value, "pandas", "DataFrame") or _is(value, "pandas", "Series"):
        return len(value)
    return None


def batch_size(call: Call) -> int | None:
    """The items of a call along the batch axis, None where no argument has one; InvalidArgument where they differ."""
    axis = call.method.signature.batch_dim[0]
    found: int | None = None
    for value in (*call.args, *call.kwargs.values()):
        size = _size(value, axis)
        if size is None or size == found:
            continue
        if found is not None:
            sizes = sorted((found, size))
            raise InvalidArgument(
                f"{call.method.name}() takes arguments of one batch size on axis {axis}, but they have {sizes}."
            )
        found = size
    return found


# ---- joining and splitting -----------------------------------------------------------------------------------------


def _join_calls(calls: Sequence[Call]) -> Call:
    method, axis = calls[0].method, calls[0].method.signature.batch_dim[0]

    def join(values: list[Any]) -> Any:
        return values[0] if _size(values[0], axis) is None else join_values(values, axis)

    args = tuple(join(list(values)) for values in zip(*(c.args for c in calls), strict=True))
    kwargs = {name: join([c.kwargs[name] for c in calls]) for name in calls[0].kwargs}
    return Call(method, args, kwargs)


def _cut_call(call: Call, sizes: Sequence[int]) -> list[Call]:
    axis, name = call.method.signature.batch_dim[0], call.method.name

    def cut(value: Any) -> list[Any]:
        return [value] * len(sizes) if _size(value, axis) is None else split_value(value, sizes, axis, name)

    args = list(zip(*(cut(value) for value in call.args), strict=True)) or [()] * len(sizes)
    kwargs = {key: cut(value) for key, value in call.kwargs.items()}
    return [Call(call.method, args[i], {k: pieces[i] for k, pieces in kwargs.items()}) for i in range(len(sizes))]


def join_values(values: Sequence[Any], axis: int) -> Any:
    """One value from pieces of the same type: arrays along `axis`, lists and frames end to end, tuples item by item."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, np.ndarray):
        return concat(values, axis)
    if isinstance(first, list):
        return [item for value in values for item in value]
    if isinstance(first, tuple):
        return tuple(join_values(items, axis) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: join_values([value[key] for value in values], axis) for key in first}
    if _is(first, "torch", "Tensor"):
        return sys.modules["torch"].cat(tuple(values), dim=axis)
    return sys.modules["pandas"].concat(values, ignore_index=all(map(_numbered, values)))


def split_value(value: Any, sizes: Sequence[int], axis: int, method: str) -> list[Any]:
    """Cut what a batchable method returned into one piece for each caller, each of its own size.

    A tuple (several outputs) and a dict are cut item by item. RemoteException where a value has another number of items
    than came, or cannot be cut.
    """
    if isinstance(value, tuple) and value:
        return [tuple(p) for p in zip(*(split_value(v, sizes, axis, method) for v in value), strict=True)]
    if isinstance(value, dict) and value:
        pieces = {key: split_value(v, sizes, axis, method) for key, v in value.items()}
        return [{key: pieces[key][i] for key in value} for i in range(len(sizes))]
    size, total = _size(value, axis), sum(sizes)
    if size is None:
        raise RemoteException(
            f"{method}() is batchable, so it returns an array, a list or a frame with one item for each that came; "
            f"it returned {described(value)}."
        )
    if size != total:
        raise RemoteException(f"{method}() returned {size} items on axis {axis} for a batch of {total}.")
    if len(sizes) == 1:
        return [value]
    if isinstance(value, np.ndarray):
        return split(value, sizes, axis)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if isinstance(value, list):
        return [value[start : start + n] for start, n in zip(starts, sizes, strict=True)]
    if _is(value, "torch", "Tensor"):
        return list(sys.modules["torch"].split(value, list(sizes), dim=axis))
    frames = [value.iloc[start : start + n] for start, n in zip(starts, sizes, strict=True)]
    return [frame.reset_index(drop=True) for frame in frames] if _numbered(value) else frames


def error_of(outcome: Outcome) -> AdapterError | None:
    """The error of a call as its caller sees it: adapter's own as they are, any other as RemoteException."""
    if outcome.error is None or isinstance(outcome.error, AdapterError):
        return outcome.error
    return RemoteException(sentence(outcome.error))

"""Entries that exist already, written by hand or by other tools, as runners of a service: `adapter.triton.Runner`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import struct
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from adapter import runner as runners
from adapter.exceptions import (
    ConfigException,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
    StateException,
)
from adapter.method import MethodSpec
from adapter.model import BatchingConfig, Signature
from adapter.runnable import Runnable
from adapter.runner import RunnerSpec
from adapter.tag import valid_name
from adapter.tensor import Array, cast, numpy_dtype
from adapter.triton.address import is_address, parse
from adapter.triton.client import TritonClient
from adapter.triton.config import Entry
from adapter.triton.copies import entries_in, read_config
from adapter.triton.failures import reason_of
from adapter.triton.lanes import Call
from adapter.triton.routes import CallMetrics, CallTracer, Route
from adapter.triton.rpc import RpcError
from adapter.triton.transport import TritonTransport

_ENTRY = re.compile(r"[A-Za-z0-9._-]+")
_LOADS = "--load-model="
_IMPLIED = ("--model-control-mode=explicit",)
_NUMBERS = ("BOOL", *(f"{u}INT{n}" for u in ("", "U") for n in (8, 16, 32, 64)), "FP16", "FP32", "FP64")


class Existing(Runnable):
    """What `adapter.triton.Runner` has in the place of a class: nothing of it runs in Python here."""


class Runner(runners.Runner):
    """Entries that exist already as a runner: hand-written ones, TensorRT plans, ensembles.

    `model_repository` is a folder, whose entries are exported and served together with those of the service, or the
    address of Tritons that have them, such as `grpc://host:8001`; `triton.runners.<name>.url` is stronger than that.
    Each entry is a method of the runner, called by its name: `runner.<entry>.run(x)`, `await
    runner.<entry>.async_run(x)`; where there is one, also `runner.run(x)`. Of a folder all are meant, of a Triton the
    one called `name`, unless `models` lists others.

    Arguments are arrays, by position as `config.pbtxt` has them, or by name. What comes back is an array, or where the
    entry has several outputs a dict of them by name; texts and bytes (TYPE_STRING) are arrays of bytes objects. Entries
    with a `max_batch_size` share requests between calls, and longer calls are split. A call that is not answered within
    `max_latency_ms` raises ServiceUnavailable. Of BentoML's `cli_args`, `--load-model=<entry>` means `models`.
    Source: `bentoml.triton.Runner`, which returned tritonclient's InferResult.
    """

    def __init__(
        self,
        name: str,
        model_repository: str | Path,
        tritonserver_type: str = "grpc",
        cli_args: Iterable[str] | None = None,
        *,
        models: Iterable[str] | None = None,
        max_latency_ms: float | None = None,
    ) -> None:
        if tritonserver_type != "grpc":
            raise InvalidArgument(
                f"tritonserver_type is 'grpc', not {tritonserver_type!r}: Triton is called over gRPC."
            )
        place = str(model_repository)
        if not isinstance(model_repository, (str, Path)) or not place or ("://" in place and not is_address(place)):
            raise InvalidArgument(
                "model_repository is a folder, or the address of a Triton such as grpc://host:8001, not "
                f"{model_repository!r}."
            )
        if isinstance(models, str):
            raise InvalidArgument(f"models is a list of entries, such as [{models!r}], not {models!r}.")
        wanted = tuple(dict.fromkeys([*_loaded(cli_args), *(models or ())]))
        for entry in wanted:
            if not isinstance(entry, str) or not _ENTRY.fullmatch(entry):
                raise InvalidArgument(f"{entry!r} cannot be the name of an entry of Triton.")
        batched: Mapping[str, bool] = {}
        if is_address(place):
            try:
                parse(place)
            except ConfigException as error:
                text = f"model_repository is a folder, or the address of a Triton: {error.message}"
                raise InvalidArgument(text) from error
            wanted = wanted or (name,)
        else:
            folder = Path(place).absolute()
            place = str(folder)
            if folder.is_dir():  # where only fronts run it is not needed: the manifest names its entries
                batched = {entry: read_config(folder, entry).max_batch_size > 0 for entry in entries_in(folder)}
                missing = [entry for entry in wanted if entry not in batched]
                if missing:
                    raise InvalidArgument(
                        f"{place} has no entry {missing[0]!r}; it has {', '.join(batched) or 'none'}."
                    )
                wanted = wanted or tuple(batched)
        self._limits: dict[str, Any] = {} if max_latency_ms is None else {"max_latency_ms": max_latency_ms}
        self._transport = None
        self._hold(
            RunnerSpec(
                name=valid_name(name, "runner name"),
                runnable_class=Existing,
                init_params={},
                methods={entry: self._method(entry, batched.get(entry, False)) for entry in wanted},
                given=frozenset((entry, limit) for entry in wanted for limit in self._limits),
                existing=place,
            ),
            place,
        )

    def _method(self, entry: str, batched: bool) -> MethodSpec:
        return MethodSpec(entry, Signature(batchable=batched), BatchingConfig(**self._limits))

    def know(self, entries: Iterable[str]) -> None:
        """Take over the names of the entries where the folder is on another machine."""
        methods = {entry: self.spec.methods.get(entry) or self._method(entry, False) for entry in entries}
        self._hold(replace(self.spec, methods=methods), self.spec.existing or self.name)

    def init_local(self, *, quiet: bool = False) -> None:
        """Not possible: what Triton has is called in Triton alone."""
        raise StateException(
            f"The runner {self.name!r} calls entries of Triton, so it cannot run in this process: serve the service."
        )


def _loaded(cli_args: Iterable[str] | None) -> list[str]:
    found = []
    for argument in cli_args or ():
        if isinstance(argument, str) and argument.startswith(_LOADS):
            found.append(argument.removeprefix(_LOADS))
        elif argument not in _IMPLIED:
            raise InvalidArgument(
                f"cli_args has {argument!r}, but one tritonserver serves all runners of a service, with options of its "
                "own: leave it out, or start a Triton with it yourself and give its address, grpc://host:8001."
            )
    return [entry for entry in found if entry != "*"]


# ---- calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """An input or an output of an entry, as Triton tells it; `shape` has the batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False

    def read(self, entry: str, value: Any) -> Array:
        """A value as an array that Triton takes; InvalidArgument where it is none."""
        if self.dtype == "BYTES":
            # an array of objects, since one of numpy's own bytes would lose the zeros at their ends
            array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=object)
            if array.dtype.kind not in "OSUT":
                raise InvalidArgument(f"The tensor {self.name!r} of {entry} takes texts or bytes, not {array.dtype}.")
        else:
            try:
                whole = np.asarray(value)
            except ValueError as error:
                raise InvalidArgument(f"The tensor {self.name!r} of {entry} is ragged: {error}") from error
            fitting = cast(whole, numpy_dtype(self.dtype))
            if fitting is None:
                raise InvalidArgument(
                    f"The tensor {self.name!r} of {entry} takes {self.dtype}, which the values of data type "
                    f"{whole.dtype} do not fit."
                )
            array = fitting
        if array.ndim != len(self.shape) or any(n not in (-1, m) for n, m in zip(self.shape, array.shape, strict=True)):
            raise InvalidArgument(
                f"The tensor {self.name!r} of {entry} takes an array of shape {self.shape} (-1: any length), but "
                f"{array.shape} came."
            )
        return array


def _tensors(entry: str, tensors: Iterable[Any], batched: bool) -> tuple[_Tensor, ...]:
    found = []
    for t in tensors:
        dtype = model_config_pb2.DataType.Name(t.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        if dtype != "BYTES" and dtype not in _NUMBERS:
            raise StateException(f"The tensor {t.name!r} of {entry} is of {dtype}, which numpy has no data type for.")
        found.append(_Tensor(t.name, dtype, (*((-1,) if batched else ()), *t.dims), getattr(t, "optional", False)))
    return tuple(found)


class _Route(Route):
    """The way of calls to one entry; `look` finds out whether the entry takes other tensors now."""

    def __init__(
        self,
        client: TritonClient,
        runner: RunnerSpec,
        method: MethodSpec,
        config: Any,
        metrics: CallMetrics | None,
        tracer: CallTracer | None,
        look: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        name = method.name
        if config.model_transaction_policy.decoupled or config.HasField("sequence_batching"):
            what = (
                "answers a request any number of times"
                if config.model_transaction_policy.decoupled
                else ("keeps state between the requests of a sequence")
            )
            raise StateException(f"{name} {what}, which a runner cannot call: call it with tritonclient.")
        most = config.max_batch_size
        known = replace(
            method,
            signature=Signature(batchable=most > 0),
            batching=replace(method.batching, max_batch_size=max(1, most)),
        )
        super().__init__(client, Entry(name, runner.name, (known,)), runner, known, metrics, tracer)
        self._limit_s = method.batching.max_latency_ms / 1000
        self._inputs = _tensors(name, config.input, most > 0)
        self._outputs = _tensors(name, config.output, most > 0)
        self._look = look

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        arrays = self._arrays(args, kwargs)
        if not self._batchable:
            return [self._piece(arrays)]
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise InvalidArgument(f"{self.entry.name} takes arrays of one batch size above 0, not of {sorted(sizes)}.")
        (rows,), most = sizes, self.entry.max_batch_size
        starts = range(0, rows, most)
        return (self._piece({name: a[start : start + most] for name, a in arrays.items()}) for start in starts)

    def _arrays(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        names = [tensor.name for tensor in self._inputs]
        if len(args) > len(names):
            raise TypeError(f"{self.entry.name} takes {len(names)} inputs, but {len(args)} were given")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in given or name not in names:
                what = "twice the input" if name in given else "no input"
                raise TypeError(f"{self.entry.name} takes {what} {name!r}; its inputs are {', '.join(names)}")
            given[name] = value
        missing = [t.name for t in self._inputs if not t.optional and t.name not in given]
        if missing:
            raise TypeError(f"{self.entry.name} misses the input {missing[0]!r}; its inputs are {', '.join(names)}")
        return {t.name: t.read(self.entry.name, given[t.name]) for t in self._inputs if t.name in given}

    def _piece(self, arrays: Mapping[str, Array]) -> Call:
        data = [_serialized(array) if array.dtype.kind in "OSUT" else array.tobytes() for array in arrays.values()]
        first = 1 if self._batchable else 0
        key = tuple((name, array.shape[first:]) for name, array in arrays.items())
        rows = len(next(iter(arrays.values()))) if first and arrays else 1
        return self._call(key, data, rows, sum(map(len, data)))

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        request = self._request(calls)
        sizes = [call.size for call in calls]
        dtypes = {tensor.name: tensor.dtype for tensor in self._inputs}
        key: Any = calls[0].key
        for name, shape in key:
            request.inputs.add(
                name=name, datatype=dtypes[name], shape=(sum(sizes), *shape) if self._batchable else shape
            )
        for tensor in self._outputs:
            request.outputs.add(name=tensor.name)
        tensors = list(zip(*(call.body for call in calls), strict=True))
        try:
            response = await self._infer(request, tensors, calls, limit_s)
        except InvalidArgument:
            await self._look()  # another version may take other tensors
            raise
        outputs = _answered(response)
        if len(calls) == 1:
            return [{name: array.copy() for name, array in outputs.items()}]
        ends = list(itertools.accumulate(sizes))
        for array in outputs.values():
            if array.shape[:1] != (ends[-1],):
                raise RemoteException(f"{self.entry.name} answered the shape {array.shape} to a batch of {ends[-1]}.")
        pieces = zip(sizes, ends, strict=True)
        return [{name: a[end - size : end].copy() for name, a in outputs.items()} for size, end in pieces]

    def result(self, results: Sequence[Any]) -> Any:
        first = results[0]
        whole = first if len(results) == 1 else {n: np.concatenate([r[n] for r in results]) for n in first}
        return next(iter(whole.values())) if len(self._outputs) == 1 else whole


def _serialized(array: Array) -> bytes:
    """Texts and bytes as Triton has them: each behind its length."""
    parts: list[bytes] = []
    for value in array.ravel().tolist():
        data = value.encode() if isinstance(value, str) else value
        if not isinstance(data, bytes):
            raise InvalidArgument(f"A tensor of texts or bytes holds {type(value).__name__}: {value!r}.")
        parts += (struct.pack("<I", len(data)), data)
    return b"".join(parts)


def _answered(response: pb.ModelInferResponse) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        shape = tuple(output.shape)
        if output.datatype == "BYTES":
            found[output.name] = np.array([*_elements(data), None], dtype=object)[:-1].reshape(shape)
        else:
            found[output.name] = np.frombuffer(data, numpy_dtype(output.datatype)).reshape(shape)
    return found


def _elements(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        start += 4 + length
        yield data[start - length : start]


class ExistingTransport(TritonTransport):
    """Carries the calls of a runner to entries that exist already; Triton tells their tensors at the first call."""

    def __init__(
        self,
        client: TritonClient,
        runner: RunnerSpec,
        *,
        metrics: CallMetrics | None = None,
        tracer: CallTracer | None = None,
    ) -> None:
        self._spec = runner
        super().__init__(client, runner, {}, metrics=metrics, tracer=tracer)
        self._metrics = metrics

    @property
    def interfaces(self) -> dict[str, str]:
        """The entries; nobody wrote a fingerprint into them."""
        return dict.fromkeys(self._spec.methods, "")

    def _run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any], link: Any = None) -> Any:
        if method.name not in self._routes:
            known = self._know(method)
            try:
                asyncio.run_coroutine_threadsafe(known, self._client.loop).result()
            except RuntimeError:
                known.close()
                raise ServiceUnavailable(f"{method.name} cannot be called: this server has stopped.") from None
        return super()._run(method, args, kwargs, link)

    async def _async_run(
        self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any], link: Any = None
    ) -> Any:
        if method.name not in self._routes:
            await self._know(method)
        return await super()._async_run(method, args, kwargs, link)

    async def _know(self, method: MethodSpec) -> None:
        """Ask Triton what an entry takes and answers."""
        try:
            config = await self._client.config(method.name)
        except RpcError as error:
            raise ServiceUnavailable(
                f"The entry {method.name} cannot be called at {self._client.url}: {reason_of(error)}."
            ) from None
        if method.name in self._routes:  # another call has asked meanwhile
            return

        async def look() -> None:
            with contextlib.suppress(RpcError):
                if await self._client.config(method.name) != config:
                    self._routes.pop(method.name, None)

        route = _Route(self._client, self._spec, method, config, self._metrics, self._tracer, look)
        self._client.lanes[method.name] = [route.lane]
        self._client.recount()
        self._routes[method.name] = route

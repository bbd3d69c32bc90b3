"""The way of a method's calls into requests to its entry, and of the responses back."""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from adapter import payload
from adapter.exceptions import InvalidArgument, RemoteException, raised
from adapter.invocation import batch_size
from adapter.method import Call as MethodCall
from adapter.method import MethodSpec
from adapter.runner import RunnerSpec
from adapter.tensor import Array, concat, numpy_dtype
from adapter.triton.client import TritonClient
from adapter.triton.config import BLOB, Entry
from adapter.triton.lanes import Call, Lane, Observer
from adapter.triton.native import from_native, to_native
from adapter.triton.request import deadline, request_id


class CallMetrics(Protocol):
    """What counts the calls of runners, always on the event loop; see `adapter.server.metrics`."""

    def calls(self, runner: str, method: str) -> Observer: ...

    def replicas(self, address: str, up: int, known: int) -> None: ...


class CallTracer(Protocol):
    """What makes the spans of calls, with their `link`, and of the requests that carry them, with their `metadata`.

    See `adapter.server.tracing`.
    """

    def call(self, runner: str, method: str) -> Any: ...

    def flight(self, entry: str, links: Sequence[Any]) -> Any: ...


class Route(abc.ABC):
    """The way of one method's calls into requests to its entry, and of the responses back."""

    def __init__(
        self,
        client: TritonClient,
        entry: Entry,
        runner: RunnerSpec,
        method: MethodSpec,
        metrics: CallMetrics | None,
        tracer: CallTracer | None,
    ) -> None:
        self.entry = entry
        self.method = method
        self._client = client
        self._tracer = tracer
        self._batchable = entry.batched and method.signature.batchable
        self._most = entry.max_batch_size
        self._limit_s = method.batching.max_latency_ms / 1000 if method.signature.batchable else None
        self.lane = Lane(
            entry.name,
            self._send,
            client.loop,
            most=method.batching.max_batch_size if self._batchable else 0,
            limit_s=self._limit_s,
            retry=runner.retry_failed_batch,
            observer=None if metrics is None else metrics.calls(runner.name, method.name),
        )

    @abc.abstractmethod
    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        """The calls to send for one call of the method: a tuple of one, or more where it is longer than a batch."""

    @abc.abstractmethod
    def result(self, results: Sequence[Any]) -> Any:
        """What the method returned, of the results of all its calls."""

    @abc.abstractmethod
    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        """Make one request of some calls, as `Lane` wants it."""

    def _call(self, key: Hashable, body: Any, size: int, weight: int, *, alone: bool = False) -> Call:
        alone = alone or not self._batchable
        return Call(key, body, size, weight, request_id.get(), deadline.get(), self._limit_s, alone)

    async def _infer(
        self, request: pb.ModelInferRequest, tensors: Sequence[Sequence[bytes]], calls: Sequence[Call], limit_s: float
    ) -> pb.ModelInferResponse:
        if self._tracer is None:
            return await self._client.infer(request, tensors, limit_s)
        with self._tracer.flight(self.entry.name, [call.link for call in calls]) as flight:
            return await self._client.infer(request, tensors, limit_s, flight.metadata)

    def _request(self, calls: Sequence[Call]) -> pb.ModelInferRequest:
        identity = calls[0].identity if len(calls) == 1 else ",".join(call.identity for call in calls)
        request = pb.ModelInferRequest(model_name=self.entry.name, id=identity)
        if len(self.entry.methods) > 1:
            request.parameters["method"].string_param = self.method.name
        return request


# what is no tensor as JSON, and the shapes of the tensors without the batch
_Key = tuple[str, tuple[tuple[int, ...], ...]]


class _TypedRoute(Route):
    """Each argument is a tensor; calls that share a request lie behind one another along the batch axis."""

    @functools.cached_property
    def _inputs(self) -> Sequence[tuple[str, str]]:
        """The names of the tensors that are sent, and Triton's names of their data types."""
        return [(spec.name, spec.triton or "") for spec in self.method.inputs]

    @functools.cached_property
    def _outputs(self) -> Sequence[str]:
        return [spec.name for spec in self.method.outputs]

    @functools.cached_property
    def _is_output(self) -> bool:
        """Whether what the method returns is its one output as it comes."""
        return len(self.method.outputs) == 1 and not (self._batchable and self.method.signature.batch_dim[1])

    _last: tuple[np.dtype[Any], tuple[int, ...], _Key] | None = None
    """Of a call that was one array as it is sent: its data type, its shape without the batch, and its key."""

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        # most are like the one before in all but their rows, and need not be looked at again
        if self._last is not None and len(args) == 1 and not kwargs and type(array := args[0]) is np.ndarray:
            dtype, rest, key = self._last
            shape = array.shape
            if array.dtype is dtype and shape[1:] == rest and 0 < shape[0] <= self._most:
                data = array.tobytes()
                size = len(data)
                return (Call(key, [data], shape[0], size, request_id.get(), deadline.get(), self._limit_s),)
        arrays, extra = self.method.pack(args, kwargs)
        if len(args) == 1 and not kwargs and not extra and arrays[0] is args[0] and self._any_rows:
            rest = arrays[0].shape[1:]
            self._last = arrays[0].dtype, rest, ("", (rest,))
        return self._pieces(arrays, extra)

    @functools.cached_property
    def _any_rows(self) -> bool:
        """Whether a batch may have any number of rows, for all that its first tensor says."""
        return self._batchable and self.method.inputs[0].shape[0] == -1

    def _pieces(self, arrays: Sequence[Array], extra: str) -> Iterable[Call]:
        if not self._batchable:
            return (self._piece(arrays, extra, 1),)
        rows, most = arrays[0].shape[0], self._most
        if rows <= most:
            return (self._piece(arrays, extra, rows),)
        # Triton never splits a request
        starts = range(0, rows, most)
        return (self._piece([a[n : n + most] for a in arrays], extra, min(most, rows - n)) for n in starts)

    def _piece(self, arrays: Sequence[Array], extra: str, items: int) -> Call:
        # bytes at once, and not when the request is made: the caller may change an array in the meantime
        data, shapes, weight = [], [], 0
        for array in arrays:
            data.append(content := array.tobytes())
            weight += len(content)
            shapes.append(array.shape[1:] if self._batchable else array.shape)
        return self._call((extra, tuple(shapes)), data, items, weight)

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        request = self._request(calls)
        extra, shapes = cast(_Key, calls[0].key)
        if extra:
            request.parameters["arguments"].string_param = extra
        sizes = [call.size for call in calls]
        for (name, datatype), shape in zip(self._inputs, shapes, strict=True):
            whole = (sum(sizes), *shape) if self._batchable else shape
            request.inputs.add(name=name, datatype=datatype, shape=whole)
        tensors = list(zip(*(call.body for call in calls), strict=True))
        response = await self._infer(request, tensors, calls, limit_s)
        outputs = self._values([_array(response, name) for name in self._outputs])
        if len(calls) == 1:
            return [[output.copy() for output in outputs]]
        ends = list(itertools.accumulate(sizes))
        for output in outputs:
            if output.shape[0] != ends[-1]:
                raise RemoteException(f"{self.entry.name} answered {output.shape[0]} items for a batch of {ends[-1]}.")
        # copies: each caller may write into its own, and keeps no other's memory alive
        if len(outputs) == 1:
            (output,) = outputs
            return [(output[end - size : end].copy(),) for size, end in zip(sizes, ends, strict=True)]
        return [[output[end - size : end].copy() for output in outputs] for size, end in zip(sizes, ends, strict=True)]

    def _values(self, tensors: Sequence[Array]) -> Sequence[Array]:
        """The outputs of the method, of one call or of several behind one another, of the tensors of a response."""
        return self.method.outputs_of(tensors)

    def result(self, results: Sequence[Any]) -> Any:
        if len(results) == 1:
            return results[0][0] if self._is_output else self.method.returned(results[0])
        return self.method.returned([concat(parts, 0) for parts in zip(*results, strict=True)])


class _NativeRoute(_TypedRoute):
    """The tensors are those of another backend than the python one; what comes and goes is as the method has it."""

    def __init__(self, client: TritonClient, entry: Entry, *args: Any) -> None:
        super().__init__(client, entry, *args)
        assert entry.native is not None
        self._native = entry.native

    @functools.cached_property
    def _inputs(self) -> Sequence[tuple[str, str]]:
        return [(tensor.name, tensor.dtype) for tensor in self._native.inputs]

    @functools.cached_property
    def _outputs(self) -> Sequence[str]:
        return [tensor.name for tensor in self._native.outputs]

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        arrays, extra = self.method.pack(args, kwargs)
        beside = json.loads(extra) if extra else {}
        return self._pieces(to_native(self._native, self.method, arrays, beside), "")

    def _values(self, tensors: Sequence[Array]) -> Sequence[Array]:
        return super()._values(from_native(self._native, self.method, tensors))


class _BlobRoute(Route):
    """The arguments of a call are one blob; calls that share a request are a bundle of blobs, and answered as one."""

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        self.method.check(args, kwargs)
        size = None
        if self._batchable:
            with contextlib.suppress(InvalidArgument):  # the method says itself what is wrong with it
                size = batch_size(MethodCall(self.method, tuple(args), kwargs))
        blob = payload.encode((tuple(args), dict(kwargs)))
        return (self._call(None, blob, size or 1, len(blob), alone=size is None),)

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        request = self._request(calls)
        blob = calls[0].body if len(calls) == 1 else payload.bundle([(call.identity, call.body) for call in calls])
        shape = [1, len(blob)] if self.entry.batched else [len(blob)]
        request.inputs.add(name=BLOB, datatype="UINT8", shape=shape)
        response = await self._infer(request, [[blob]], calls, limit_s)
        answer = response.raw_output_contents[0]
        if len(calls) == 1:
            return [answer]
        return [raised(*json.loads(bytes(blob))) if failed else blob for failed, blob in payload.unbundle(answer)]

    def result(self, results: Sequence[Any]) -> Any:
        return self.method.rebuild_result(payload.decode(results[0]))


def route_of(entry: Entry) -> type[Route]:
    if entry.native is not None:
        return _NativeRoute
    return _TypedRoute if entry.typed else _BlobRoute


def _array(response: pb.ModelInferResponse, name: str) -> Array:
    """An output tensor, read-only."""
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == name:
            return np.frombuffer(data, numpy_dtype(output.datatype)).reshape(tuple(output.shape))
    raise RemoteException(f"{response.model_name} answered without its output {name!r}.")

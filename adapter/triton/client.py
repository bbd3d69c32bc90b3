"""Calls of runners as gRPC requests to Triton."""

from __future__ import annotations

import abc
import asyncio
import collections
import contextlib
import functools
import itertools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, cast

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from adapter import exceptions, payload
from adapter.exceptions import (
    AdapterError,
    ConfigException,
    DeadlineExceeded,
    InternalServerError,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
)
from adapter.invocation import batch_size
from adapter.mailbox import Mailbox
from adapter.method import Call as MethodCall
from adapter.method import MethodSpec
from adapter.runner import Runner, RunnerSpec, refuse_event_loop
from adapter.tensor import Array, concat, numpy_dtype
from adapter.triton.config import BLOB, INTERFACE, Entry
from adapter.triton.lanes import Call, Lane
from adapter.triton.rpc import Channel, Code, Metadata, RpcError

# set by the server for each request: when its time is over (time.monotonic), and the id that logs name it by
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
request_id: ContextVar[str] = ContextVar("request_id", default="")

_SERVICE = "/inference.GRPCInferenceService/"
_RAW_INPUTS = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
)  # tag: a length follows
_PROBE_S = 2.0
_PIECES_IN_FLIGHT = 4  # of one long call, so that it leaves Triton to others as well
_NOT_HEALTHY = "is not healthy"  # what Triton says of a python stub that died
_OWN_ERROR = re.compile(r"\[(\d{3}) (\w+)\] (.*)", re.DOTALL)


class TritonClient:
    """One connection to Triton, for all runners of a front process; it belongs to the event loop that made it."""

    def __init__(self, url: str) -> None:
        """Connect to `host:port` or `grpc://host:port`; ConfigException where `url` is neither."""
        self.url = url
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        self._dead: dict[str, tuple[int, str]] = {}  # with the number of the connection that said so
        self.lanes: dict[str, list[Lane]] = collections.defaultdict(list)
        try:
            self._channel = Channel(url.removeprefix("grpc://"))
        except ValueError as error:
            raise ConfigException(f"{url!r} cannot be the address of a Triton: write grpc://host:8001.") from error

    async def infer(
        self,
        request: pb.ModelInferRequest,
        tensors: Sequence[Sequence[bytes]],
        limit_s: float,
        metadata: Metadata = (),
    ) -> pb.ModelInferResponse:
        """Send one request, whose tensors come as pieces of bytes.

        Errors become adapter's own, but asyncio.TimeoutError where `limit_s` seconds are over.
        """
        message = [request.SerializeToString()]
        for pieces in tensors:  # as protobuf would write them, without its copies
            message += (_varint(_RAW_INPUTS), _varint(sum(len(piece) for piece in pieces)), *pieces)
        try:
            answer = await self._channel.call(f"{_SERVICE}ModelInfer", message, limit_s=limit_s, metadata=metadata)
        except RpcError as error:
            if _NOT_HEALTHY in error.details:
                text = f"The process of Triton that serves {request.model_name} died."
                self._dead[request.model_name] = self._channel.connections, text
            if error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED) and _OWN_ERROR.search(error.details) is None:
                raise asyncio.TimeoutError from None
            raise translated(error, request.model_name) from None
        self._dead.pop(request.model_name, None)
        return pb.ModelInferResponse.FromString(answer)

    async def not_ready(self, expected: Mapping[str, str]) -> str:
        """Why the entries (name -> interface fingerprint) cannot all be called now; "" when they can.

        From what Triton says of them it also learns how many requests keep all instances of each busy.
        """
        for entry, interface in expected.items():
            try:
                ready = await self._ask("ModelReady", pb.ModelReadyRequest(name=entry))
                if entry in self._dead:  # Triton 2.51 goes on calling it ready
                    connection, text = self._dead[entry]
                    if connection == self._channel.connections:
                        return text
                    del self._dead[entry]  # this is another Triton, or the same one started again
                if not pb.ModelReadyResponse.FromString(ready).ready:
                    return f"The entry {entry} is not ready in the Triton at {self.url}."
                config = await self._config(entry)
                for lane in self.lanes[entry]:
                    lane.instances = _instances(config)
            except RpcError as error:
                return f"The entry {entry} cannot be asked for at {self.url}: {error.details}."
            found = config.parameters[INTERFACE].string_value
            if found != interface:
                return (
                    f"The entry {entry} at {self.url} has another interface ({found or 'none'}) than this service "
                    f"({interface}): run `adapter export` again and load it there."
                )
        return ""

    async def _config(self, entry: str) -> Any:
        return pb.ModelConfigResponse.FromString(
            await self._ask("ModelConfig", pb.ModelConfigRequest(name=entry))
        ).config

    async def _ask(self, method: str, request: Any) -> bytes:
        call = self._channel.call(_SERVICE + method, [request.SerializeToString()], limit_s=_PROBE_S)
        try:
            return await asyncio.wait_for(call, _PROBE_S)
        except asyncio.TimeoutError:
            raise RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {_PROBE_S:g} s") from None

    async def close(self) -> None:
        """End the connection; calls under way fail."""
        await self._channel.close()


class CallMetrics(Protocol):
    """What is counted of the calls of runners, always on the event loop."""

    def call_begun(self, runner: str, method: str) -> None: ...

    def call_ended(self, runner: str, method: str, seconds: float, failed: bool) -> None: ...

    def packed(self, runner: str, method: str, calls: int, items: int) -> None: ...

    def flights(self, runner: str, method: str, change: int) -> None: ...

    def retried(self, runner: str, method: str, calls: int) -> None: ...


class CallTracer(Protocol):
    """What makes the spans of calls, with their `link`, and of the requests that carry them, with their `metadata`.

    See `adapter.server.tracing`.
    """

    def call(self, runner: str, method: str) -> Any: ...

    def flight(self, entry: str, links: Sequence[Any]) -> Any: ...


class _Observed:
    """A lane's observer: the metrics of one method."""

    def __init__(self, metrics: CallMetrics, runner: str, method: str) -> None:
        self.begun = functools.partial(metrics.call_begun, runner, method)
        self.ended = functools.partial(metrics.call_ended, runner, method)
        self.packed = functools.partial(metrics.packed, runner, method)
        self.flights = functools.partial(metrics.flights, runner, method)
        self.retried = functools.partial(metrics.retried, runner, method)


class TritonTransport:
    """Carries the calls of one runner to its entries in Triton."""

    def __init__(
        self,
        client: TritonClient,
        runner: RunnerSpec,
        entries: Mapping[str, str],
        *,
        metrics: CallMetrics | None = None,
        tracer: CallTracer | None = None,
    ) -> None:
        """`entries` names the entry of each method."""
        self._client = client
        self._runner = runner.name
        self._tracer = tracer
        self._entries = {
            name: Entry(name, runner.name, tuple(m for m in runner.methods.values() if entries[m.name] == name))
            for name in entries.values()
        }
        self._routes: dict[str, _Route] = {
            method: (_TypedRoute if self._entries[name].typed else _BlobRoute)(
                client, self._entries[name], runner, runner.methods[method], metrics, tracer
            )
            for method, name in entries.items()
        }
        for route in self._routes.values():
            client.lanes[route.entry.name].append(route.lane)
        self._arrivals: Mailbox[tuple[Lane, Call]] = Mailbox(client.loop, _submit)

    @property
    def interfaces(self) -> dict[str, str]:
        """The interface fingerprint that this front expects of each entry."""
        return {entry.name: entry.interface for entry in self._entries.values()}

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        refuse_event_loop(method)
        if self._tracer is None:
            return self._run(method, args, kwargs)
        with self._tracer.call(self._runner, method.name) as span:
            return self._run(method, args, kwargs, span.link)

    def _run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any], link: Any = None) -> Any:
        route = self._routes[method.name]
        waits: collections.deque[Callable[[], Any]] = collections.deque()
        results = []
        for call in route.calls(args, kwargs):
            call.link = link
            if len(waits) == _PIECES_IN_FLIGHT:
                results.append(waits.popleft()())
            waits.append(call.for_thread())
            try:
                self._arrivals.put((route.lane, call))
            except RuntimeError:
                raise ServiceUnavailable(f"{route.entry.name} cannot be called: this server has stopped.") from None
        results.extend(wait() for wait in waits)
        return route.result(results)

    def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        call = self._async_run(method, args, kwargs) if self._tracer is None else self._traced(method, args, kwargs)
        return call if threading.get_ident() == self._client.thread else self._elsewhere(call)

    async def _elsewhere(self, call: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._client.loop))

    async def _traced(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        assert self._tracer is not None
        with self._tracer.call(self._runner, method.name) as span:
            return await self._async_run(method, args, kwargs, span.link)

    async def _async_run(
        self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any], link: Any = None
    ) -> Any:
        route = self._routes[method.name]
        lane, loop = route.lane, self._client.loop
        calls = route.calls(args, kwargs)
        waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        results = []
        try:
            for call in calls:
                call.link = link
                if len(waiting) == _PIECES_IN_FLIGHT:
                    results.append(await waiting[0][1])
                    del waiting[0]
                waiting.append((call, call.for_task(loop)))
                lane.submit(call)
            for _, future in waiting:
                results.append(await future)
        except BaseException:
            for call, _ in waiting:
                lane.abandon(call)
            raise
        return route.result(results)

    def close(self) -> None:
        """Fail the calls under way; the client closes the connection, which other runners share."""
        for route in self._routes.values():
            route.lane.close()


def _submit(arrival: tuple[Lane, Call]) -> None:
    lane, call = arrival
    lane.submit(call)


class _Route(abc.ABC):
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
        self._limit_s = method.batching.max_latency_ms / 1000 if method.signature.batchable else None
        self.lane = Lane(
            entry.name,
            self._send,
            client.loop,
            most=method.batching.max_batch_size if self._batchable else 0,
            limit_s=self._limit_s,
            retry=runner.retry_failed_batch,
            observer=None if metrics is None else _Observed(metrics, runner.name, method.name),
        )

    @abc.abstractmethod
    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        """The calls to send for one call of the method: more than one where it is longer than a batch may be."""

    @abc.abstractmethod
    def result(self, results: Sequence[Any]) -> Any:
        """What the method returned, of the results of all its calls."""

    @abc.abstractmethod
    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        """Make one request of some calls, as `Lane` wants it."""

    def _call(self, key: Hashable, body: Any, size: int, weight: int, *, alone: bool = False) -> Call:
        until = deadline.get()
        expires, limited = math.inf if until is None else until, False
        if self._limit_s is not None and (limit := time.monotonic() + self._limit_s) < expires:
            expires, limited = limit, True
        return Call(key, body, size, weight, request_id.get(), expires, limited, alone or not self._batchable)

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


class _TypedRoute(_Route):
    """Each argument is a tensor; calls that share a request lie behind one another along the batch axis."""

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        arrays, extra = self.method.pack(args, kwargs)
        if not self._batchable:
            return [self._piece(arrays, extra)]
        rows, most = arrays[0].shape[0], self.entry.max_batch_size
        if rows <= most:
            return [self._piece(arrays, extra)]
        # Triton never splits a request
        return (self._piece([a[start : start + most] for a in arrays], extra) for start in range(0, rows, most))

    def _piece(self, arrays: Sequence[Array], extra: str) -> Call:
        # bytes at once, and not when the request is made: the caller may change an array in the meantime
        data = [array.tobytes() for array in arrays]
        first = 1 if self._batchable else 0
        key = (extra, tuple([array.shape[first:] for array in arrays]))
        return self._call(key, data, arrays[0].shape[0] if first else 1, sum(map(len, data)))

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        request = self._request(calls)
        extra, shapes = cast(_Key, calls[0].key)
        if extra:
            request.parameters["arguments"].string_param = extra
        sizes = [call.size for call in calls]
        for spec, shape in zip(self.method.inputs, shapes, strict=True):
            whole = (sum(sizes), *shape) if self._batchable else shape
            request.inputs.add(name=spec.name, datatype=spec.triton, shape=whole)
        tensors = list(zip(*(call.body for call in calls), strict=True))
        response = await self._infer(request, tensors, calls, limit_s)
        outputs = [_array(response, spec.name) for spec in self.method.outputs]
        if len(calls) == 1:
            return [[output.copy() for output in outputs]]
        ends = list(itertools.accumulate(sizes))
        for output in outputs:
            if output.shape[0] != ends[-1]:
                raise RemoteException(f"{self.entry.name} answered {output.shape[0]} items for a batch of {ends[-1]}.")
        # copies: each caller may write into its own, and keeps no other's memory alive
        return [[output[end - size : end].copy() for output in outputs] for size, end in zip(sizes, ends, strict=True)]

    def result(self, results: Sequence[Any]) -> Any:
        if len(results) == 1:
            return self.method.unpack_result(results[0])
        return self.method.unpack_result([concat(parts, 0) for parts in zip(*results, strict=True)])


class _BlobRoute(_Route):
    """The arguments of a call are one blob; calls that share a request are a bundle of blobs, and answered as one."""

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        self.method.check(args, kwargs)
        size = None
        if self._batchable:
            with contextlib.suppress(InvalidArgument):  # the method says itself what is wrong with it
                size = batch_size(MethodCall(self.method, tuple(args), kwargs))
        blob = payload.encode((tuple(args), dict(kwargs)))
        return [self._call(None, blob, size or 1, len(blob), alone=size is None)]

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        request = self._request(calls)
        blob = calls[0].body if len(calls) == 1 else payload.bundle([(call.identity, call.body) for call in calls])
        shape = [1, len(blob)] if self.entry.batched else [len(blob)]
        request.inputs.add(name=BLOB, datatype="UINT8", shape=shape)
        response = await self._infer(request, [[blob]], calls, limit_s)
        answer = response.raw_output_contents[0]
        if len(calls) == 1:
            return [answer]
        return [_raised(*json.loads(bytes(blob))) if failed else blob for failed, blob in payload.unbundle(answer)]

    def result(self, results: Sequence[Any]) -> Any:
        return self.method.rebuild_result(payload.decode(results[0]))


def _instances(config: Any) -> int:
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group) or 1


def _varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _array(response: pb.ModelInferResponse, name: str) -> Array:
    """An output tensor, read-only."""
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == name:
            return np.frombuffer(data, numpy_dtype(output.datatype)).reshape(tuple(output.shape))
    raise RemoteException(f"{response.model_name} answered without its output {name!r}.")


def translated(error: RpcError, entry: str) -> AdapterError:
    """The error of a gRPC call as adapter's own: what a Runnable raised, or what Triton says."""
    code, text = error.code, error.details
    own = _OWN_ERROR.search(text)
    if own is not None:
        return _raised(int(own[1]), own[2], own[3])
    if code is Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{entry} did not answer in time.")
    if code is Code.INVALID_ARGUMENT:
        return InvalidArgument(f"{entry} cannot take this call: {text}")
    if code in (Code.UNAVAILABLE, Code.NOT_FOUND) or _NOT_HEALTHY in text:
        return ServiceUnavailable(f"{entry} cannot be reached now: {text}")
    return InternalServerError(f"{entry} failed: {code.name}: {text}")


def _raised(status: int, name: str, message: str) -> AdapterError:
    cls = getattr(exceptions, name, None)
    if isinstance(cls, type) and issubclass(cls, AdapterError) and cls.error_code == status:
        found = cls.__new__(cls)
        AdapterError.__init__(found, message)
        if isinstance(found, ServiceUnavailable):
            found.retry_after = 1.0
        return found
    error = RemoteException(message) if status >= 500 else InvalidArgument(message)
    error.error_code = status  # a class of the user's own, which this process need not have
    return error


def connect(
    client: TritonClient,
    runner: Runner,
    entries: Mapping[str, str],
    *,
    metrics: CallMetrics | None = None,
    tracer: CallTracer | None = None,
) -> dict[str, str]:
    """Send the calls of a runner to the entries of its methods; the interfaces that those must have."""
    transport = TritonTransport(client, runner.spec, entries, metrics=metrics, tracer=tracer)
    runner.connect(transport)
    return transport.interfaces

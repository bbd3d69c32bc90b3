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
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Protocol, cast

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from adapter import payload
from adapter.exceptions import (
    ClientGone,
    ConfigException,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
    raised,
)
from adapter.invocation import batch_size
from adapter.mailbox import Mailbox
from adapter.method import Call as MethodCall
from adapter.method import MethodSpec
from adapter.runner import Runner, RunnerSpec, refuse_event_loop
from adapter.streaming import async_stepped, stepped
from adapter.tensor import Array, concat, numpy_dtype
from adapter.triton.config import BLOB, INTERFACE, Entry
from adapter.triton.failures import NOT_HEALTHY, is_own, translated
from adapter.triton.lanes import Call, Lane
from adapter.triton.native import Native, from_native, to_native
from adapter.triton.request import deadline, request_id
from adapter.triton.rpc import Channel, Code, Metadata, RpcError
from adapter.triton.stream_call import StreamCall
from adapter.triton.worker_process import KEEPS_DYING

_SERVICE = "/inference.GRPCInferenceService/"
_RAW_INPUTS = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
)  # tag: a length follows
_PROBE_S = 2.0
_BELIEVED_S = 5.0  # the longest pause between two starts of a worker
_STREAM_WINDOW = 1 << 20
_PIECES_IN_FLIGHT = 4  # of one long call, so that it leaves Triton to others as well


class TritonClient:
    """One connection to Triton, for all runners of a front process; it belongs to the event loop that made it."""

    def __init__(self, url: str) -> None:
        """Connect to `host:port` or `grpc://host:port`; ConfigException where `url` is neither."""
        self.url = url
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        # why, by whose connection it was told, and until when that is believed
        self._dead: dict[str, tuple[str, int, float]] = {}
        self._refused: Mapping[str, str] = {}
        self._watched = False
        self.lanes: dict[str, list[Lane]] = collections.defaultdict(list)
        self._open_streams: set[StreamCall] = set()
        try:
            self._channel, self._stream_channel = _channels(url)
        except ValueError as error:
            raise ConfigException(f"{url!r} cannot be the address of a Triton: write grpc://host:8001.") from error

    def move(self, url: str) -> None:
        """Send new calls to another Triton; those under way are still answered by the one of before."""
        before = self._channel, self._stream_channel
        (self._channel, self._stream_channel), self.url = _channels(url), url
        for channel in before:
            channel.retire()

    def refuse(self, entries: Mapping[str, str]) -> None:
        """Fail the calls of these entries, and no others, with the sentence beside each, those under way as well."""
        self._watched = True  # whoever tells this knows better than what errors say
        new, self._refused = entries.keys() - self._refused.keys(), entries
        for entry in new:
            for lane in self.lanes[entry]:
                lane.interrupt()
            for call in [call for call in self._open_streams if call.entry == entry]:
                call.fail(ServiceUnavailable(entries[entry]))

    def abandon(self, identity: str) -> None:
        """End the calls of an HTTP request whose client has gone; what shares a request to Triton is left there."""
        for lane in itertools.chain.from_iterable(self.lanes.values()):
            lane.drop(identity)
        for call in [call for call in self._open_streams if call.identity is identity]:
            call.fail(ClientGone(f"{call.entry} was not read to its end: its client has gone."))

    async def stream(self, call: StreamCall, metadata: Metadata = ()) -> AsyncGenerator[Any, None]:
        """Open a stream; its values, one by one."""
        if call.entry in self._refused:
            raise ServiceUnavailable(self._refused[call.entry])
        self._open_streams.add(call)
        try:
            path = f"{_SERVICE}ModelStreamInfer"
            opened = functools.partial(self._stream_channel.stream, path, metadata=metadata)
            async with contextlib.aclosing(call.values(opened)) as values:
                async for value in values:
                    yield value
        finally:
            self._open_streams.discard(call)

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
        if request.model_name in self._refused:
            raise ServiceUnavailable(self._refused[request.model_name])
        message = [request.SerializeToString()]
        for pieces in tensors:  # as protobuf would write them, without its copies
            message += (_varint(_RAW_INPUTS), _varint(sum(len(piece) for piece in pieces)), *pieces)
        try:
            answer = await self._channel.call(f"{_SERVICE}ModelInfer", message, limit_s=limit_s, metadata=metadata)
        except RpcError as error:
            if not self._watched:
                self._note(request.model_name, error.details)
            if error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED) and not is_own(error.details):
                raise asyncio.TimeoutError from None
            raise translated(error, request.model_name) from None
        self._dead.pop(request.model_name, None)
        return pb.ModelInferResponse.FromString(answer)

    def _note(self, entry: str, details: str) -> None:
        """Remember an error that says more of an entry than of the call."""
        if NOT_HEALTHY in details:  # Triton 2.51 neither repairs it nor calls it less ready
            text = f"The process of Triton that serves {entry} died."
            self._dead[entry] = text, self._channel.connections, math.inf
        elif KEEPS_DYING in details:
            text = f"The process that runs {entry} {KEEPS_DYING}."
            self._dead[entry] = text, self._channel.connections, time.monotonic() + _BELIEVED_S

    async def not_ready(self, expected: Mapping[str, str]) -> str:
        """Why the entries (name -> interface fingerprint) cannot all be called now; "" when they can.

        From what Triton says of them it also learns how many requests keep all instances of each busy.
        """
        for entry, interface in expected.items():
            try:
                ready = await self._ask("ModelReady", pb.ModelReadyRequest(name=entry))
                if entry in self._dead:
                    text, connection, until = self._dead[entry]
                    if connection == self._channel.connections and time.monotonic() < until:
                        return text
                    del self._dead[entry]  # else it is another Triton, or the same one started again
                if not pb.ModelReadyResponse.FromString(ready).ready:
                    return f"The entry {entry} is not ready in the Triton at {self.url}."
                config = await self.config(entry)
                for lane in self.lanes[entry]:
                    lane.instances = instances(config)
            except RpcError as error:
                return f"The entry {entry} cannot be asked for at {self.url}: {error.details}."
            found = config.parameters[INTERFACE].string_value
            if found != interface:
                return (
                    f"The entry {entry} at {self.url} has another interface ({found or 'none'}) than this service "
                    f"({interface}): run `adapter export` again and load it there."
                )
        return ""

    async def config(self, entry: str) -> Any:
        """The ModelConfig of an entry; RpcError where Triton does not tell."""
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
        """End the connections; calls under way fail."""
        await self._channel.close()
        await self._stream_channel.close()


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
        natives: Mapping[str, Native] | None = None,
        metrics: CallMetrics | None = None,
        tracer: CallTracer | None = None,
    ) -> None:
        """`entries` names the entry of each method, `natives` has those that another backend than python serves."""
        backends = natives or {}
        self._client = client
        self._runner = runner.name
        self._tracer = tracer
        self._entries = {
            name: Entry(
                name,
                runner.name,
                tuple(m for m in runner.methods.values() if entries[m.name] == name),
                native=backends.get(name),
            )
            for name in entries.values()
        }
        # the calls of generator methods are streams, each of its own
        self._routes: dict[str, Route] = {
            method: _route_of(self._entries[name])(
                client, self._entries[name], runner, runner.methods[method], metrics, tracer
            )
            for method, name in entries.items()
            if not runner.methods[method].stream
        }
        self._streams = {
            method: _Observed(metrics, runner.name, method) if metrics is not None else None
            for method in entries.keys() - self._routes.keys()
        }
        self._entry_of = entries
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
            while waiting:
                results.append(await waiting[0][1])
                del waiting[0]
        except BaseException:
            _give_up(lane, waiting)
            raise
        return route.result(results)

    def stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
        refuse_event_loop(method)
        return stepped(self._stream(method, args, kwargs), self._client.loop)

    def async_stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        values = self._stream(method, args, kwargs)
        here = threading.get_ident() == self._client.thread
        return values if here else async_stepped(values, self._client.loop)

    def _stream(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        method.check(args, kwargs)
        # bytes at once, and not at the first step: the caller may change an array in the meantime
        blob = payload.encode((tuple(args), dict(kwargs)))
        return self._values(StreamCall(self._entries[self._entry_of[method.name]], method, blob), method)

    async def _values(self, call: StreamCall, method: MethodSpec) -> AsyncGenerator[Any, None]:
        with contextlib.ExitStack() as stack:
            if (observer := self._streams[method.name]) is not None:
                stack.enter_context(_counted(observer))
            metadata: Metadata = ()
            if self._tracer is not None:  # not attached: what makes the next step may have another context
                span = stack.enter_context(self._tracer.call(self._runner, method.name).apart())
                flight = stack.enter_context(self._tracer.flight(call.entry, [span.link]).apart())
                metadata = flight.metadata
            async with contextlib.aclosing(self._client.stream(call, metadata)) as values:
                async for value in values:
                    yield value

    def close(self) -> None:
        """Fail the calls under way; the client closes the connection, which other runners share."""
        for route in self._routes.values():
            route.lane.close()


@contextlib.contextmanager
def _counted(observer: _Observed) -> Iterator[None]:
    """Count a stream as one call and one request, from its beginning to its end."""
    begun, failed = time.perf_counter(), True
    observer.begun()
    observer.packed(1, 1)
    observer.flights(1)
    try:
        yield
        failed = False
    except GeneratorExit:  # its reader has enough
        failed = False
        raise
    finally:
        observer.flights(-1)
        observer.ended(time.perf_counter() - begun, failed)


def _give_up(lane: Lane, waiting: list[tuple[Call, asyncio.Future[Any]]]) -> None:
    """Abandon the calls of which one has failed.

    None is left in `waiting`: an error whose traceback leads to its own future would be kept, with all that was sent.
    """
    while waiting:
        call, future = waiting.pop()
        lane.abandon(call)
        if future.done() and not future.cancelled():
            future.exception()  # one is raised, for all


def _submit(arrival: tuple[Lane, Call]) -> None:
    lane, call = arrival
    lane.submit(call)


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


class _TypedRoute(Route):
    """Each argument is a tensor; calls that share a request lie behind one another along the batch axis."""

    @functools.cached_property
    def _inputs(self) -> Sequence[tuple[str, str]]:
        """The names of the tensors that are sent, and Triton's names of their data types."""
        return [(spec.name, spec.triton or "") for spec in self.method.inputs]

    @functools.cached_property
    def _outputs(self) -> Sequence[str]:
        return [spec.name for spec in self.method.outputs]

    def calls(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Call]:
        return self._pieces(*self.method.pack(args, kwargs))

    def _pieces(self, arrays: Sequence[Array], extra: str) -> Iterable[Call]:
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
        for (name, datatype), shape in zip(self._inputs, shapes, strict=True):
            whole = (sum(sizes), *shape) if self._batchable else shape
            request.inputs.add(name=name, datatype=datatype, shape=whole)
        tensors = list(zip(*(call.body for call in calls), strict=True))
        response = await self._infer(request, tensors, calls, limit_s)
        outputs = [_array(response, name) for name in self._outputs]
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

    async def _send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        answers = await super()._send(calls, limit_s)
        return [from_native(self._native, self.method, arrays) for arrays in answers]


class _BlobRoute(Route):
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
        return [raised(*json.loads(bytes(blob))) if failed else blob for failed, blob in payload.unbundle(answer)]

    def result(self, results: Sequence[Any]) -> Any:
        return self.method.rebuild_result(payload.decode(results[0]))


def _route_of(entry: Entry) -> type[Route]:
    if entry.native is not None:
        return _NativeRoute
    return _TypedRoute if entry.typed else _BlobRoute


def instances(config: Any) -> int:
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group) or 1


def _channels(url: str) -> tuple[Channel, Channel]:
    """Two connections: one for calls, and one for streams, whose readers hold each of them back."""
    address = url.removeprefix("grpc://")
    return Channel(address), Channel(address, window=_STREAM_WINDOW)


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


def connect(
    client: TritonClient,
    runner: Runner,
    entries: Mapping[str, str],
    *,
    natives: Mapping[str, Native] | None = None,
    metrics: CallMetrics | None = None,
    tracer: CallTracer | None = None,
) -> dict[str, str]:
    """Send the calls of a runner to the entries of its methods; the interfaces that those must have."""
    transport = TritonTransport(client, runner.spec, entries, natives=natives, metrics=metrics, tracer=tracer)
    runner.connect(transport)
    return transport.interfaces

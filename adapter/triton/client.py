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
    Collection,
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
from adapter.triton.address import Address, parse
from adapter.triton.config import BLOB, Entry
from adapter.triton.failures import NotBegun, Unserved, is_own, translated
from adapter.triton.lanes import Call, Lane
from adapter.triton.native import Native, from_native, to_native
from adapter.triton.replicas import SERVICE, Link, Observer, Replicas, Resolve, resolve_name
from adapter.triton.request import deadline, request_id
from adapter.triton.rpc import Code, Metadata, RpcError
from adapter.triton.stream_call import StreamCall

_INFER, _STREAM = f"{SERVICE}ModelInfer", f"{SERVICE}ModelStreamInfer"
_RAW_INPUTS = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
)  # tag: a length follows
_PIECES_IN_FLIGHT = 4  # of one long call, so that it leaves Triton to others as well
MEND = "run `adapter export` again and load it there"


class TritonClient:
    """The connections to Triton, for the runners of a front process; it belongs to the event loop that made it.

    Several Tritons that serve the same entries are one to its callers: see `Replicas`.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        watch: bool = False,
        mend: str = MEND,
        resolve: Resolve = resolve_name,
        observer: Observer | None = None,
    ) -> None:
        """Connect when it is first used; ConfigException where `address` is none, or its TLS cannot be made.

        `watch` is for Tritons that nobody else looks after: it tells when one goes and comes back. `mend` says what to
        do where an entry has another interface than is needed; `resolve` finds the addresses behind `dns:///`.
        """
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        self.expected: dict[str, str] = {}
        """The interface of each entry that is called, "" where any will do."""
        self.lanes: dict[str, list[Lane]] = collections.defaultdict(list)
        self._refused: Mapping[str, str] = {}
        self._looked_after = False
        self._open_streams: set[StreamCall] = set()
        self._make = functools.partial(
            Replicas,
            expected=self.expected,
            changed=self.recount,
            watch=watch,
            mend=mend,
            resolve=resolve,
            observer=observer,
        )
        self._replicas = self._make(parse(address) if isinstance(address, str) else address)
        self._only = self._replicas.only

    @property
    def url(self) -> str:
        return str(self._replicas)

    def recount(self) -> None:
        """Take in that other Tritons serve the entries than before."""
        self._only = self._replicas.only
        for entry, lanes in self.lanes.items():
            count = self._replicas.instances(entry)
            for lane in lanes:
                lane.instances = count

    def move(self, url: str) -> None:
        """Send new calls to another Triton; those under way are still answered by the one of before."""
        before, self._replicas = self._replicas, self._make(parse(url))
        self.recount()
        before.retire()

    def refuse(self, entries: Mapping[str, str]) -> None:
        """Fail the calls of these entries, and no others, with the sentence beside each, those under way as well."""
        self._looked_after = True  # whoever tells this knows better than what errors say
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
            tried: set[Link] = set()
            while True:
                link = self._next(call.entry, tried)
                begun = False
                try:
                    opened = functools.partial(link.streams.stream, _STREAM, metadata=metadata)
                    async with contextlib.aclosing(call.values(opened)) as values:
                        async for value in values:
                            begun = True
                            yield value
                    return
                except ServiceUnavailable as error:
                    if not self._moves(link, call.entry, error.message, error, tried) or begun:
                        raise
                finally:
                    self._replicas.done(link, call.entry)
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
        entry = request.model_name
        if entry in self._refused:
            raise ServiceUnavailable(self._refused[entry])
        message = [request.SerializeToString()]
        for pieces in tensors:  # as protobuf would write them, without its copies
            message += (_varint(_RAW_INPUTS), _varint(sum(len(piece) for piece in pieces)), *pieces)
        link = self._only
        if link is not None:
            try:
                answer = await link.calls.call(_INFER, message, limit_s=limit_s, metadata=metadata)
            except RpcError as error:
                # an error is made where it is raised: one that is kept here would keep all that was sent
                if not self._moves(link, entry, error.details, _failure(error, entry), set()):
                    raise _failure(error, entry) from None
            else:
                if link.dead:
                    link.dead.pop(entry, None)
                return pb.ModelInferResponse.FromString(answer)
        return pb.ModelInferResponse.FromString(await self._anywhere(entry, message, limit_s, metadata))

    async def _anywhere(self, entry: str, message: Sequence[bytes], limit_s: float, metadata: Metadata) -> bytes:
        """Send a message to one of several Tritons, and to another one where that has not begun with it."""
        until = time.monotonic() + limit_s
        tried: set[Link] = set()
        while True:
            link = self._next(entry, tried)
            try:
                answer = await link.calls.call(_INFER, message, limit_s=limit_s, metadata=metadata)
            except RpcError as error:
                limit_s = until - time.monotonic()
                moves = self._moves(link, entry, error.details, _failure(error, entry), tried)
                if limit_s <= 0 or not moves:
                    raise _failure(error, entry) from None
            else:
                link.dead.pop(entry, None)
                return answer
            finally:
                self._replicas.done(link, entry)

    def _next(self, entry: str, tried: Collection[Link]) -> Link:
        link = self._replicas.choose(entry, tried)
        if link is None:
            raise ServiceUnavailable(f"{entry} cannot be reached now: no Triton serves it.")
        return link

    def _moves(self, link: Link, entry: str, details: str, error: Exception, tried: set[Link]) -> bool:
        """Take in what an error says of a Triton; whether it has not begun with the call, and there is another one."""
        unbegun = not self._looked_after and link.note(entry, details)
        if not unbegun and not isinstance(error, NotBegun):
            return False
        tried.add(link)
        if isinstance(error, Unserved):
            self._replicas.leave_out(link, entry, str(error))
        return self._replicas.others(entry, tried)

    async def not_ready(self) -> str:
        """Why the entries that are expected cannot all be called now; "" when they can.

        From what Triton says of them it also learns how many requests keep all instances of each busy.
        """
        return await self._replicas.not_ready()

    async def config(self, entry: str) -> Any:
        """The ModelConfig of an entry; RpcError where Triton does not tell."""
        return await self._replicas.config(entry)

    async def close(self) -> None:
        """End the connections; calls under way fail."""
        await self._replicas.close()


def _failure(error: RpcError, entry: str) -> Exception:
    if error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED) and not is_own(error.details):
        return asyncio.TimeoutError()
    return translated(error, entry)


class CallMetrics(Protocol):
    """What is counted of the calls of runners, always on the event loop."""

    def call_begun(self, runner: str, method: str) -> None: ...

    def call_ended(self, runner: str, method: str, seconds: float, failed: bool) -> None: ...

    def packed(self, runner: str, method: str, calls: int, items: int) -> None: ...

    def flights(self, runner: str, method: str, change: int) -> None: ...

    def retried(self, runner: str, method: str, calls: int) -> None: ...

    def replicas(self, address: str, up: int, known: int) -> None: ...


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
        client.expected.update(self.interfaces)
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
        self._most = entry.max_batch_size
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


def _route_of(entry: Entry) -> type[Route]:
    if entry.native is not None:
        return _NativeRoute
    return _TypedRoute if entry.typed else _BlobRoute


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
) -> None:
    """Send the calls of a runner to the entries of its methods."""
    runner.connect(TritonTransport(client, runner.spec, entries, natives=natives, metrics=metrics, tracer=tracer))

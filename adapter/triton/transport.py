"""What carries the calls of a runner to its entries in Triton."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from adapter import payload
from adapter.exceptions import ServiceUnavailable
from adapter.mailbox import Mailbox
from adapter.method import MethodSpec
from adapter.runner import Runner, RunnerSpec, refuse_event_loop
from adapter.streaming import async_stepped, stepped
from adapter.triton.client import TritonClient
from adapter.triton.config import Entry
from adapter.triton.lanes import Call, Lane, Observer
from adapter.triton.native import Native
from adapter.triton.routes import CallMetrics, CallTracer, Route, route_of
from adapter.triton.rpc import Metadata
from adapter.triton.stream_call import StreamCall

_PIECES_IN_FLIGHT = 4  # of one long call, so that it leaves Triton to others as well


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
            method: route_of(self._entries[name])(
                client, self._entries[name], runner, runner.methods[method], metrics, tracer
            )
            for method, name in entries.items()
            if not runner.methods[method].stream
        }
        self._streams = {
            method: metrics.calls(runner.name, method) if metrics is not None else None
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
        if type(calls) is tuple:  # nearly always: what follows would cost a small call as much again
            (call,) = calls
            call.link = link
            future = call.for_task(loop)
            lane.submit(call)
            try:
                return route.result((await future,))
            except BaseException:
                lane.abandon(call)
                raise
            finally:
                del future  # as in `_give_up`
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
def _counted(observer: Observer) -> Iterator[None]:
    """Count a stream as one call and one request, from its beginning to its end."""
    begun, failed = time.monotonic(), True
    observer.now += 1
    observer.departed(1, 1)
    try:
        yield
        failed = False
    except GeneratorExit:  # its reader has enough
        failed = False
        raise
    finally:
        observer.landed()
        observer.ended((time.monotonic() - begun,), failed=failed)


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

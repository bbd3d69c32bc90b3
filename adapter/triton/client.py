"""The connections to Triton, and the requests that go over them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from adapter.exceptions import ClientGone, ServiceUnavailable
from adapter.triton.address import Address, parse
from adapter.triton.failures import NotBegun, Unserved, is_own, translated
from adapter.triton.lanes import Lane
from adapter.triton.replicas import SERVICE, Link, Observer, Replicas, Resolve, resolve_name
from adapter.triton.rpc import Code, Metadata, RpcError
from adapter.triton.stream_call import StreamCall

_INFER, _STREAM = f"{SERVICE}ModelInfer", f"{SERVICE}ModelStreamInfer"
_RAW_INPUTS = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
)  # tag: a length follows
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


def _varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)

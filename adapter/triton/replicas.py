"""The Tritons behind one client: which of them a call goes to, and which are left out for now."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from adapter.triton.address import Address, Replica, Target
from adapter.triton.config import INTERFACE
from adapter.triton.failures import NOT_HEALTHY, reason_of
from adapter.triton.rpc import Channel, Code, RpcError
from adapter.triton.worker_process import KEEPS_DYING

SERVICE = "/inference.GRPCInferenceService/"
_PROBE_S = 2.0
_BELIEVED_S = 5.0  # the longest pause between two starts of a worker
_STREAM_WINDOW = 1 << 20
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0  # between two looks at a Triton that is away
_LOOK_S = 5.0  # between two looks at one that is not, and between two questions to a name server
_TRIAL_S, _LONGEST_TRIAL_S = 5.0, 60.0  # before a call tries an entry again whose process died
_MISSING = "is not found"  # what Triton says of an entry that is not loaded, and was not
_NAMED = 3  # Tritons whose reasons a sentence gives

logger = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[Any]]]


class Observer(Protocol):
    """What is told of the Tritons of one client, on the event loop."""

    def replicas(self, address: str, up: int, known: int) -> None: ...


async def resolve_name(host: str, port: int) -> Sequence[Any]:
    """Ask the system for the addresses of a name, as getaddrinfo() does; OSError where there are none."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM


@dataclass
class _Death:
    """What errors told of an entry: by whose connection, until when it is believed, and when a call may try it."""

    text: str
    connection: int
    until: float
    trial: float
    pause: float = _TRIAL_S


class Link:
    """The connections to one Triton, and what is known of the entries in it."""

    def __init__(
        self,
        replica: Replica,
        target: Target,
        address: Address,
        context: ssl.SSLContext | None,
        lost: Callable[[Link, str], None] | None,
    ) -> None:
        self.replica = replica
        self.target = target
        self.url = str(replica)

        def tell(reason: str) -> None:
            if lost is not None:
                lost(self, reason)

        name, metadata = address.server_name(replica), address.metadata
        # one connection for calls, and one for streams, whose readers hold each of them back
        self.calls = Channel(self.url, ssl=context, server_name=name, metadata=metadata, lost=tell)
        self.streams = Channel(self.url, ssl=context, server_name=name, metadata=metadata, window=_STREAM_WINDOW)
        self.up = True  # until it is known better
        self.away = ""  # why it is not up
        self.left_out: Mapping[str, str] = {}  # entries that it cannot serve, and why
        self.dead: dict[str, _Death] = {}
        self.instances: dict[str, int] = {}
        self.flying: dict[str, int] = collections.defaultdict(int)  # requests under way, by entry
        self.poked = asyncio.Event()
        self.examination: asyncio.Task[None] | None = None
        self.care: asyncio.Task[None] | None = None
        self.told: str | None = None  # what of it a person was told last

    def takes(self, entry: str, now: float) -> bool:
        """Whether calls of an entry go to it."""
        if not self.up or entry in self.left_out:
            return False
        death = self.dead.get(entry)
        return death is None or now >= death.trial or death.connection != self.calls.connections

    def why_not(self, entry: str) -> str:
        """Why it does not serve an entry; "" where it does."""
        if not self.up:
            return self.away
        return self.left_out.get(entry, "") or self._death_of(entry)

    def note(self, entry: str, details: str) -> bool:
        """Remember an error that says more of an entry than of the call; whether the call had not begun."""
        before = self.dead.get(entry)
        pause = _TRIAL_S if before is None else before.pause
        now, connection = time.monotonic(), self.calls.connections
        if NOT_HEALTHY in details:  # Triton 2.51 neither repairs it nor calls it less ready
            text = f"The process of Triton that serves {entry} died."
            self.dead[entry] = _Death(text, connection, math.inf, now + pause, pause)
            return before is not None and before.connection == connection  # there was no process to begin with it
        if KEEPS_DYING in details:
            text = f"The process that runs {entry} {KEEPS_DYING}."
            self.dead[entry] = _Death(text, connection, now + _BELIEVED_S, now + pause, pause)
            return True
        return False

    def _death_of(self, entry: str) -> str:
        death = self.dead.get(entry)
        if death is None:
            return ""
        if death.connection == self.calls.connections and time.monotonic() < death.until:
            return death.text
        del self.dead[entry]  # it is another Triton, or the same one started again
        return ""

    async def ask(self, entry: str, interface: str, mend: str) -> str:
        """Why an entry cannot be called with an interface ("" for any); "" when it can.

        From what Triton says of it the number of its instances is taken.
        """
        try:
            ready = await self._ask("ModelReady", pb.ModelReadyRequest(name=entry))
            config = await self.config(entry)  # of one that is not ready it says why
            if not pb.ModelReadyResponse.FromString(ready).ready:
                return f"The entry {entry} is not ready in the Triton at {self.url}."
        except RpcError as error:
            if error.details.endswith(_MISSING):
                return f"There is no entry {entry} in the Triton at {self.url}: {mend}."
            return f"The entry {entry} cannot be asked for at {self.url}: {reason_of(error)}."
        except DecodeError:
            return f"The entry {entry} cannot be asked for at {self.url}: what answers there is no Triton."
        found = config.parameters[INTERFACE].string_value
        if interface and found != interface:
            return (
                f"The entry {entry} at {self.url} has another interface ({found or 'none'}) than this service "
                f"({interface}): {mend}."
            )
        return ""

    async def config(self, entry: str) -> Any:
        """The ModelConfig of an entry; RpcError where Triton does not tell."""
        answer = await self._ask("ModelConfig", pb.ModelConfigRequest(name=entry))
        config = pb.ModelConfigResponse.FromString(answer).config
        self.instances[entry] = instances(config)
        return config

    async def _ask(self, method: str, request: Any) -> bytes:
        call = self.calls.call(SERVICE + method, [request.SerializeToString()], limit_s=_PROBE_S)
        answer: bytes = await _within(call)
        return answer

    async def connect(self) -> None:
        """Connect, where there is no connection; RpcError where none can be made soon."""
        await _within(self.calls.connect())

    def retire(self) -> None:
        """Take no new call; what is under way is still answered."""
        self.stop()
        self.calls.retire()
        self.streams.retire()

    def stop(self) -> None:
        for task in (self.care, self.examination):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        self.stop()
        await self.calls.close()
        await self.streams.close()


async def _within(step: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await asyncio.wait_for(step, _PROBE_S)
    except asyncio.TimeoutError:
        raise RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {_PROBE_S:g} s") from None


class Replicas:
    """The Tritons of an address.

    Calls of an entry go to the one that has the fewest of them under way, in turn where several have as few. One that
    is `watch`ed, as several always are, is left out from the moment its connection is lost until it answers again, and
    for a single entry as long as that is not ready there; it is looked at now and then, and names with `dns:///` are
    resolved as often. `expected` has the interface of each entry that is needed, `changed` is called when other Tritons
    serve an entry than before.
    """

    def __init__(
        self,
        address: Address,
        expected: Mapping[str, str],
        changed: Callable[[], None],
        *,
        watch: bool,
        mend: str,
        resolve: Resolve,
        observer: Observer | None,
    ) -> None:
        self.address = address
        self.only: Link | None = None
        """The one that all calls go to, where there is one."""
        self._expected = expected
        self._changed = changed
        self._mend = mend
        self._resolve = resolve
        self._observer = observer
        self._context = address.context()
        self._watch = watch or len(address.targets) > 1 or any(target.every for target in address.targets)
        self._links: tuple[Link, ...] = ()
        self._turn = 0
        self._unresolved: dict[Target, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._poked = asyncio.Event()
        fixed = [(replica, t) for t in address.targets if not t.every for replica in t.replicas()]
        self._set([self._link(replica, target) for replica, target in fixed])
        self._first: asyncio.Task[None] | None = None
        if any(target.every for target in address.targets):
            self._first = self._begin(self._find(first=True))
            self._begin(self._follow())

    def __str__(self) -> str:
        return str(self.address)

    # ---- calls ----------------------------------------------------------------------------------------------------

    def choose(self, entry: str, tried: Collection[Link]) -> Link | None:
        """The Triton that a request goes to, which counts as under way there until `done`; None where there is none."""
        links, now = self._links, time.monotonic()
        if self.only is not None:  # whatever is known of it: there is no other
            if self.only in tried:
                return None
            self.only.flying[entry] += 1
            return self.only
        best, fewest = None, math.inf
        self._turn += 1
        start = self._turn % len(links) if links else 0
        for link in itertools.chain(links[start:], links[:start]):
            if link not in tried and link.takes(entry, now) and (flying := link.flying[entry]) < fewest:
                best, fewest = link, flying
        if best is not None:
            best.flying[entry] += 1
            death = best.dead.get(entry)
            if death is not None:  # one call tries it, the next one when that has told
                death.pause = min(2 * death.pause, _LONGEST_TRIAL_S)
                death.trial = now + death.pause
        return best

    def others(self, entry: str, tried: Collection[Link]) -> bool:
        """Whether there is a Triton that was not tried, and serves an entry."""
        now = time.monotonic()
        return any(link not in tried and link.takes(entry, now) for link in self._links)

    def done(self, link: Link, entry: str) -> None:
        """A request that `choose` was asked for has ended."""
        link.flying[entry] -= 1
        if not link.takes(entry, math.inf):
            self._changed()

    def leave_out(self, link: Link, entry: str, reason: str) -> None:
        """Send no call of an entry to a Triton before it has said that it serves the entry again."""
        link.left_out = {**link.left_out, entry: reason}
        link.poked.set()
        self._update()

    def instances(self, entry: str) -> int:
        """How many requests keep all instances of an entry busy."""
        if self.only is not None:
            return self.only.instances.get(entry, 1)
        now, count = time.monotonic(), 0
        for link in self._links:
            # what is still under way where no call goes now, such as to a Triton that hangs, holds nobody else back
            count += link.instances.get(entry, 1) if link.takes(entry, now) else link.flying[entry]
        return count or 1

    async def config(self, entry: str) -> Any:
        """The ModelConfig of an entry, from any Triton that tells; RpcError where none does."""
        await self._found()
        error = RpcError(Code.UNAVAILABLE, self.nobody(entry))
        for link in sorted(self._links, key=lambda link: bool(link.why_not(entry))):
            try:
                return await link.config(entry)
            except RpcError as failed:
                error = failed
        raise error

    # ---- readiness ------------------------------------------------------------------------------------------------

    async def not_ready(self) -> str:
        """Why not every entry can be called now; "" when all can."""
        await self._found()
        # one that is known to lack something is looked at by its own task; to wait for it here may take long
        asked = [link for link in self._links if not self._watch or (link.up and not link.left_out)]
        await asyncio.gather(*(self._look(link) for link in asked))
        for entry in self._expected:
            if reason := self._why_not(entry):
                return reason
        return ""

    def _why_not(self, entry: str) -> str:
        reasons = []
        for link in self._links:
            reason = link.why_not(entry)
            if not reason:
                return ""
            reasons.append(reason)
        return reasons[0] if len(self._links) == 1 else self.nobody(entry)

    def nobody(self, entry: str) -> str:
        """That no Triton serves an entry, and why."""
        reasons = [link.why_not(entry).rstrip(".") for link in self._links[:_NAMED]]
        reasons += [reason.rstrip(".") for reason in self._unresolved.values()]
        if not reasons:
            reasons = ["no name server has told their addresses yet"]
        mend = f": {self._mend}"  # said once
        told = "; ".join(reason.removesuffix(mend) for reason in reasons if reason)
        needed = mend if any(reason.endswith(mend) for reason in reasons) else ""
        return f"No Triton of {self} serves {entry} now{f': {told}' if told else ''}{needed}."

    async def _found(self) -> None:
        if self._first is not None:
            await asyncio.wait([self._first], timeout=_PROBE_S)

    async def _look(self, link: Link) -> None:
        """Find out what a Triton serves; those that ask at once share the answer."""
        if link.examination is None or link.examination.done():
            link.examination = asyncio.create_task(self._examine(link))
        await asyncio.wait([link.examination])

    async def _examine(self, link: Link) -> None:
        if self._watch:
            try:
                await link.connect()
            except RpcError as error:
                self._leave(link, reason_of(error))
                self._say(link)
                return
        expected = dict(self._expected)  # there may be more when all have answered
        asked = [link.ask(entry, interface, self._mend) for entry, interface in expected.items()]
        reasons = dict(zip(expected, await asyncio.gather(*asked), strict=True))
        link.left_out = {entry: reason for entry, reason in reasons.items() if reason}
        link.up = True
        self._say(link)
        self._update()

    # ---- those that go and come back -----------------------------------------------------------------------------

    def _lost(self, link: Link, reason: str) -> None:
        """The connection of a Triton is lost; whether it is gone, a look tells."""
        if link in self._links and link.up:
            self._leave(link, reason)
            link.poked.set()
            self._poked.set()

    def _leave(self, link: Link, reason: str) -> None:
        link.up, link.away = False, f"The Triton at {link.url} is not called: {reason.replace(link.url, 'it')}."
        self._update()

    def _say(self, link: Link) -> None:
        """Tell a person what has changed of a Triton, once."""
        if not self._watch:
            return
        text = " ".join(dict.fromkeys(link.left_out.values()) if link.up else [link.away])
        before, link.told = link.told, text
        if before is None and (not text or self.only is not None):  # of one alone, whoever starts this tells
            return
        if text and (link.up or not before) and text != before:
            logger.warning("%s", text)
        elif before and not text:
            logger.info("The Triton at %s is called again.", link.url)

    async def _tend(self, link: Link) -> None:
        """Look at a Triton now and then, and more often while it does not serve everything."""
        pause = 0.0
        while True:
            link.poked.clear()
            await self._look(link)
            well = link.up and not link.left_out
            pause = 0.0 if well else min(max(2 * pause, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
            await _wait(link.poked, pause or _LOOK_S)
            await asyncio.sleep(_SHORTEST_PAUSE_S)  # where it is lost again and again

    async def _follow(self) -> None:
        """Keep up with names whose addresses change."""
        while True:
            await _wait(self._poked, _LOOK_S)
            self._poked.clear()
            await self._find()
            await asyncio.sleep(_SHORTEST_PAUSE_S)

    async def _find(self, *, first: bool = False) -> None:
        """Resolve the names again: new Tritons are looked at before they are called, old ones finish what they have."""
        links: list[Link] = []
        for target in self.address.targets:
            known = [link for link in self._links if link.target == target]
            if not target.every:
                links += known
                continue
            try:
                wanted = target.replicas(await self._resolve(target.host, target.port))
                self._unresolved.pop(target, None)
            except (OSError, ValueError) as error:
                if target not in self._unresolved:
                    logger.warning("%s cannot be resolved: %s.", target, error)
                self._unresolved[target] = f"{target} cannot be resolved: {error}."
                links += known
                continue
            links += [link for link in known if link.replica in wanted]
            there = [link.replica for link in known]
            new = [self._link(replica, target) for replica in wanted if replica not in there]
            for link in new:
                link.up, link.away = first, f"{link.url} has not answered yet."
            links += new
        before = self._links
        self._set(links)
        if self._links != before:
            self._update()

    # ---- the set --------------------------------------------------------------------------------------------------

    def _link(self, replica: Replica, target: Target) -> Link:
        return Link(replica, target, self.address, self._context, self._lost if self._watch else None)

    def _set(self, links: Sequence[Link]) -> None:
        before, self._links = self._links, tuple(links)
        for link in before:
            if link not in self._links:
                link.retire()
        if self._watch:
            for link in self._links:
                if link.care is None:
                    link.care = asyncio.create_task(self._tend(link))
        self.only = self._links[0] if len(self._links) == 1 else None

    def _update(self) -> None:
        self._changed()
        if self._observer is None or not self._watch:
            return
        for target in self.address.targets:
            links = [link for link in self._links if link.target == target]
            self._observer.replicas(str(target), sum(link.up for link in links), len(links))

    def _begin(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def retire(self) -> None:
        """Take no new call; what is under way is still answered."""
        for task in self._tasks:
            task.cancel()
        for link in self._links:
            link.retire()

    async def close(self) -> None:
        """End the connections; calls under way fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(link.close() for link in self._links))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds * random.uniform(0.8, 1.2))


def instances(config: Any) -> int:
    """How many requests keep all instances of an entry busy."""
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group) or 1

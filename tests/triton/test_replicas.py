"""Several Tritons behind one client, which come and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from adapter.exceptions import ServiceUnavailable
from adapter.triton import replicas
from adapter.triton.address import parse
from adapter.triton.client import TritonClient
from adapter.triton.failures import Restricted
from adapter.triton.replicas import Link, Replicas, resolve_name
from tests.triton.test_client import Triton, counter_of, free_port, transport_of

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")  # all of them are this machine
GONE = "Request for unknown model: 'e' has no available versions"


class Replica(Triton):
    """One of several Tritons: it counts its requests, holds them, or refuses them."""

    def __init__(self, interface: str, host: str = HOSTS[0]) -> None:
        super().__init__(interface)
        self.host = host
        self.requests = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.refusing: tuple[grpc.StatusCode, str] | None = None
        self.ready = True
        self.hangs = False
        self.stream_error = ""

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.hangs:
            await asyncio.sleep(60)
        return pb.ModelReadyResponse(ready=self.ready)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests += 1
        await self.answering.wait()
        if self.refusing is not None:
            await context.abort(*self.refusing)
        return await super().ModelInfer(request, context)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        self.requests += 1
        if self.stream_error:
            yield pb.ModelStreamInferResponse(error_message=self.stream_error)
            return
        async for answer in super().ModelStreamInfer(requests, context):
            yield answer


@contextlib.asynccontextmanager
async def up(replica: Replica, port: int) -> AsyncIterator[None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(replica, server)
    server.add_insecure_port(f"{replica.host}:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def infer(client: TritonClient, limit_s: float = 5) -> None:
    await client.infer(pb.ModelInferRequest(model_name="e"), [], limit_s)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


class Seen:
    """Whoever counts the Tritons."""

    def __init__(self) -> None:
        self.numbers: dict[str, tuple[int, int]] = {}

    def replicas(self, address: str, up: int, known: int) -> None:
        self.numbers[address] = (up, known)


Test = Callable[[TritonClient, list[Replica], list[contextlib.AsyncExitStack]], Awaitable[None]]


def with_two(test: Test, *, ready: bool = True) -> None:
    """Run a test with a client of two Tritons; closing the stack of one ends it."""

    async def main() -> None:
        port = free_port()
        client = TritonClient(",".join(f"{host}:{port}" for host in HOSTS[:2]), observer=Seen())
        interface = transport_of(client).interfaces["e"]
        both = [Replica(interface, host) for host in HOSTS[:2]]
        stacks = [contextlib.AsyncExitStack() for _ in both]
        for replica, stack in zip(both, stacks, strict=True):
            await stack.enter_async_context(up(replica, port))
        if ready:
            assert await client.not_ready() == ""
        try:
            await asyncio.wait_for(test(client, both, stacks), 30)
        finally:
            await client.close()
            for stack in stacks:
                await stack.aclose()

    asyncio.run(main())


def instances_of(client: TritonClient) -> int:
    return client.lanes["e"][0].instances


def test_calls_go_to_the_triton_that_has_the_fewest_under_way() -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        for _ in range(10):
            await infer(client)
        assert [replica.requests for replica in both] == [5, 5]  # in turn
        both[0].answering.clear()
        held = [asyncio.create_task(infer(client)) for _ in range(2)]
        await until(lambda: sum(replica.requests for replica in both) == 12)
        for _ in range(10):
            await infer(client)
        assert [replica.requests for replica in both] == [6, 16]
        both[0].answering.set()
        await asyncio.gather(*held)

    with_two(test)


def test_triton_that_is_lost_fails_what_is_under_way_there_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "adapter.triton.replicas")

    async def test(client: TritonClient, both: list[Replica], stacks: list[contextlib.AsyncExitStack]) -> None:
        port = int(client.url.rpartition(":")[2])
        assert instances_of(client) == 8
        for replica in both:
            replica.answering.clear()
        held = [asyncio.create_task(infer(client)) for _ in range(6)]
        await until(lambda: [replica.requests for replica in both] == [3, 3])
        await stacks[0].aclose()
        await until(lambda: sum(task.done() for task in held) == 3)
        assert {type(task.exception()) for task in held if task.done()} == {ServiceUnavailable}
        both[1].answering.set()
        await asyncio.wait(held)
        assert sum(task.exception() is None for task in held) == 3
        for _ in range(10):
            await infer(client)
        await until(lambda: instances_of(client) == 4)
        assert both[1].requests == 13
        assert await client.not_ready() == ""
        await until(lambda: len(caplog.records) == 1)
        both[0].answering.set()
        async with up(both[0], port):
            await until(lambda: instances_of(client) == 8)
            before = both[0].requests
            for _ in range(10):
                await infer(client)
            assert both[0].requests == before + 5
            told = [(record.levelname, record.getMessage()) for record in caplog.records]
            assert [level for level, _ in told] == ["WARNING", "INFO"]
            assert "127.0.0.1" in told[0][1]
            assert told[1][1] == f"The Triton at 127.0.0.1:{port} is called again."

    with_two(test)


def test_entry_that_is_needed_later_is_asked_for_as_well() -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        looking = asyncio.create_task(client.not_ready())
        await asyncio.sleep(0)
        client.expected["later"] = "another"
        await looking
        assert "later" in await client.not_ready()

    with_two(test)


def test_nobody_who_can_be_called_is_told_at_once() -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: list[contextlib.AsyncExitStack]) -> None:
        for stack in stacks:
            await stack.aclose()
        await asyncio.sleep(0.05)
        with pytest.raises(ServiceUnavailable, match="e cannot be reached now: no Triton serves it") as caught:
            await infer(client)
        assert caught.value.retry_after == 1
        reason = await client.not_ready()
        assert all(host in reason for host in HOSTS[:2])
        assert reason.count("No Triton of") == 1
        assert reason.endswith(".")

    with_two(test)


def test_call_that_could_not_leave_goes_to_another_triton() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(",".join(f"{host}:{port}" for host in HOSTS))
        transport_of(client)
        replica = Replica(client.expected["e"], HOSTS[2])
        async with up(replica, port):  # nobody is at the others, which nobody knows yet
            await asyncio.gather(*(infer(client) for _ in range(20)))
            assert replica.requests == 20
            assert await client.not_ready() == ""
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "refusal",
    [
        (grpc.StatusCode.NOT_FOUND, GONE),
        (grpc.StatusCode.UNAVAILABLE, "Server exiting"),
        (grpc.StatusCode.UNAVAILABLE, "[503 ServiceUnavailable] The process that runs this model keeps dying; the …"),
    ],
)
def test_triton_that_does_not_serve_an_entry_is_left_out_of_it(refusal: tuple[grpc.StatusCode, str]) -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        both[0].refusing, both[0].ready = refusal, False
        for _ in range(20):
            await infer(client)
        assert both[0].requests <= 2
        assert both[1].requests == 20
        assert await client.not_ready() == ""
        both[1].ready = False
        await until_not_ready(client)

    with_two(test)


async def until_not_ready(client: TritonClient, *, ready: bool = False) -> None:
    end = time.monotonic() + 10
    while bool(await client.not_ready()) is ready:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_entry_with_another_interface_is_not_called_there() -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        both[0]._interface = "stale"
        assert await client.not_ready() == ""
        for _ in range(10):
            await infer(client)
        assert [replica.requests for replica in both] == [0, 10]
        both[1]._interface = "stale, too"
        reason = await client.not_ready()
        assert "has another interface (stale) than this service" in reason
        assert reason.count("adapter export") == 1
        with pytest.raises(ServiceUnavailable):
            await infer(client)
        both[0]._interface = client.expected["e"]
        await until_not_ready(client, ready=True)

    with_two(test)


def test_entry_whose_process_died_is_tried_now_and_then_and_no_call_fails_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "_TRIAL_S", 0.2)

    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        both[0].refusing = (grpc.StatusCode.INTERNAL, "Stub process 'e_0' is not healthy.")
        failed = 0
        for _ in range(20):
            try:
                await infer(client)
            except ServiceUnavailable:
                failed += 1
        assert failed == 1  # that one may have been running
        assert both[0].requests == 1
        assert await client.not_ready() == ""
        await asyncio.sleep(0.3)
        for _ in range(20):
            await infer(client)
        assert both[0].requests == 2
        both[0].refusing = None
        await asyncio.sleep(0.5)
        for _ in range(20):
            await infer(client)
        assert both[0].requests >= 10

    with_two(test)


def test_wrong_key_is_told_and_never_sent_again() -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        text = "This protocol is restricted, expecting header 'triton-grpc-protocol-k'"
        for replica in both:
            replica.refusing = (grpc.StatusCode.UNAVAILABLE, text)
        transport = transport_of(client)
        method = transport._routes["run"].method
        for route in transport._routes.values():
            route.lane.instances = 1
        found = await asyncio.gather(
            *(transport.async_run(method, [[1.0]], {}) for _ in range(4)), return_exceptions=True
        )
        assert {type(each) for each in found} == {Restricted}
        assert all("ADAPTER_TRITON_HEADERS" in str(each) for each in found)
        assert sum(replica.requests for replica in both) <= 2  # four calls in two requests

    with_two(test)


def test_stream_moves_until_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: TritonClient, both: list[Replica], stacks: list[contextlib.AsyncExitStack]) -> None:
        transport, method = counter_of(client)
        client.expected["e"] = ""  # another method of the same entry
        both[0].stream_error = GONE
        for _ in range(4):
            assert len([value async for value in transport.async_stream(method, [100], {})]) == 100
        assert both[0].requests <= 1
        assert both[1].requests == 4
        both[0].stream_error = ""
        await until(lambda: instances_of(client) == 8)
        open_streams = [transport.async_stream(method, [100], {}) for _ in range(4)]
        for stream in open_streams:
            assert await anext(stream) == 1
        assert both[1].requests == 6  # two each
        await stacks[0].aclose()
        ended = [await taken(stream) for stream in open_streams]
        assert sorted(ended, key=str) == [99, 99, ServiceUnavailable, ServiceUnavailable]

    with_two(test)


async def taken(stream: AsyncIterator[Any]) -> Any:
    try:
        return len([value async for value in stream])
    except Exception as error:  # noqa: BLE001  # the test tells which
        return type(error)


def test_triton_that_hangs_is_left_out_and_what_it_holds_keeps_no_other_call_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "_PROBE_S", 0.4)
    monkeypatch.setattr(replicas, "_LOOK_S", 0.1)

    async def test(client: TritonClient, both: list[Replica], stacks: Any) -> None:
        transport = transport_of(client)
        method, lane = transport._routes["run"].method, transport._routes["run"].lane
        assert await client.not_ready() == ""
        assert lane.instances == 8
        both[0].answering.clear()
        calls = [asyncio.create_task(transport.async_run(method, [[1.0]], {})) for _ in range(200)]
        await until(lambda: both[0].requests > 0)
        both[0].hangs = True
        await until(lambda: lane.instances != 8)
        held = both[0].requests
        assert lane.instances == 4 + held
        begun = time.monotonic()
        assert await client.not_ready() == ""  # without waiting for it, or whoever asks would not
        assert time.monotonic() - begun < 0.2
        for _ in range(20):
            assert await transport.async_run(method, [[1.0]], {}) == [1.0]
        assert both[0].requests == held
        both[0].hangs = False
        both[0].answering.set()
        await asyncio.gather(*calls)
        await until(lambda: lane.instances == 8)

    with_two(test)


def test_call_that_a_triton_refuses_since_it_ends_goes_to_the_one_that_the_client_has_moved_to() -> None:
    async def main() -> None:
        ports = free_port(), free_port()
        client = TritonClient(f"127.0.0.1:{ports[0]}")
        interface = transport_of(client).interfaces["e"]
        before, after = Replica(interface), Replica(interface)
        before.answering.clear()
        text = "Server is stopping, scheduler for model has stopped accepting new inference requests"
        before.refusing = (grpc.StatusCode.UNAVAILABLE, text)
        async with up(before, ports[0]), up(after, ports[1]):
            held = asyncio.create_task(infer(client))
            await until(lambda: before.requests == 1)
            client.move(f"127.0.0.1:{ports[1]}")
            before.answering.set()
            await held
            assert (before.requests, after.requests) == (1, 1)
            after.refusing = before.refusing  # and no further
            with pytest.raises(ServiceUnavailable, match="Server is stopping"):
                await infer(client)
        await client.close()

    asyncio.run(main())


# ---- names ----------------------------------------------------------------------------------------------------------


class Names:
    """A name server with one name."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self.asked = 0

    async def resolve(self, host: str, port: int) -> Sequence[Any]:
        self.asked += 1
        assert host == "triton"
        if not self.hosts:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in self.hosts]


def test_addresses_of_a_name_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_LOOK_S", 0.05)

    async def main() -> None:
        port, names, seen = free_port(), Names(), Seen()
        address = f"dns:///triton:{port}"
        client = TritonClient(address, resolve=names.resolve, observer=seen)
        transport_of(client)
        made = [Replica(client.expected["e"], host) for host in HOSTS]
        reason = await client.not_ready()
        assert f"{address} cannot be resolved: Name or service not known" in reason
        with pytest.raises(ServiceUnavailable, match="no Triton serves it"):
            await infer(client)
        async with up(made[0], port), up(made[1], port), up(made[2], port):
            names.hosts = HOSTS[:1]
            await until_not_ready(client, ready=True)
            await infer(client)
            names.hosts = HOSTS[:2]
            await until(lambda: seen.numbers.get(address) == (2, 2))
            for _ in range(10):
                await infer(client)
            assert made[1].requests == 5
            made[1].answering.clear()
            held = [asyncio.create_task(infer(client)) for _ in range(2)]
            await until(lambda: made[0].requests + made[1].requests == 13)
            names.hosts = (HOSTS[0], HOSTS[2])  # what is under way with the one that goes is still answered
            await until(
                lambda: seen.numbers.get(address) == (2, 2) and made[2].host in str(client._replicas._links[-1].url)
            )
            before = made[1].requests
            await asyncio.gather(*(infer(client) for _ in range(10)))
            assert made[1].requests == before
            made[1].answering.set()
            await asyncio.gather(*held)
            names.hosts = ()  # a name server that is away changes nothing
            asked = names.asked
            await until(lambda: names.asked > asked + 1)
            assert await client.not_ready() == ""
            await infer(client)
        await client.close()

    asyncio.run(main())


def test_name_is_resolved_by_the_system() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"dns:///localhost:{port}")
        transport_of(client)
        replica = Replica(client.expected["e"])
        async with up(replica, port):  # ::1 may be another address of it, where nobody is
            await until_not_ready(client, ready=True)
            await asyncio.gather(*(infer(client) for _ in range(10)))
            assert replica.requests == 10
        await client.close()

    asyncio.run(main())


# ---- the choice -----------------------------------------------------------------------------------------------------


@given(
    st.integers(2, 5),
    st.lists(st.tuples(st.sampled_from(["call", "end", "down", "up", "out", "in"]), st.integers(0, 4)), max_size=60),
)
@settings(deadline=None, max_examples=50)
def test_choice_is_always_one_that_serves_the_entry_and_has_the_fewest(
    count: int, steps: list[tuple[str, int]]
) -> None:
    async def main() -> None:
        address = parse(",".join(f"h:{n + 1}" for n in range(count)))
        chosen: list[Link] = []
        group = Replicas(address, {}, lambda: None, watch=False, mend="", resolve=resolve_name, observer=None)
        links = group._links
        for step, index in steps:
            link = links[index % count]
            if step == "call":
                serving = [each for each in links if each.up and not each.left_out]
                fewest = min((each.flying["e"] for each in serving), default=0)
                found = group.choose("e", ())
                assert (found is None) is (not serving)
                if found is not None:
                    assert found in serving
                    assert found.flying["e"] == fewest + 1
                    chosen.append(found)
            elif step == "end" and chosen:
                group.done(chosen.pop(), "e")
            elif step in ("down", "up"):
                link.up = step == "up"
            elif step in ("out", "in"):
                link.left_out = {"e": "why"} if step == "out" else {}
        for link in chosen:
            group.done(link, "e")
        assert [link.flying["e"] for link in links] == [0] * count
        await group.close()

    asyncio.run(main())

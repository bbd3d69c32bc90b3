"""A client whose Triton is started, and started again, after it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import adapter
from adapter import payload
from adapter.exceptions import (
    AdapterError,
    ClientGone,
    DeadlineExceeded,
    RemoteException,
    ServiceUnavailable,
    TooManyRequests,
)
from adapter.method import MethodSpec
from adapter.triton.client import TritonClient
from adapter.triton.config import INTERFACE
from adapter.triton.request import SentId, deadline, request_id
from adapter.triton.transport import TritonTransport


class Twice(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method(batchable=True)
    def run(self, x: Any) -> Any:
        return x


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """As much of Triton as the client asks, with one entry of four instances."""

    def __init__(self, interface: str, *, stub_died: bool = False, refusal: str = "") -> None:
        self._interface = interface
        self._refusal = refusal
        self._stub_died = stub_died

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Answer as the worker does: so many values, no further ahead than there is leave for."""
        self.streams: list[dict[str, Any]] = []
        allowed, values = 32, 0
        async for request in requests:
            self.streams.append(
                {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in request.parameters.items()}
            )
            if "leave" in request.parameters:
                allowed = int(self.streams[-1]["leave"].split()[0])
            while values < min(allowed, 100):
                values += 1
                answer = pb.ModelStreamInferResponse()
                answer.infer_response.raw_output_contents.append(payload.encode(values))
                yield answer
            if values == 100:
                answer = pb.ModelStreamInferResponse(error_message=self._refusal)
                answer.infer_response.parameters["triton_final_response"].bool_param = True
                yield answer

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = pb.ModelConfigResponse()
        answer.config.parameters[INTERFACE].string_value = self._interface
        answer.config.instance_group.add(count=4)
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.remaining = context.time_remaining()
        if self._stub_died:
            await context.abort(grpc.StatusCode.INTERNAL, "Stub process 'e_0' is not healthy.")
        if self._refusal:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._refusal)
        return pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=[payload.encode([1.0])])


@contextlib.asynccontextmanager
async def triton(port: int, *args: Any, **options: Any) -> AsyncIterator[Triton]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    made = Triton(*args, **options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(made, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def transport_of(client: TritonClient) -> TritonTransport:
    runner = adapter.Runner(Twice, name="twice")
    return TritonTransport(client, runner.spec, dict.fromkeys(runner.spec.methods, "e"))


def test_triton_that_was_started_again_is_ready_without_a_call() -> None:
    """A load balancer sends no call to a front that is not ready, so a call cannot be what makes it so."""

    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        expected = transport_of(client).interfaces
        async with triton(port, expected["e"], stub_died=True):
            assert await client.not_ready() == ""
            with pytest.raises(ServiceUnavailable):
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            assert "died" in await client.not_ready()  # Triton still says that it is ready
        assert await client.not_ready() != ""
        async with triton(port, expected["e"]):
            assert await client.not_ready() == ""
        await client.close()

    asyncio.run(main())


def test_worker_that_keeps_dying_is_not_ready_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter.triton.replicas._BELIEVED_S", 0.2)

    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        expected = transport_of(client).interfaces
        text = "[503 ServiceUnavailable] The process that runs this model keeps dying; the next one starts in 5 s."
        async with triton(port, expected["e"], refusal=text):
            assert await client.not_ready() == ""
            with pytest.raises(ServiceUnavailable):
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            assert "keeps dying" in await client.not_ready()
            await asyncio.sleep(0.3)
            assert await client.not_ready() == ""  # the next call tells
        await client.close()

    asyncio.run(main())


def test_refused_entry_fails_at_once_and_others_do_not() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        async with triton(port, "x"):
            client.refuse({"e": "It is being started again."})
            with pytest.raises(ServiceUnavailable, match="It is being started again") as caught:
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            assert caught.value.retry_after == 1
            await client.infer(pb.ModelInferRequest(model_name="other"), [], 5)
            client.refuse({})
            await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
        await client.close()

    asyncio.run(main())


def test_errors_of_an_entry_that_is_looked_after_leave_it_ready() -> None:
    """They may come after it was loaded anew, and no other call need follow."""

    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        expected = transport_of(client).interfaces
        client.refuse({})
        async with triton(port, expected["e"], stub_died=True):
            with pytest.raises(ServiceUnavailable):
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            assert await client.not_ready() == ""
        await client.close()

    asyncio.run(main())


def test_client_that_has_moved_calls_the_other_triton() -> None:
    async def main() -> None:
        before, after = free_port(), free_port()
        client = TritonClient(f"127.0.0.1:{before}")
        async with triton(before, "x", stub_died=True), triton(after, "x"):
            with pytest.raises(ServiceUnavailable):
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            client.move(f"127.0.0.1:{after}")
            await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
        await client.close()

    asyncio.run(main())


def test_instances_of_a_triton_that_is_started_later_are_all_kept_busy() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport = transport_of(client)
        assert await client.not_ready() != ""  # nobody is there
        async with triton(port, transport.interfaces["e"]):
            assert await client.not_ready() == ""
            assert [route.lane.instances for route in transport._routes.values()] == [4]
        await client.close()

    asyncio.run(main())


def test_what_is_left_of_the_requests_time_is_the_deadline_of_the_call() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport = transport_of(client)
        async with triton(port, "") as server:
            deadline.set(time.monotonic() + 20)
            method = transport._routes["run"].method
            assert await transport.async_run(method, [[1.0]], {}) == [1.0]
            assert 10 < server.remaining <= 20
        await client.close()

    asyncio.run(main())


class Counter(adapter.Runnable):
    @adapter.Runnable.method
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)


def counter_of(client: TritonClient) -> tuple[TritonTransport, MethodSpec]:
    spec = adapter.Runner(Counter, name="counter").spec
    return TritonTransport(client, spec, {"numbers": "e"}), spec.methods["numbers"]


def test_stream_lets_the_worker_go_on_as_its_values_are_read() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport, method = counter_of(client)
        async with triton(port, "") as server:
            values = transport.async_stream(method, [100], {})
            assert [await anext(values) for _ in range(15)] == list(range(1, 16))
            await asyncio.sleep(0.1)
            assert len(server.streams) == 1
            assert [value async for value in values] == list(range(16, 101))
            told = [s["leave"].split()[0] for s in server.streams[1:]]
            assert told[:5] == ["48", "64", "80", "96", "112"]
            assert len({s["stream"] for s in server.streams}) == 1
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("[429 TooManyRequests] enough", TooManyRequests),
        ("Request for unknown model: 'e' is not found", ServiceUnavailable),
        ("Stub process 'e_0' is not healthy.", ServiceUnavailable),
        ("something else", RemoteException),
    ],
)
def test_error_of_a_stream_is_adapters_own(said: str, error: type[AdapterError]) -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport, method = counter_of(client)
        async with triton(port, "", refusal=said):
            values = transport.async_stream(method, [100], {})
            assert [await anext(values) for _ in range(100)] == list(range(1, 101))
            with pytest.raises(error):
                await anext(values)
        await client.close()

    asyncio.run(main())


def test_stream_ends_when_its_entry_is_refused_its_client_goes_or_its_time_is_over() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport, method = counter_of(client)
        async with triton(port, ""):
            request_id.set(SentId("x"))
            streams = [transport.async_stream(method, [100], {}) for _ in range(2)]
            request_id.set(SentId("x"))
            streams.append(transport.async_stream(method, [100], {}))
            for stream in streams:
                assert await anext(stream) == 1
            client.abandon(request_id.get())
            with pytest.raises(ClientGone):
                await taken(streams[2])
            client.refuse({"e": "The process of e died."})
            for stream in (*streams[:2], transport.async_stream(method, [100], {})):
                with pytest.raises(ServiceUnavailable, match=r"The process of e died\."):
                    await taken(stream)
            client.refuse({})
            deadline.set(time.monotonic() - 1)
            with pytest.raises(DeadlineExceeded):
                await taken(transport.async_stream(method, [100], {}))
            deadline.set(None)
            assert len(await taken(transport.async_stream(method, [100], {}))) == 100
        await client.close()

    asyncio.run(main())


async def taken(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]


def test_error_of_a_call_keeps_nothing_that_was_sent() -> None:
    async def main() -> None:
        port = free_port()
        async with triton(port, "", refusal="[429 TooManyRequests] enough"):
            client = TritonClient(f"127.0.0.1:{port}")
            transport = transport_of(client)
            method = adapter.Runner(Twice, name="twice").spec.methods["run"]

            # not `pytest.raises`, which keeps the error itself
            async def on_the_loop() -> list[weakref.ref[Any]]:
                try:
                    await transport.async_run(method, ([1.0],), {})
                except TooManyRequests as error:
                    return [weakref.ref(error), weakref.ref(error.__context__)]
                return []

            def on_a_thread() -> list[weakref.ref[Any]]:
                try:
                    transport.run(method, ([1.0],), {})
                except TooManyRequests as error:
                    return [weakref.ref(error), weakref.ref(error.__context__)]
                return []

            for errors in (await on_the_loop(), await asyncio.to_thread(on_a_thread)):
                assert len(errors) == 2
                until = time.monotonic() + 5
                while any(error() is not None for error in errors):  # the task that sent it may have it a moment longer
                    assert time.monotonic() < until
                    await asyncio.sleep(0.01)
            await client.close()

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()

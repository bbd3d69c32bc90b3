"""A client whose Triton is started, and started again, after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import adapter
from adapter.exceptions import ServiceUnavailable
from adapter.triton.client import TritonClient, TritonTransport
from adapter.triton.config import INTERFACE


class Twice(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method(batchable=True)
    def run(self, x: Any) -> Any:
        return x


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """As much of Triton as the client asks, with one entry of four instances."""

    def __init__(self, interface: str, *, stub_died: bool = False) -> None:
        self._interface = interface
        self._stub_died = stub_died

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = pb.ModelConfigResponse()
        answer.config.parameters[INTERFACE].string_value = self._interface
        answer.config.instance_group.add(count=4)
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self._stub_died:
            await context.abort(grpc.StatusCode.INTERNAL, "Stub process 'e_0' is not healthy.")
        return pb.ModelInferResponse(model_name=request.model_name)


@contextlib.asynccontextmanager
async def triton(port: int, *args: Any, **options: Any) -> AsyncIterator[None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(*args, **options), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
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
            assert await client.not_ready(expected) == ""
            with pytest.raises(ServiceUnavailable):
                await client.infer(pb.ModelInferRequest(model_name="e"), [], 5)
            assert "died" in await client.not_ready(expected)  # Triton still says that it is ready
        assert await client.not_ready(expected) != ""
        async with triton(port, expected["e"]):
            assert await client.not_ready(expected) == ""
        await client.close()

    asyncio.run(main())


def test_instances_of_a_triton_that_is_started_later_are_all_kept_busy() -> None:
    async def main() -> None:
        port = free_port()
        client = TritonClient(f"127.0.0.1:{port}")
        transport = transport_of(client)
        assert await client.not_ready(transport.interfaces) != ""  # nobody is there
        async with triton(port, transport.interfaces["e"]):
            assert await client.not_ready(transport.interfaces) == ""
            assert [route.lane.instances for route in transport._routes.values()] == [4]
        await client.close()

    asyncio.run(main())

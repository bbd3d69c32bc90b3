"""Calls of runners as gRPC requests to Triton."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from adapter import exceptions, payload
from adapter.exceptions import (
    AdapterError,
    DeadlineExceeded,
    InternalServerError,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
)
from adapter.invocation import join_values
from adapter.method import MethodSpec
from adapter.runner import RunnerSpec, refuse_event_loop
from adapter.tensor import Array, numpy_dtype
from adapter.triton.config import BLOB, INTERFACE, Entry
from adapter.triton.manifest import Manifest

# set by the server for each request: when its time is over (time.monotonic), and the id that logs name it by
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
request_id: ContextVar[str] = ContextVar("request_id", default="")

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else a dead server's back-off is inherited by a new one
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_metadata_size", 64 * 1024),  # the text of an error
    ("grpc.enable_http_proxy", 0),  # http_proxy is not meant for a Triton on this machine or in this cluster
)
_PROBE_S = 2.0
_PIECES_IN_FLIGHT = 4  # of one long call, so that it leaves Triton to others as well
_NOT_HEALTHY = "is not healthy"  # what Triton says of a python stub that died
_OWN_ERROR = re.compile(r"\[(\d{3}) (\w+)\] (.*)", re.DOTALL)


class TritonClient:
    """One connection to Triton, for all runners of a front process; it belongs to the event loop that made it."""

    def __init__(self, url: str) -> None:
        """Connect to `host:port` or `grpc://host:port`."""
        self.url = url
        self.loop = asyncio.get_running_loop()
        self._channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=_CHANNEL_OPTIONS)
        self._dead: dict[str, str] = {}
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(self, request: pb.ModelInferRequest, limit_s: float | None) -> pb.ModelInferResponse:
        """Send one request within `limit_s` and the time that the HTTP request has left; errors become adapter's own.

        ServiceUnavailable where the limit is over first, DeadlineExceeded where the request's time is.
        """
        until = deadline.get()
        left = math.inf if until is None else until - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"No time is left to call {request.model_name}.")
        timeout = left if limit_s is None else min(left, limit_s)
        try:
            response: pb.ModelInferResponse = await self._stub.ModelInfer(
                request, timeout=None if timeout == math.inf else timeout
            )
            self._dead.pop(request.model_name, None)
            return response
        except grpc.aio.AioRpcError as error:
            if _NOT_HEALTHY in (error.details() or ""):
                self._dead[request.model_name] = f"The process of Triton that serves {request.model_name} died."
            if limit_s is not None and limit_s < left and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServiceUnavailable(
                    f"{request.model_name} could not answer within its max_latency_ms of {limit_s * 1000:g}: it is too "
                    "busy, or the limit is too low for one call."
                ) from None
            raise translated(error, request.model_name) from None

    async def not_ready(self, expected: Mapping[str, str]) -> str:
        """Why the entries (name -> interface fingerprint) cannot all be called now; "" when they can."""
        for entry, interface in expected.items():
            if entry in self._dead:  # Triton 2.51 goes on calling it ready
                return self._dead[entry]
            try:
                ready = await self._stub.ModelReady(pb.ModelReadyRequest(name=entry), timeout=_PROBE_S)
                if not ready.ready:
                    return f"The entry {entry} is not ready in the Triton at {self.url}."
                asked = pb.ModelConfigRequest(name=entry)
                reply = await self._stub.ModelConfig(asked, timeout=_PROBE_S)
            except grpc.aio.AioRpcError as error:
                return f"The entry {entry} cannot be asked for at {self.url}: {error.details()}."
            found = reply.config.parameters[INTERFACE].string_value
            if found != interface:
                return (
                    f"The entry {entry} at {self.url} has another interface ({found or 'none'}) than this service "
                    f"({interface}): run `adapter export` again and load it there."
                )
        return ""

    async def close(self) -> None:
        await self._channel.close()


class TritonTransport:
    """Carries the calls of one runner to its entries in Triton."""

    def __init__(self, client: TritonClient, runner: RunnerSpec, entries: Mapping[str, str]) -> None:
        """`entries` names the entry of each method."""
        self._client = client
        self._entries = {
            method: Entry(name, runner.name, tuple(m for m in runner.methods.values() if entries[m.name] == name))
            for method, name in entries.items()
        }

    @property
    def interfaces(self) -> dict[str, str]:
        """The interface fingerprint that this front expects of each entry."""
        return {entry.name: entry.interface for entry in self._entries.values()}

    def run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        refuse_event_loop(method)
        return asyncio.run_coroutine_threadsafe(self._call(method, args, kwargs), self._client.loop).result()

    async def async_run(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = self._call(method, args, kwargs)
        if asyncio.get_running_loop() is self._client.loop:
            return await call
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._client.loop))

    def close(self) -> None:
        """The client closes the connection, which other runners share."""

    async def _call(self, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        entry = self._entries[method.name]
        if entry.typed:
            return await self._call_typed(entry, method, args, kwargs)
        method.check(args, kwargs)
        blob = payload.encode((tuple(args), dict(kwargs)))
        request = _request(entry, method, "")
        shape = [1, len(blob)] if entry.batched else [len(blob)]
        request.inputs.add(name=BLOB, datatype="UINT8", shape=shape)
        request.raw_input_contents.append(blob)
        response = await self._client.infer(request, _limit(method))
        return method.rebuild_result(payload.decode(response.raw_output_contents[0]))

    async def _call_typed(
        self, entry: Entry, method: MethodSpec, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        arrays, extra = method.pack(args, kwargs)
        most = entry.max_batch_size
        if not most or arrays[0].shape[0] <= most:
            return method.unpack_result(await self._infer_typed(entry, method, arrays, extra))
        starts = range(0, arrays[0].shape[0], most)  # Triton never splits a request
        slots = asyncio.Semaphore(_PIECES_IN_FLIGHT)

        async def piece(start: int) -> list[Array]:
            async with slots:
                return await self._infer_typed(entry, method, [a[start : start + most] for a in arrays], extra)

        tasks = [asyncio.ensure_future(piece(start)) for start in starts]
        try:
            pieces = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        return method.unpack_result([join_values(parts, 0) for parts in zip(*pieces, strict=True)])

    async def _infer_typed(self, entry: Entry, method: MethodSpec, arrays: Sequence[Array], extra: str) -> list[Array]:
        request = _request(entry, method, extra)
        for spec, array in zip(method.inputs, arrays, strict=True):
            request.inputs.add(name=spec.name, datatype=spec.triton, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        response = await self._client.infer(request, _limit(method))
        found = dict(zip((o.name for o in response.outputs), range(len(response.outputs)), strict=True))
        return [_array(response, found[spec.name]) for spec in method.outputs]


def _request(entry: Entry, method: MethodSpec, extra: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=entry.name, id=request_id.get())
    if len(entry.methods) > 1:
        request.parameters["method"].string_param = method.name
    if extra:
        request.parameters["arguments"].string_param = extra
    return request


def _limit(method: MethodSpec) -> float | None:
    return method.batching.max_latency_ms / 1000 if method.signature.batchable else None


def _array(response: pb.ModelInferResponse, index: int) -> Array:
    output = response.outputs[index]
    # a copy that may be written: user code changes arrays in place
    memory = bytearray(response.raw_output_contents[index])
    return np.frombuffer(memory, numpy_dtype(output.datatype)).reshape(tuple(output.shape))


def translated(error: grpc.aio.AioRpcError, entry: str) -> AdapterError:
    """The error of a gRPC call as adapter's own: what a Runnable raised, or what Triton says."""
    code, text = error.code(), error.details() or ""
    own = _OWN_ERROR.search(text)
    if own is not None:
        return _raised(int(own[1]), own[2], own[3])
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{entry} did not answer in time.")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgument(f"{entry} cannot take this call: {text}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND) or _NOT_HEALTHY in text:
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


def connect(client: TritonClient, service: str, runners: Sequence[Any], manifest: Manifest) -> dict[str, str]:
    """Send the calls of a service's runners to Triton; the interfaces that its entries must have."""
    expected: dict[str, str] = {}
    for runner in runners:
        transport = TritonTransport(client, runner.spec, manifest.entries(service, runner.name))
        runner.connect(transport)
        expected |= transport.interfaces
    return expected

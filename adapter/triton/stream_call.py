"""A call of a generator method in Triton, as the front that reads its values sees it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2 as pb

from adapter import payload
from adapter.exceptions import AdapterError, DeadlineExceeded, ServiceUnavailable
from adapter.method import MethodSpec
from adapter.triton.config import BLOB, Entry
from adapter.triton.failures import of_stream, translated
from adapter.triton.request import deadline, request_id
from adapter.triton.rpc import RpcError, Stream

T = TypeVar("T")

# how far the worker may be ahead of the reader, which tells it when half of that has been read; it begins with as much
_AHEAD_VALUES, _AHEAD_BYTES = 32, 1 << 20


class StreamCall:
    """One stream: opened by a request with a key, followed by others that let the worker go on."""

    def __init__(self, entry: Entry, method: MethodSpec, blob: bytes) -> None:
        self.entry = entry.name
        self.identity = request_id.get()
        self._method = method
        self._blob = blob
        self._key = secrets.token_hex(16)
        self._name = method.name if len(entry.methods) > 1 else ""
        self._stream: Stream | None = None
        self._failure: AdapterError | None = None
        self._read = self._told = (0, 0)  # values and bytes

    def fail(self, error: AdapterError) -> None:
        """End it with an error."""
        self._failure = error
        if self._stream is not None:
            self._stream.cancel()

    async def values(self, open_stream: Callable[[], Coroutine[Any, Any, Stream]]) -> AsyncGenerator[Any, None]:
        """The values, one by one; each is waited for as long as the request has time. Closing it cancels the call."""
        ended = False
        try:
            self._stream = await _in_time(open_stream(), self.entry)
            self._stream.send([self._opening()])
            while True:
                answer = await _in_time(self._answer(), self.entry)
                if answer.raw_output_contents:
                    blob = answer.raw_output_contents[0]
                    yield self._method.rebuild_result(payload.decode(blob))
                    self._count(len(blob))
                if answer.parameters["triton_final_response"].bool_param:
                    ended = True
                    self._stream.finish()
                    return
        except RpcError as error:
            raise self._failure or translated(error, self.entry) from None
        finally:
            if self._stream is not None and not ended:
                self._stream.cancel()

    async def _answer(self) -> pb.ModelInferResponse:
        assert self._stream is not None
        if self._failure is not None:
            raise self._failure
        message = await self._stream.receive()
        if message is None:
            raise ServiceUnavailable(f"{self.entry} ended in the middle of a stream; try again.")
        found = pb.ModelStreamInferResponse.FromString(message)
        if found.error_message:
            raise of_stream(found.error_message, self.entry)
        return found.infer_response

    def _opening(self) -> bytes:
        request = self._request(self._blob)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        if self._name:
            request.parameters["method"].string_param = self._name
        return bytes(request.SerializeToString())

    def _count(self, size: int) -> None:
        """Let the worker go on as its values are read."""
        values, total = self._read = (self._read[0] + 1, self._read[1] + size)
        if values - self._told[0] < _AHEAD_VALUES // 2 and total - self._told[1] < _AHEAD_BYTES // 2:
            return
        self._told = self._read
        request = self._request(b"")
        request.parameters["leave"].string_param = f"{values + _AHEAD_VALUES} {total + _AHEAD_BYTES}"
        assert self._stream is not None
        self._stream.send([request.SerializeToString()])

    def _request(self, blob: bytes) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name=self.entry, id=self.identity)
        request.inputs.add(name=BLOB, datatype="UINT8", shape=[len(blob)])
        request.raw_input_contents.append(blob)
        request.parameters["stream"].string_param = self._key
        return request


async def _in_time(step: Awaitable[T], entry: str) -> T:
    """Wait until the time of the HTTP request is over; once that has begun to be answered, it has no end."""
    until = deadline.get()
    if until is None:
        return await step
    try:
        return await asyncio.wait_for(step, until - time.monotonic())
    except asyncio.TimeoutError:
        raise DeadlineExceeded(f"{entry} did not answer in time.") from None

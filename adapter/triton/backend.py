"""The model that Triton's python stub loads: it hands batches to a worker process and keeps that process alive.

No user code runs here, and nothing but the standard library is imported, unless the entry is not isolated. A dead stub
is never restarted by Triton 2.51, and one request that it failed pins its model in memory for ever; a dead worker costs
the batch it was running, and is replaced at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.allocator import keep_freed_memory
from adapter.triton import worker_log
from adapter.triton.channel import Channel, Region, aligned, send_leave
from adapter.triton.dlpack import read_dlpack, write_dlpack
from adapter.triton.instance import environment_of
from adapter.triton.spec import EntrySpec
from adapter.triton.streams import Streams
from adapter.triton.stub_memory import StubMemory, shared_file
from adapter.triton.stub_metrics import StubMetrics
from adapter.triton.worker_process import WorkerError, WorkerProcess

if TYPE_CHECKING:
    from adapter.triton.in_stub import InStub

_LONG_S = 0.01
_NO_PARAMETERS = ("", "{}")


class TritonPythonModel:
    """Triton's python backend calls these three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        keep_freed_memory()
        folder = Path(args["model_repository"]).absolute() / args["model_version"]  # the worker changes its folder
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._spec = EntrySpec.read(folder)
        instance = f"{args['model_instance_name']}/{args['model_version']}"
        self._metrics = StubMetrics(pb_utils, self._spec.entry, instance)
        own, alone = environment_of(args, config, self._spec, os.environ), _instances(config) == 1
        self._here: InStub | None = None
        self._streams: Streams | None = None
        try:
            if self._spec.isolated:
                self._memory = StubMemory(shared_file())
                self._worker = WorkerProcess(folder, self._spec, own, self._metrics, self._memory.fd, alone=alone)
                self._worker.start()
                self._streams = Streams(self._worker, self._spec) if self._spec.stream else None
            else:
                from adapter.triton.in_stub import InStub  # with numpy, and all that user code needs

                self._here = InStub(folder, self._spec, own, self._metrics)
                self._here.start()
        except WorkerError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._busy_s = 0.0  # how long the last batch took

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        if self._streams is not None:
            for request in requests:
                sender = _Sender(request.get_response_sender(), self._outputs[0])
                try:
                    self._stream(self._streams, request, sender)
                except Exception:  # noqa: BLE001  # as below
                    sender.error(*self._failed())
            return None  # the answers come when there are some
        # Triton hands requests ahead, and does not take back those that are cancelled; asking takes 50 us for each, so
        # it is done after a batch that took much longer
        gone = [request.is_cancelled() for request in requests] if self._busy_s > _LONG_S else []
        if any(gone):
            awaited = [request for request, left in zip(requests, gone, strict=True) if not left]
            answers = iter(self._run(awaited) if awaited else [])
            return [_error(499, "ClientGone", "Nobody waits for it.") if left else next(answers) for left in gone]
        return self._run(requests)

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        """Have user code answer some requests."""
        begun = time.monotonic()
        try:
            if self._here is not None:
                return [self._handed(reply) for reply in self._here.run([self._read(r) for r in requests])]
            replies, region = self._worker.run(lambda channel: self._write(channel, requests))
            return [self._respond(reply, region) for reply in replies]
        except WorkerError as error:
            return [_error(503, "ServiceUnavailable", str(error)) for _ in requests]
        except Exception:  # noqa: BLE001  # Triton would send its clients the traceback
            failure = self._failed()
            return [_error(*failure) for _ in requests]
        finally:
            self._busy_s = time.monotonic() - begun

    def _failed(self) -> tuple[int, str, str]:
        entry = self._spec.entry
        worker_log.say(entry, "ERROR", f"requests to {entry} failed", exception=traceback.format_exc())
        return 500, "RemoteException", f"The entry {entry} failed on the request; its log says why."

    def finalize(self) -> None:
        (self._here or self._worker).close()
        self._metrics.close()

    def _write(self, channel: Channel, requests: Sequence[Any]) -> None:
        """Send what the tensors of all requests are; those that do not lie in Triton's memory are copied into ours."""
        used, header = 0, []
        for request in requests:
            method, arguments, identity, found = self._read(request)
            tensors = []
            for dtype, shape, address, size in found:
                region, start = 1, self._memory.position(address, size)
                if start is None:
                    region, start = 0, aligned(used)
                    used = start + size
                    channel.out.grow(used)
                    ctypes.memmove(channel.out.address + start, address, size)
                tensors.append([dtype, shape, region, start])
            header.append([method, arguments, identity, tensors])
        channel.send(header, aligned(used))

    def _read(self, request: Any) -> list[Any]:
        """What a request is, and where its tensors lie."""
        parameters = _parameters(request)
        tensors = [read_dlpack(pb_utils.get_input_tensor_by_name(request, n).to_dlpack()) for n in self._inputs]
        return [parameters.get("method", ""), parameters.get("arguments", ""), request.request_id(), tensors]

    def _handed(self, reply: Sequence[Any]) -> Any:
        """A reply of user code that runs here, whose results go to Triton where they are."""
        status, *body = reply
        if status:
            return _error(status, *body)
        tensors = [
            pb_utils.Tensor.from_dlpack(name, write_dlpack(*tensor))
            for name, tensor in zip(self._outputs, body[0], strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _stream(self, streams: Streams, request: Any, sender: _Sender) -> None:
        """Begin a stream, or pass on the leave for more that its reader gives."""
        parameters = _parameters(request)
        names = ("method", "stream", "leave")
        method, key, leave = (str(parameters.get(name, "")) for name in names)
        if leave:
            send_leave(key, leave)
            sender.end()
            return
        capsule = pb_utils.get_input_tensor_by_name(request, self._inputs[0]).to_dlpack()
        _, _, address, size = read_dlpack(capsule)
        blob = ctypes.string_at(address, size) if size else b""
        streams.open(sender, method, request.request_id(), key, blob)

    def _respond(self, reply: list[Any], region: Region) -> Any:
        status, *body = reply
        if status:
            return _error(status, *body)
        tensors = []
        for name, (dtype, shape, size, start) in zip(self._outputs, body[0], strict=True):
            region.reach(start + size)
            capsule = write_dlpack(dtype, shape, region.address + start, region.memory)
            tensors.append(pb_utils.Tensor.from_dlpack(name, capsule))
        return pb_utils.InferenceResponse(output_tensors=tensors)


class _Sender:
    """The answers of one stream."""

    def __init__(self, sender: Any, output: str) -> None:
        self._sender = sender
        self._output = output
        self._cancelled = False

    def value(self, blob: bytearray) -> None:
        buffer = (ctypes.c_char * len(blob)).from_buffer(blob)
        capsule = write_dlpack("UINT8", [len(blob)], ctypes.addressof(buffer), buffer)
        self._sender.send(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(self._output, capsule)]))

    def end(self) -> None:
        self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def error(self, status: int, kind: str, message: str) -> None:
        self._sender.send(_error(status, kind, message), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def cancelled(self) -> bool:
        """Whether the one who asked has gone; true once."""
        if self._cancelled or not self._sender.is_cancelled():
            return False
        self._cancelled = True
        return True


def _parameters(request: Any) -> dict[str, Any]:
    text = request.parameters()
    found: dict[str, Any] = {} if text in _NO_PARAMETERS else json.loads(text)
    return found


def _instances(config: Any) -> int:
    return sum(group["count"] * max(1, len(group["gpus"])) for group in config["instance_group"])


# by name: Triton adds TritonError to pb_utils after it has imported this module
_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 501: "UNSUPPORTED", 503: "UNAVAILABLE"}


def _error(status: int, kind: str, message: str) -> Any:
    """An error response that carries adapter's own status and class for the client to make anew."""
    code = getattr(pb_utils.TritonError, _CODES.get(status, "INTERNAL"))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"[{status} {kind}] {message}", code))

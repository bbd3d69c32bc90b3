"""The model that Triton's python stub loads: it hands batches to a worker process and keeps that process alive.

No user code runs here. A dead stub is never restarted by Triton 2.51, and one request that it failed pins its model in
memory for ever; a dead worker costs the batch it was running, and is replaced at once.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton.channel import Channel, Region, aligned
from adapter.triton.dlpack import read_dlpack, write_dlpack
from adapter.triton.spec import EntrySpec
from adapter.triton.worker_process import WorkerError, WorkerProcess


class TritonPythonModel:
    """Triton's python backend calls these three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._spec = EntrySpec.read(folder)
        gpu = args["model_instance_device_id"] if args["model_instance_kind"] == "GPU" else None
        self._worker = WorkerProcess(folder, self._spec, gpu)
        try:
            self._worker.start()
        except WorkerError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        try:
            replies, region = self._worker.run(lambda channel: self._write(channel, requests))
        except WorkerError as error:
            return [_error(503, "ServiceUnavailable", str(error)) for _ in requests]
        return [self._respond(reply, region) for reply in replies]

    def finalize(self) -> None:
        self._worker.close()

    def _write(self, channel: Channel, requests: Sequence[Any]) -> None:
        """Copy the tensors of all requests into shared memory and send what they are."""
        used, header = 0, []
        for request in requests:
            parameters = json.loads(request.parameters() or "{}")
            tensors = []
            for name in self._inputs:
                capsule = pb_utils.get_input_tensor_by_name(request, name).to_dlpack()
                dtype, shape, address, size = read_dlpack(capsule)
                start = aligned(used)
                used = start + size
                channel.out.grow(used)
                ctypes.memmove(channel.out.address + start, address, size)
                tensors.append([dtype, shape, start])
            method, arguments = parameters.get("method", ""), parameters.get("arguments", "")
            header.append([method, arguments, request.request_id(), tensors])
        channel.send(header, aligned(used))

    def _respond(self, reply: list[Any], region: Region) -> Any:
        status, *body = reply
        if status:
            return _error(status, *body)
        tensors = [
            pb_utils.Tensor.from_dlpack(name, write_dlpack(dtype, shape, region.address + start, region.memory))
            for name, (dtype, shape, start) in zip(self._outputs, body[0], strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


# by name: Triton adds TritonError to pb_utils after it has imported this module
_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 501: "UNSUPPORTED", 503: "UNAVAILABLE"}


def _error(status: int, kind: str, message: str) -> Any:
    """An error response that carries adapter's own status and class for the client to make anew."""
    code = getattr(pb_utils.TritonError, _CODES.get(status, "INTERNAL"))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"[{status} {kind}] {message}", code))

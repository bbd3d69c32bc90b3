"""The model that Triton's python stub loads: it hands batches to a worker process and keeps that process alive.

No user code runs here. A dead stub is never restarted by Triton 2.51, and one request that it failed pins its model in
memory for ever; a dead worker costs the batch it was running, and is replaced at once. Tensors are read and written
through DLPack, by address: numpy is not needed for that, and under NumPy 2 the stub's own conversion in that Triton
gives wrong data.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists in Triton's stub only

from adapter.triton import worker_log
from adapter.triton.channel import Channel, Region, aligned
from adapter.triton.spec import EntrySpec

# sys.path[0] would be the working directory, whose modules are not the entry's
_START = "import sys; sys.path[0] = sys.argv.pop(1); from adapter.triton.worker import main; main(sys.argv[1:])"
_THREAD_VARIABLES = (
    "ADAPTER_NUM_THREAD",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_RS_NUM_CPUS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
# between two starts of a worker that dies before it has answered anything; one that has is replaced at once
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0


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


# ---- the worker process ---------------------------------------------------------------------------------------------


class WorkerError(Exception):
    """The worker could not start, died, or took too long."""


class WorkerProcess:
    """One worker, started again whenever it dies, by a thread that sleeps until then."""

    def __init__(self, folder: Path, spec: EntrySpec, gpu: str | None) -> None:
        self._folder = folder
        self._spec = spec
        self._environment = _environment(spec, gpu)
        self._lock = threading.Lock()  # held while a batch runs, and while the worker is exchanged
        self._up = threading.Event()  # a worker is ready, or starting has failed and `_failure` says why
        self._served = False  # whether this worker has answered a batch
        self._failure: WorkerError | None = None
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)

    def start(self) -> None:
        """Start the first worker; WorkerError with the traceback of user code where it cannot."""
        self._keeper.start()
        self._up.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def run(self, send: Callable[[Channel], None]) -> tuple[list[Any], Region]:
        """Hand one batch to the worker; its replies, one for each request, name tensors in the region beside them.

        The region is written again by the next batch.
        """
        self._up.wait()
        with self._lock:
            channel, process = self._channel, self._process
            if channel is None or process is None:
                raise self._failure or WorkerError("The process that runs this model is starting; try again.")
            try:
                send(channel)
                replies = self._wait(channel, process)
                self._served = True
                return replies, channel.into
            except (EOFError, OSError) as error:
                reason = f"died ({_exit_reason(process)})"
                raise WorkerError(f"The process that ran this request {reason}; a new one is starting.") from error

    def _wait(self, channel: Channel, process: subprocess.Popen[bytes]) -> Any:
        limit = self._spec.call_timeout_s
        # the worker's children may hold its end of the socket open, so its death is watched for itself
        with _pidfd(process.pid) as fd:
            poll = select.poll()
            poll.register(channel.sock, select.POLLIN)
            poll.register(fd, select.POLLIN)
            ready = {which for which, _ in poll.poll(limit * 1000)}
        if channel.sock.fileno() in ready:
            return channel.receive()
        if not ready:
            process.kill()
            process.wait()
            raise WorkerError(f"The call took longer than {limit:g} s and was ended; a new process is starting.")
        raise EOFError

    def _keep(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            self._served = False
            first = self._process is None
            with self._lock:
                try:
                    self._exchange()
                    self._failure = None
                except WorkerError as error:
                    self._channel, self._failure = None, error
                self._up.set()
            if self._failure is not None and first:
                return
            if self._failure is None and self._process is not None:
                with _pidfd(self._process.pid) as fd:
                    select.select([fd], [], [])
                self._up.clear()
                if not self._closed.is_set():
                    reason = _exit_reason(self._process)
                    entry = self._spec.entry
                    worker_log.say(entry, "WARNING", f"the worker of {entry} died ({reason}); starting a new one")
            pause = 0.0 if self._served else min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2 * pause))

    def _exchange(self) -> None:
        """Start a process and wait until its Runnable is made."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, into = Region.create("adapter-requests"), Region.create("adapter-results")
        archive = str(self._folder / "runtime.zip")
        ends = [str(fd) for fd in (theirs.fileno(), out.fd, into.fd)]
        channel = Channel(ours, out, into)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [_python(), "-c", _START, archive, str(self._folder), *ends, str(os.getpid())],
                    env=self._environment,
                    pass_fds=(theirs.fileno(), out.fd, into.fd),
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                channel.close()
                raise WorkerError(f"The Python {_python()!r} for user code cannot be started: {error}") from error
        try:
            hello = channel.receive()
        except (EOFError, OSError) as error:
            channel.close()
            reason = _exit_reason(self._process)
            raise WorkerError(f"The process for {self._spec.entry} died while it started ({reason}).") from error
        if "error" in hello:
            channel.close()
            self._process.wait()
            raise WorkerError(hello["error"])
        self._channel = channel

    def close(self) -> None:
        """End the worker; it ends by itself when its socket closes, and is killed where it does not."""
        self._closed.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _pidfd(pid: int) -> Any:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _exit_reason(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "its socket closed"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _python() -> str:
    """The interpreter for user code: the one that started the engine, else the one of this stub."""
    named = os.environ.get("ADAPTER_WORKER_PYTHON")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return named or shutil.which(version) or shutil.which("python3") or sys.executable or "python3"


def _environment(spec: EntrySpec, gpu: str | None) -> dict[str, str]:
    environment = dict(os.environ, PYTHONUNBUFFERED="1", CUDA_VISIBLE_DEVICES="-1" if gpu is None else gpu)
    if spec.threads is not None:
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
    return environment


# ---- DLPack ---------------------------------------------------------------------------------------------------------
# https://dmlc.github.io/dlpack/latest/c_api.html


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_CAPSULE_NAME = b"dltensor"
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)

_TYPE_OF = {
    "BOOL": (6, 8),
    "INT8": (0, 8),
    "INT16": (0, 16),
    "INT32": (0, 32),
    "INT64": (0, 64),
    "UINT8": (1, 8),
    "UINT16": (1, 16),
    "UINT32": (1, 32),
    "UINT64": (1, 64),
    "FP16": (2, 16),
    "FP32": (2, 32),
    "FP64": (2, 64),
}
_NAME_OF = {kind: name for name, kind in _TYPE_OF.items()}
_alive: dict[int, tuple[Any, ...]] = {}


def _forget(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_forget)


def read_dlpack(capsule: Any) -> tuple[str, list[int], int, int]:
    """Triton's data type, the shape, the address and the bytes of a contiguous tensor in a capsule that stays whole."""
    managed = ctypes.cast(_pointer_of(capsule, _CAPSULE_NAME), ctypes.POINTER(_ManagedTensor)).contents
    tensor = managed.tensor
    shape = [tensor.shape[i] for i in range(tensor.ndim)]
    count = 1
    for length in shape:
        count *= length
    address = (tensor.data or 0) + tensor.byte_offset
    return _NAME_OF[tensor.dtype.code, tensor.dtype.bits], shape, address, count * tensor.dtype.bits // 8


def write_dlpack(dtype: str, shape: Sequence[int], address: int, owner: Any) -> Any:
    """A capsule for a tensor at an address; `owner` is kept until Triton has let go of it."""
    managed = _ManagedTensor()
    extents = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    managed.tensor.data = address
    managed.tensor.device = _Device(1, 0)  # the CPU
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _DataType(*_TYPE_OF[dtype], 1)
    managed.tensor.shape = ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _release
    where = ctypes.addressof(managed)
    _alive[where] = (managed, extents, owner)
    # no destructor of the capsule's own: Triton's stub calls the deleter, and Python code must not run under both
    return _new_capsule(where, _CAPSULE_NAME, None)

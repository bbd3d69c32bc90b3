"""The process that holds user code: it makes the Runnable, and answers the batches that the stub hands over.

`worker_process.py` starts it with a fresh interpreter and starts it again when it dies, so that nothing a user's code
does can harm Triton's own processes. It ends with its stub. For an entry that is not isolated, `in_stub.py` does the
same with what is here in the stub.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import functools
import json
import logging
import math
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from adapter import models, payload, warmup, worker_metrics
from adapter.allocator import keep_freed_memory
from adapter.exceptions import AdapterError, InvalidArgument, NotFound, RemoteException, message_of, told
from adapter.invocation import END, Invoker, Outcome, end, error_of
from adapter.ledger import Ledger
from adapter.method import Call, MethodSpec, method_named, methods_of
from adapter.model import BatchingConfig, Model, ModelInfo
from adapter.runnable import Runnable
from adapter.tag import LATEST, Tag
from adapter.tensor import Array, numpy_dtype, triton_dtype
from adapter.triton import worker_log
from adapter.triton.channel import Channel, Frames, Region, aligned
from adapter.triton.spec import EntrySpec
from adapter.triton.stream_worker import StreamWorker

logger = logging.getLogger("adapter.runner")

_PR_SET_PDEATHSIG = 1
_LONGEST_TRACE = 32_000
_WORTH_A_VIEW = 1 << 14  # bytes; fewer are copied in less time than it takes to look at them as such
_HINT = (
    "A file travels with a Runnable when an init parameter names it: "
    'adapter.Runner(…, runnable_init_params={"labels": "./labels.txt"}).'
)


class EntryModels:
    """The saved models that travel inside an entry: the source of `adapter.models.get` in a worker."""

    def __init__(self, found: Mapping[Tag, Model]) -> None:
        self._found = dict(found)

    def get(self, tag: Tag) -> Model:
        named = [m for t, m in self._found.items() if t.name == tag.name]
        if tag.version in (None, LATEST) and len(named) == 1:
            return named[0]
        matching = [m for m in named if tag.version and m.info.version.startswith(tag.version)]
        if len(matching) == 1:
            return matching[0]
        raise NotFound(
            f"The model {tag} is not part of this entry; name it in `adapter.Runner(…, models=[…])` and export again."
        )

    def list(self, name: str | None = None) -> list[Model]:
        return [m for t, m in self._found.items() if name in (None, t.name)]


def load(folder: Path, spec: EntrySpec) -> tuple[Runnable, dict[str, MethodSpec]]:
    """Make the Runnable of an entry from the files in its version folder."""
    found = {
        info.tag: Model(info, folder / place)
        for place, info in ((m["folder"], ModelInfo.from_dict(m["info"])) for m in spec.models)
    }
    models.use_source(EntryModels(found))
    if spec.pickle is None:
        (model,) = found.values()
        if spec.options:
            model = model.with_options(**spec.options)
        cls, parameters = model.to_runnable(), {}
    else:
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        if spec.python != running:
            raise AdapterError(
                f"This Runnable was exported by Python {spec.python} and cannot be read by Python {running}: export it "
                f"with Python {running}, or give this Triton a Python {spec.python}."
            )
        sys.path.append(str(folder / "code"))
        files = folder / "files"
        os.chdir(files if files.is_dir() else folder)  # here as anywhere else: what does not travel is not found
        with (folder / spec.pickle).open("rb") as file, entry_paths(folder):
            cls, parameters = pickle.load(file)
    records = {m["name"]: m for m in spec.methods}
    limits = {n: BatchingConfig(m["max_batch_size"], m["max_latency_ms"]) for n, m in records.items()}
    methods = {
        # settings of a deployment can say that a batchable method is not batched
        name: replace(method, signature=replace(method.signature, batchable=records[name]["batchable"]))
        for name, method in methods_of(cls, lambda n: limits.get(n, BatchingConfig())).items()
        if name in records
    }
    return cls(**parameters), methods


_entry: Path | None = None


@contextlib.contextmanager
def entry_paths(folder: Path) -> Any:
    """Let `path_in_entry` resolve while a Runnable is read from its pickle."""
    global _entry
    _entry = folder
    try:
        yield
    finally:
        _entry = None


def path_in_entry(relative: str, kind: str) -> Any:
    """An absolute path among the init parameters, as it is where the entry lies now."""
    if _entry is None:
        raise AdapterError(f"The path {relative!r} belongs to an entry of a model repository, and is read only there.")
    path = _entry / relative
    return path if kind == "Path" else str(path)


def model_in_entry(name: str, version: str) -> Model:
    """A saved model that a Runnable names, as it lies in the entry."""
    return models.get(Tag(name, version))


class _Slot:
    """One call among those of a batch, from its bytes to its answer."""

    __slots__ = ("call", "identity", "method", "outcome")

    def __init__(self, method: str, identity: str, call: Call | None, error: BaseException | None = None) -> None:
        """`identity` is that of the HTTP request, for the log."""
        self.method = method
        self.identity = identity
        self.call = call
        self.outcome = Outcome(error=error)


class Answering(abc.ABC):
    """Answers batches: each call of one is decoded, run together with the others, and encoded.

    A subclass says in `_array` how an argument is read, as an array that is user code's own.
    """

    def __init__(self, runnable: Runnable, methods: Mapping[str, MethodSpec], spec: EntrySpec) -> None:
        self._methods = methods
        self._spec = spec
        self._invoker = Invoker(runnable, retry_failed_batch=spec.retry_failed_batch)

    def warm_up(self, folder: Path) -> None:
        """Make the calls that the entry has for that; StateException where one fails."""
        for name, file in self._spec.warmup.items():
            warmup.run(self._invoker, self._methods[name], (folder / file).read_bytes())

    def answer(self, requests: Sequence[Any]) -> list[list[Any] | AdapterError]:
        """The output arrays of each request (for an entry that is not typed, a blob in parts), or its error."""
        read = [self._read(*request) for request in requests]
        slots = [slot for _, found in read for slot in found]
        ready = [slot for slot in slots if slot.call is not None]
        worker_log.running.request_id = ready[0].identity if len(ready) == 1 else ""
        for slot, outcome in zip(ready, self._invoker.run([s.call for s in ready if s.call]), strict=True):
            slot.outcome = outcome
        worker_log.running.request_id = ""
        replies: list[list[Any] | AdapterError] = []
        for bundled, found in read:
            answers = [self._encode(slot) for slot in found]
            replies.append([payload.bundle([_noted(a) for a in answers])] if bundled else answers[0])
        return replies

    def _read(self, method: str, extra: str, identity: str, tensors: Sequence[Any]) -> tuple[bool, list[_Slot]]:
        """The calls of a request, and whether they came as a bundle."""
        if self._spec.typed:
            return False, [self._slot(method, identity, lambda m: self._typed_call(m, extra, tensors))]
        try:
            blob = self._blob(tensors)
            bundled = payload.is_bundle(blob)
            blobs: Sequence[tuple[str, payload.Buffer]] = payload.unbundle(blob) if bundled else [(identity, blob)]
        except AdapterError as error:
            return False, [_Slot(method, identity, None, error)]
        return bundled, [self._slot(method, note, functools.partial(MethodSpec.decode, blob=b)) for note, b in blobs]

    def _slot(self, name: str, identity: str, decode: Callable[[MethodSpec], Call]) -> _Slot:
        try:
            return _Slot(name, identity, decode(method_named(self._methods, name)))
        except BaseException as error:  # noqa: BLE001  # what came may be anything; it hurts its own call only
            return _Slot(name, identity, None, error)

    def _typed_call(self, method: MethodSpec, extra: str, tensors: Sequence[Any]) -> Call:
        return method.unpack([self._array(*tensor) for tensor in tensors], extra)

    @abc.abstractmethod
    def _array(self, dtype: str, shape: Sequence[int], *place: int) -> Array:
        """Copy a tensor out of the place where it came."""

    def _blob(self, tensors: Sequence[Any]) -> memoryview:
        ((_, shape, _, _),) = tensors
        if self._spec.batched and shape[0] != 1:
            raise InvalidArgument(
                f"A request to this entry carries one blob, of shape [1, bytes]; its shape is {shape}."
            )
        return self._array(*tensors[0]).reshape(-1).data

    def _encode(self, slot: _Slot) -> list[Any] | AdapterError:
        outcome = slot.outcome
        if outcome.error is not None:
            return _reported(outcome.error, slot.method or self._spec.entry, slot.identity)
        assert slot.call is not None
        method = slot.call.method
        try:
            return method.pack_result(outcome.value) if self._spec.typed else method.encode_result(outcome.value)
        except BaseException as failed:  # noqa: BLE001  # what the method returned may raise anything when it is read
            return _reported(failed, slot.method or self._spec.entry, slot.identity)


class Worker(Answering):
    """Answers the batches of a channel, until that closes."""

    def __init__(
        self,
        runnable: Runnable,
        methods: Mapping[str, MethodSpec],
        spec: EntrySpec,
        channel: Channel,
        regions: Sequence[Region],
    ) -> None:
        """Arguments lie in `regions`, results are written into that of `channel`."""
        super().__init__(runnable, methods, spec)
        self._channel = channel
        self._regions = regions
        self.busy = self.ending = False

    def serve(self) -> None:
        with contextlib.suppress(EOFError, ConnectionError):  # the stub is gone
            while not self.ending:
                requests = self._channel.receive()
                self.busy = True
                self._send(self.answer(requests))
                self.busy = False

    def _array(self, dtype: str, shape: Sequence[int], *place: int) -> Array:
        region, start = place
        found, kind = self._regions[region], numpy_dtype(dtype)
        found.reach(start + math.prod(shape) * kind.itemsize)
        # a copy: the region is written again while user code may still hold its argument
        array: Array = np.ndarray(shape, kind, found.memory, start).copy()
        return array

    def _send(self, replies: Sequence[list[Any] | AdapterError]) -> None:
        used, header = 0, []
        for reply in replies:
            if isinstance(reply, AdapterError):
                header.append(list(told(reply)))
                continue
            start = aligned(used)
            if self._spec.typed:
                tensors = []
                for array in reply:
                    start = aligned(used)
                    used = self._write(start, [_bytes_of(array)])
                    tensors.append([triton_dtype(array.dtype), array.shape, used - start, start])
            else:
                used = self._write(start, reply)
                length = used - start
                tensors = [["UINT8", [1, length] if self._spec.batched else [length], length, start]]
            header.append([0, tensors])
        self._channel.send(header, aligned(used))

    def _write(self, start: int, buffers: Sequence[Any]) -> int:
        end = start + sum(len(b) for b in buffers)
        self._channel.out.grow(end)
        memory = self._channel.out.memory
        for buffer in buffers:
            memory[start : start + len(buffer)] = buffer
            start += len(buffer)
        return end


def main(arguments: Sequence[str]) -> None:
    """Serve one entry: arguments are its version folder, and what `worker_process.py` shares with this process."""
    folder, numbers = Path(arguments[0]), map(int, arguments[1:])
    sock_fd, in_fd, out_fd, parent, ledger_fd, wake_fd, memory_fd = numbers
    # for a stub that is killed while user code holds the GIL; the watching thread does the rest
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # what user code starts ends with this process
    if os.getppid() != parent:
        os._exit(0)
    keep_freed_memory()
    sock = socket.socket(fileno=sock_fd)
    channel = Channel(sock, out=Region(out_fd), into=Region(in_fd, read=True))
    regions = [channel.into, *(Region(fd, read=True) for fd in [memory_fd] if fd >= 0)]
    threading.Thread(target=_end_with, args=(sock,), name="end-with-stub", daemon=True).start()
    try:
        spec = EntrySpec.read(folder)
        worker_log.set_up(spec.entry)
        worker_metrics.use(Ledger(ledger_fd, functools.partial(os.eventfd_write, wake_fd, 1)))
        runnable, methods = load(folder, spec)
        if spec.stream:
            worker: Worker | StreamWorker = StreamWorker(runnable, methods, spec, Frames(sock), _reported)
        else:
            worker = Worker(runnable, methods, spec, channel, regions)
        if hasattr(runnable, END):
            _end_in_order(worker, runnable)
        worker.warm_up(folder)
    except BaseException as error:  # noqa: BLE001  # the edge to user code
        channel.send({"error": why(error, folder)})
        return
    channel.send({"ready": True})
    worker.serve()
    end(runnable)


def why(error: BaseException, folder: Path) -> str:
    """Why the entry in a folder cannot be loaded, for whoever loads it."""
    text = message_of(error) if isinstance(error, AdapterError) else _trace(error)
    if isinstance(error, FileNotFoundError):
        missing = Path(str(error.filename))
        if not missing.is_absolute() or missing.is_relative_to(folder):
            text += f"\n{_HINT}"
    return text


def _end_in_order(worker: Worker | StreamWorker, runnable: Runnable) -> None:
    """Let SIGTERM run the shutdown hooks of a class-based service, after the batch that is being answered."""

    def ended(number: int, frame: FrameType | None) -> None:
        if isinstance(worker, Worker):
            worker.ending = True
            if worker.busy:
                return
            end(runnable)
        else:  # its event loop runs in this thread
            hooks = threading.Thread(target=end, args=(runnable,))
            hooks.start()
            hooks.join()
        os._exit(0)

    signal.signal(signal.SIGTERM, ended)


def _reported(error: BaseException, name: str, identity: str) -> AdapterError:
    """What the caller of `name` is told of an error; the log says all of one that is not adapter's own."""
    seen = error_of(Outcome(error=error))
    assert seen is not None
    if seen is not error or (isinstance(error, RemoteException) and error.__cause__ is not None):
        known = {"request_id": identity, "exception": _trace(error)}
        logger.error("request %s to %s failed", identity or "-", name, extra=known)
    return seen


def _bytes_of(array: Array) -> payload.Buffer:
    if array.nbytes < _WORTH_A_VIEW:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _noted(answer: list[Any] | AdapterError) -> tuple[str, payload.Buffer]:
    """The answer to one call of a bundle: a blob, or an error noted as such."""
    if isinstance(answer, AdapterError):
        return "error", json.dumps(told(answer)).encode()
    return "", b"".join(answer)


def _trace(error: BaseException) -> str:
    """The traceback of user code: the frames of adapter around it say nothing of the cause."""
    whole = traceback.TracebackException.from_exception(error)
    archive = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    own = [frame for frame in whole.stack if not frame.filename.startswith(archive)]
    if own:
        whole.stack = traceback.StackSummary.from_list(own)
    text = "".join(whole.format()).rstrip().encode("utf-8", "replace").decode().replace("\0", "")
    if len(text) > _LONGEST_TRACE:  # an exception may hold any data
        text = f"{text[: _LONGEST_TRACE // 2]}\n…\n{text[-_LONGEST_TRACE // 2 :]}"
    return text


def _end_with(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)  # only POLLHUP and POLLERR: the stub is gone
    poll.poll()
    os._exit(0)

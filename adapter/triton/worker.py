"""The process that holds user code: it makes the Runnable, and answers the batches that the stub hands over.

`worker_process.py` starts it with a fresh interpreter and starts it again when it dies, so that nothing a user's code
does can harm Triton's own processes. It ends with its stub.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapter import models, payload
from adapter.exceptions import AdapterError, InvalidArgument, NotFound, RemoteException, message_of, sentence, status_of
from adapter.invocation import Invoker, Outcome, error_of
from adapter.method import Call, MethodSpec, methods_of
from adapter.model import BatchingConfig, Model, ModelInfo
from adapter.runnable import Runnable
from adapter.tag import LATEST, Tag
from adapter.tensor import numpy_dtype, triton_dtype
from adapter.triton import worker_log
from adapter.triton.channel import Channel, Region, aligned
from adapter.triton.spec import EntrySpec

logger = logging.getLogger("adapter.runner")

_PR_SET_PDEATHSIG = 1
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


@dataclass
class _Slot:
    """One call among those of a batch, from its bytes to its answer."""

    method: str
    identity: str  # of the HTTP request, for the log
    call: Call | None = None
    outcome: Outcome = field(default_factory=Outcome)


class Worker:
    """Answers batches: each call of one is decoded, run together with the others, and encoded."""

    def __init__(
        self, runnable: Runnable, methods: Mapping[str, MethodSpec], spec: EntrySpec, channel: Channel
    ) -> None:
        self._methods = methods
        self._spec = spec
        self._channel = channel
        self._invoker = Invoker(runnable, retry_failed_batch=spec.retry_failed_batch)

    def serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                requests = self._channel.receive()
                replies = self.answer(requests)
                self._send(replies)

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
            decode = functools.partial(self._typed_call, extra=extra, tensors=tensors)
            return False, [self._slot(method, identity, decode)]
        try:
            blob = self._blob(tensors)
            bundled = payload.is_bundle(blob)
            blobs: Sequence[tuple[str, payload.Buffer]] = payload.unbundle(blob) if bundled else [(identity, blob)]
        except AdapterError as error:
            return False, [_Slot(method, identity, outcome=Outcome(error=error))]
        return bundled, [self._slot(method, note, functools.partial(_blob_call, blob=b)) for note, b in blobs]

    def _slot(self, name: str, identity: str, decode: Callable[[MethodSpec], Call]) -> _Slot:
        slot = _Slot(name, identity)
        try:
            method = self._methods.get(name) if name else next(iter(self._methods.values()))
            if method is None:
                raise NotFound(f"This entry has no method {name!r}; it has {', '.join(self._methods)}.")
            slot.call = decode(method)
        except Exception as error:  # noqa: BLE001  # what came may be anything; it hurts its own call only
            slot.outcome = Outcome(error=error)
        return slot

    def _typed_call(self, method: MethodSpec, extra: str, tensors: Sequence[Any]) -> Call:
        memory = self._channel.into.memory
        arrays = []
        for dtype, shape, start in tensors:
            count = int(np.prod(shape))
            # a copy: the region is written again while user code may still hold its argument
            arrays.append(np.frombuffer(memory, numpy_dtype(dtype), count, start).reshape(shape).copy())
        return method.unpack(arrays, extra)

    def _blob(self, tensors: Sequence[Any]) -> bytearray:
        ((_, shape, start),) = tensors
        if self._spec.batched and shape[0] != 1:
            raise InvalidArgument(
                f"A request to this entry carries one blob, of shape [1, bytes]; its shape is {shape}."
            )
        with memoryview(self._channel.into.memory) as view:
            return bytearray(view[start : start + int(np.prod(shape))])

    def _encode(self, slot: _Slot) -> list[Any] | AdapterError:
        outcome = slot.outcome
        error = error_of(outcome)
        if error is None and slot.call is not None:
            method = slot.call.method
            try:
                return method.pack_result(outcome.value) if self._spec.typed else method.encode_result(outcome.value)
            except AdapterError as refused:
                error = refused
            except Exception as failed:  # noqa: BLE001  # what the method returned may raise anything when it is read
                error = RemoteException(sentence(failed))
        assert error is not None
        if outcome.error is not None and not isinstance(outcome.error, AdapterError):
            name = slot.method or self._spec.entry
            known = {"request_id": slot.identity, "exception": _trace(outcome.error)}
            logger.error("request %s to %s failed", slot.identity or "-", name, extra=known)
        return error

    def _send(self, replies: Sequence[list[Any] | AdapterError]) -> None:
        used, header = 0, []
        for reply in replies:
            if isinstance(reply, AdapterError):
                header.append(list(_record(reply)))
                continue
            start = aligned(used)
            if self._spec.typed:
                tensors = []
                for array in reply:
                    start = aligned(used)
                    used = self._write(start, [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data])
                    tensors.append([triton_dtype(array.dtype), list(array.shape), start])
            else:
                used = self._write(start, reply)
                length = used - start
                tensors = [["UINT8", [1, length] if self._spec.batched else [length], start]]
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
    """Serve one entry: arguments are its version folder and the file descriptors of socket, input and output region."""
    folder, sock_fd, in_fd, out_fd, parent = Path(arguments[0]), *(int(a) for a in arguments[1:5])
    # for a stub that is killed while user code holds the GIL; the watching thread does the rest
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    sock = socket.socket(fileno=sock_fd)
    channel = Channel(sock, out=Region(out_fd), into=Region(in_fd))
    threading.Thread(target=_end_with, args=(sock,), name="end-with-stub", daemon=True).start()
    try:
        spec = EntrySpec.read(folder)
        worker_log.set_up(spec.entry)
        runnable, methods = load(folder, spec)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the edge to user code
        text = str(error) if isinstance(error, AdapterError) else _trace(error)
        if isinstance(error, FileNotFoundError):
            missing = Path(str(error.filename))
            if not missing.is_absolute() or missing.is_relative_to(folder):
                text += f"\n{_HINT}"
        channel.send({"error": text})
        return
    channel.send({"ready": True})
    Worker(runnable, methods, spec, channel).serve()


def _blob_call(method: MethodSpec, blob: payload.Buffer) -> Call:
    args, kwargs = payload.decode(blob)
    method.check(args, kwargs)
    return method.rebuild(args, kwargs)


def _record(error: AdapterError) -> tuple[int, str, str]:
    """What travels of an error."""
    return status_of(error), type(error).__name__, message_of(error)


def _noted(answer: list[Any] | AdapterError) -> tuple[str, payload.Buffer]:
    """The answer to one call of a bundle: a blob, or an error noted as such."""
    if isinstance(answer, AdapterError):
        return "error", json.dumps(_record(answer)).encode()
    return "", b"".join(answer)


def _trace(error: BaseException) -> str:
    """The traceback of user code: the frames of adapter around it say nothing of the cause."""
    whole = traceback.TracebackException.from_exception(error)
    archive = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    own = [frame for frame in whole.stack if not frame.filename.startswith(archive)]
    if own:
        whole.stack = traceback.StackSummary.from_list(own)
    return "".join(whole.format()).rstrip()


def _end_with(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)  # only POLLHUP and POLLERR: the stub is gone
    poll.poll()
    os._exit(0)

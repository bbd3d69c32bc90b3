"""User code in Triton's stub itself, for an entry that is not isolated: nothing lies between it and Triton.

What `worker.py` does in a process of its own is done here with no process to wake and no memory to share. A crash is
the stub's own, and `adapter serve` has Triton load the entry anew then; a call that hangs is ended by nobody.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapter import worker_metrics
from adapter.exceptions import AdapterError, told
from adapter.invocation import end
from adapter.ledger import Ledger
from adapter.runnable import Runnable
from adapter.tensor import Array, numpy_dtype, triton_dtype
from adapter.triton import worker_log
from adapter.triton.spec import EntrySpec
from adapter.triton.stub_metrics import StubMetrics
from adapter.triton.worker import Answering, load, why
from adapter.triton.worker_process import END_S, WorkerError, end_with_server


class InStub:
    """The Runnable of an entry, in this process."""

    def __init__(self, folder: Path, spec: EntrySpec, environment: Mapping[str, str], metrics: StubMetrics) -> None:
        """`environment` is what that of the instance has of its own, its GPU among it."""
        self._folder = folder
        self._spec = spec
        self._environment = environment
        self._metrics = metrics
        self._runnable: Runnable | None = None
        self._answering: Answering | None = None

    def start(self) -> None:
        """Make the Runnable and warm it up; WorkerError with the traceback of user code where that fails."""
        end_with_server()
        # before the libraries that read it are imported
        os.environ.update({**self._environment, "ADAPTER_IN_STUB": "1"})
        _own_modules_only(self._folder)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # Triton's output is a pipe
                stream.reconfigure(line_buffering=True)
        worker_log.set_up(self._spec.entry)
        memory, wake = self._metrics.begin()
        worker_metrics.use(Ledger(memory, functools.partial(os.eventfd_write, wake, 1)))
        try:
            self._runnable, methods = load(self._folder, self._spec)
            self._answering = _Answering(self._runnable, methods, self._spec)
            self._answering.warm_up(self._folder)
        except BaseException as error:  # noqa: BLE001  # the edge to user code
            raise WorkerError(why(error, self._folder)) from None

    def run(self, requests: Sequence[Any]) -> list[Sequence[Any]]:
        """Answer a batch: each request is its method, what it carries beside its tensors, its id, and these.

        A tensor that comes is what `read_dlpack` tells of it, one that goes what `write_dlpack` needs. A reply is 0 and
        its tensors, or an error as `told` tells it.
        """
        assert self._answering is not None  # it was started
        answers = self._answering.answer(requests)
        return [told(a) if isinstance(a, AdapterError) else (0, self._tensors(a)) for a in answers]

    def _tensors(self, answer: Sequence[Any]) -> list[tuple[Any, ...]]:
        """A result where it lies already; nothing of it is copied but the parts of a blob."""
        if self._spec.typed:
            arrays = [np.ascontiguousarray(array) for array in answer]
            return [(triton_dtype(array.dtype) or "", array.shape, _address(array), array) for array in arrays]
        blob = np.frombuffer(b"".join(answer), np.uint8)
        return [("UINT8", (1, blob.size) if self._spec.batched else (blob.size,), _address(blob), blob)]

    def close(self) -> None:
        """Run the shutdown hooks of a class-based service; the process ends soon after, whatever still runs in it."""
        last = threading.Timer(END_S, os._exit, (0,))
        last.daemon = True
        last.start()
        if self._runnable is not None:
            end(self._runnable)


class _Answering(Answering):
    def _array(self, dtype: str, shape: Sequence[int], *place: int) -> Array:
        address, size = place
        array: Array = np.empty(shape, numpy_dtype(dtype))
        ctypes.memmove(_address(array), address, size)  # Triton takes its memory back when the request is answered
        return array


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _own_modules_only(folder: Path) -> None:
    """Let user code import what it would in a worker: no files of the entry, whose model.py may have a namesake."""
    # "" is the working directory, which `load` changes
    sys.path[:] = [place for place in sys.path if place and Path(place).absolute() not in (folder, folder.parent)]
    if getattr(sys.modules.get("model"), "__file__", None) == str(folder / "model.py"):  # a version that is being tried
        del sys.modules["model"]

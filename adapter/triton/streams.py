"""The streams of one instance, between Triton and the worker that steps them: what the stub does for them."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import threading
import time
import traceback
from typing import Any, Protocol

from adapter.triton import worker_log
from adapter.triton.channel import Frames
from adapter.triton.spec import EntrySpec
from adapter.triton.worker_process import WorkerError, WorkerProcess

_SWEEP_S = 0.2  # between two looks at who has gone
_SWEEP_SHARE = 10  # a look takes at most this part of the time: each stream costs 50 us


class Sender(Protocol):
    """The way of one stream's answers to Triton."""

    def value(self, blob: bytearray) -> None: ...

    def end(self) -> None: ...

    def error(self, status: int, kind: str, message: str) -> None: ...

    def cancelled(self) -> bool:
        """Whether the one who asked has gone."""


class Streams:
    """Opens streams at the worker that is there, and hands on what comes of them."""

    def __init__(self, worker: WorkerProcess, spec: EntrySpec) -> None:
        """A worker that is not heard of for the limit on a call, while it has streams, is hung, and is ended."""
        self._worker = worker
        self._entry = spec.entry
        self._limit_s = spec.call_timeout_s
        self._link: _Link | None = None

    def open(self, sender: Sender, method: str, identity: str, key: str, blob: bytes) -> None:
        """Begin a stream; it is refused where the worker cannot be started."""
        try:
            self._worker.use(self._follow)
            assert self._link is not None
            self._link.open(sender, method, identity, key, blob)
        except WorkerError as error:
            sender.error(503, "ServiceUnavailable", str(error))

    def _follow(self, worker: Any) -> None:
        """Have a link to this worker, which may be another one than before."""
        if self._link is None or self._link.worker is not worker:
            self._link = _Link(worker, self._entry, self._limit_s)


class _Link:
    """The streams of one worker process, and the thread that reads what it says."""

    def __init__(self, worker: Any, entry: str, limit_s: float) -> None:
        # copies: the worker closes its own when it is exchanged
        self.worker = worker
        self._frames = Frames(worker.channel.sock.dup())
        self._pidfd = os.dup(worker.pidfd)
        self._entry = entry
        self._limit_s = limit_s
        self._numbers = itertools.count()
        self._senders: dict[int, Sender] = {}
        self._lock = threading.Lock()
        self._lost = ""
        self._heard = time.monotonic()
        threading.Thread(target=self._read, name="streams", daemon=True).start()

    def open(self, sender: Sender, method: str, identity: str, key: str, blob: bytes) -> None:
        number = next(self._numbers)
        with self._lock:
            if self._lost:
                raise WorkerError(self._lost)
            if not self._senders:
                self._heard = time.monotonic()
            self._senders[number] = sender
        with contextlib.suppress(OSError):  # it has died: the reader says so to all
            self._frames.send(["open", number, method, identity, key], [blob])

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._frames.sock, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        pause = sweep = _SWEEP_S
        swept = time.monotonic()
        lost = "The process that ran this stream died; a new one is starting."
        while True:
            ready = {which for which, _ in poll.poll(pause * 1000)}
            if self._frames.sock.fileno() in ready:
                try:
                    self._received(*self._frames.receive())
                except (EOFError, OSError):
                    break
                except Exception:  # noqa: BLE001  # of Triton: it hurts one stream only
                    worker_log.say(
                        self._entry, "ERROR", "a value of a stream is lost", exception=traceback.format_exc()
                    )
            elif ready:
                break
            now = time.monotonic()
            if now - swept >= sweep:
                if self._hung(now):
                    lost = f"The call took longer than {self._limit_s:g} s and was ended; a new process is starting."
                    self._kill()
                    break
                self._sweep()
                swept = time.monotonic()
                sweep = max(_SWEEP_S, _SWEEP_SHARE * (swept - now))
        with self._lock:
            self._lost = lost
            left = list(self._senders.values())
            self._senders.clear()
        for sender in left:
            sender.error(503, "ServiceUnavailable", lost)
        self._frames.sock.close()
        os.close(self._pidfd)

    def _received(self, header: Any, blob: bytearray) -> None:
        self._heard = time.monotonic()
        kind, *rest = header
        if kind == "pong":
            return
        number, *rest = rest
        if kind == "value":
            self.worker.served = True
            self._senders[number].value(blob)
            return
        with self._lock:
            sender = self._senders.pop(number)
        if kind == "end":
            self.worker.served = True
            sender.end()
        else:
            sender.error(*rest)

    def _sweep(self) -> None:
        """Tell the worker of streams that nobody reads any more, and see that its loop turns."""
        with self._lock:
            open_streams = list(self._senders.items())
        if not open_streams or not self._frames.writable:  # a worker that reads nothing must not hold its end up
            return
        with contextlib.suppress(OSError):
            for number, sender in open_streams:
                if sender.cancelled():
                    self._frames.send(["cancel", number])
            self._frames.send(["ping"])

    def _hung(self, now: float) -> bool:
        return bool(self._senders) and now - self._heard > self._limit_s

    def _kill(self) -> None:
        self.worker.ended = "call limit"
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

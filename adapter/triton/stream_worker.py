"""The worker of an entry whose methods are generators: many streams at once, on one event loop.

A stream is stepped no further than its reader in the front has given leave for. That leave does not come through the
stub: each request of a stream may reach another instance, so the worker that has the stream listens for it at an
address made of the stream's key, which the front chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapter.exceptions import AdapterError, InvalidArgument, ServiceUnavailable, told
from adapter.method import MethodSpec, method_named
from adapter.runnable import Runnable
from adapter.streaming import Stream, warm_up
from adapter.triton import worker_log
from adapter.triton.channel import Frames, leave_socket
from adapter.triton.spec import EntrySpec

MOST_STREAMS = 1000  # of one instance
FIRST_VALUES, FIRST_BYTES = 32, 1 << 20  # leave that a stream with a key begins with; the front gives more as it reads


class StreamWorker:
    """Answers requests that the stub sends as frames `["open", number, method, request id, key]` with a blob behind it.

    It answers with `["value", number]`, a blob behind it, any number of times, and in the end with `["end", number]` or
    `["error", number, status, class, message]`. `["cancel", number]` ends a stream; `["ping"]` gets a `["pong"]`.
    """

    def __init__(
        self,
        runnable: Runnable,
        methods: Mapping[str, MethodSpec],
        spec: EntrySpec,
        frames: Frames,
        reported: Callable[[BaseException, str, str], AdapterError],
    ) -> None:
        """`reported` logs what user code raised (error, method, request id) and says what its caller is told."""
        self._runnable = runnable
        self._methods = methods
        self._spec = spec
        self._frames = frames
        self._reported = reported
        self._streams: dict[int, Stream | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()

    def warm_up(self, folder: Path) -> None:
        """Take the first value of each call that the entry has for that; StateException where one fails."""
        for name, file in self._spec.warmup.items():
            call = self._methods[name].decode((folder / file).read_bytes())
            self._loop.run_until_complete(warm_up(self._runnable, call))

    def serve(self) -> None:
        """Answer until the stub is gone."""
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        ended = self._loop.create_future()

        def read() -> None:
            # on a thread, so that the stub never waits for a step of user code
            with contextlib.suppress(OSError, EOFError, RuntimeError):
                while True:
                    self._loop.call_soon_threadsafe(self._received, *self._frames.receive())
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=read, name="requests", daemon=True).start()
        await ended

    def _received(self, header: Any, blob: bytearray) -> None:
        kind, *rest = header
        if kind == "open":
            number, name, identity, key = rest
            if len(self._tasks) >= MOST_STREAMS:
                self._fail(number, ServiceUnavailable(f"{len(self._tasks)} streams are open already; try again."))
                return
            task = self._loop.create_task(self._run(number, name, identity, key, blob))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == "cancel":
            if (stream := self._streams.get(rest[0])) is not None:
                stream.end()
        elif kind == "ping":
            self._frames.send(["pong"])

    async def _run(self, number: int, name: str, identity: str, key: str, blob: bytearray) -> None:
        worker_log.stream_id.set(identity)
        try:
            call = method_named(self._methods, name).decode(blob)
            send = functools.partial(self._send, number, call.method)
            first = {"values": FIRST_VALUES, "size": FIRST_BYTES} if key else {}
            stream = Stream(self._runnable, call, send, limit_s=self._spec.call_timeout_s, **first)
            with self._listening(stream, key):
                self._streams[number] = stream
                error = await stream.run()
        except Exception as refused:  # noqa: BLE001  # what came may be anything; it hurts its own call only
            error = refused
        finally:
            self._streams.pop(number, None)
        if error is None:
            self._frames.send(["end", number])
        else:
            self._fail(number, self._reported(error, name or self._spec.entry, identity))

    def _send(self, number: int, method: MethodSpec, value: Any) -> int:
        parts = method.encode_result(value)
        self._frames.send(["value", number], parts)
        return sum(len(part) for part in parts)

    def _fail(self, number: int, error: AdapterError) -> None:
        self._frames.send(["error", number, *told(error)])

    @contextlib.contextmanager
    def _listening(self, stream: Stream, key: str) -> Iterator[None]:
        """Have the stream learn of the leave that its reader gives."""
        if not key:
            yield
            return
        try:
            sock = leave_socket(key)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"There cannot be a stream with the key {key!r}: {error}.") from error

        def leave() -> None:
            with contextlib.suppress(BlockingIOError, ValueError):
                values, size = sock.recv(64).split()
                stream.allow(int(values), int(size))

        with sock:
            self._loop.add_reader(sock, leave)
            try:
                yield
            finally:
                self._loop.remove_reader(sock)

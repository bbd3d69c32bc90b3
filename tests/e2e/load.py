"""A load of requests that goes on while a test breaks something, and what became of each of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """One request: `status` is 0 where the connection broke."""

    path: str
    begun: float
    ended: float
    status: int
    text: str
    retry_after: str | None = None


@dataclass
class Load:
    """Closed loops of requests, each on a connection of its own."""

    answers: list[Answer] = field(default_factory=list)

    def since(self, moment: float, path: str) -> list[Answer]:
        """Those that began later."""
        return [a for a in list(self.answers) if a.begun >= moment and a.path == path]

    def failed(self, path: str) -> list[Answer]:
        return [a for a in list(self.answers) if a.status != 200 and a.path == path]

    def wait_for_answer(self, path: str, since: float, seconds: float, *, other_than: str = "") -> float:
        """Wait for a good answer to a request that began after a moment; the seconds from then to it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for answer in self.since(since, path):
                if answer.status == 200 and answer.text.rpartition(" ")[2] != other_than:
                    return answer.ended - since
            time.sleep(0.005)
        raise AssertionError(f"{path} was not answered within {seconds} s: {self.since(since, path)[-3:]}")


@contextlib.contextmanager
def load(url: str, connections: Mapping[str, int], *, pause: float = 0.0, seconds: float = 60.0) -> Iterator[Load]:
    """Ask `connections[path]` times at once for each path, over and over, for as long as the block lasts."""
    found, stopping = Load(), threading.Event()
    until = time.monotonic() + seconds

    async def run() -> None:
        loops = (_loop(url, path, found, stopping, pause, until) for path, n in connections.items() for _ in range(n))
        await asyncio.gather(*loops)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join()


async def _loop(url: str, path: str, found: Load, stopping: threading.Event, pause: float, until: float) -> None:
    parts = urlsplit(url)
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stopping.is_set() and time.monotonic() < until:
        begun = time.monotonic()
        status, text, retry = 0, "", None
        try:
            if streams is None:
                streams = await asyncio.open_connection(parts.hostname, parts.port)
            status, text, retry, last = await asyncio.wait_for(_ask(*streams, path), 30)
            if last:
                streams[1].close()
                streams = None
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            text = repr(error)
            if streams is not None:
                streams[1].close()
            streams = None
        found.answers.append(Answer(path, begun, time.monotonic(), status, text, retry))
        await asyncio.sleep(pause if status == 200 else 0.01)
    if streams is not None:
        streams[1].close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str
) -> tuple[int, str, str | None, bool]:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n"
    writer.write(f"{head}work".encode())
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in answer[1:] if line)
    body = await reader.readexactly(int(fields["content-length"]))
    return int(answer[0].split()[1]), body.decode(), fields.get("retry-after"), fields.get("connection") == "close"

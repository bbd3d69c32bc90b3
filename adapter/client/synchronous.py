"""The client for plain functions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from adapter.client.asynchronous import AsyncHTTPClient, Options, client_of, known
from adapter.client.task import AsyncAPI, SyncAPI
from adapter.exceptions import StateException

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Self, Unpack

    _Begun: TypeAlias = concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]

T = TypeVar("T")

_END: Any = object()


class SyncHTTPClient:
    """Call the APIs of a service.

        with SyncHTTPClient.from_url("http://127.0.0.1:3000") as client:
            labels = client.classify(np.array([[5.9, 3, 5.1, 1.8]]))

    It is an AsyncHTTPClient, whose docstring says what goes in, what comes out and what is raised, on a thread of its
    own; many threads can use one, and so can a notebook.
    """

    def __init__(self, server_url: str, **options: Unpack[Options]) -> None:
        self._client = AsyncHTTPClient(server_url, **options)
        self._thread = _Thread(self._client)
        # for a client that nobody closes, and at the end of the process
        self._end = weakref.finalize(self, self._thread.end)
        try:
            self._wait(self._client._document)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_url(cls, server_url: str, **options: Unpack[Options]) -> Self:
        """A client of the service at `http(s)://host:port/prefix` or `host:port`; it reads the service's document."""
        return cls(server_url, **options)

    @property
    def server_url(self) -> str:
        return self._client.server_url

    @property
    def endpoints(self) -> list[str]:
        """The names of the APIs."""
        return self._client.endpoints

    def call(self, name: str, /, *values: Any, **options: Any) -> Any:
        """Call an API by name, as `AsyncHTTPClient.call` does; what is an async iterator there is an iterator here."""
        result = self._wait(self._client.call, name, *values, **options)
        return self._iterate(result) if isinstance(result, AsyncIterator) else result

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request as it is, without descriptors, retries and exceptions for statuses; `options` are httpx's."""
        return self._wait(self._client.request, method, path, **options)

    def health(self) -> httpx.Response:
        """What `/readyz` answers: 200 where the service can be called, else 503 and why."""
        return self._wait(self._client.health)

    @staticmethod
    def wait_until_server_ready(host: str, port: int | None = None, timeout: float = 30) -> None:
        """Wait until the service at a URL, or at a host and port, can be called; DeadlineExceeded after `timeout` s."""
        client = client_of(host, port)
        thread = _Thread(client)
        try:
            thread.run(client.wait_until_ready, timeout)
        finally:
            thread.end()

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._end()

    def __getattr__(self, name: str) -> SyncAPI:
        client = self.__dict__.get("_client")
        known(self, client._endpoints if client is not None else None, name)
        return SyncAPI(functools.partial(self.call, name), AsyncAPI(self._client, name), self._wait)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.endpoints]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server_url!r})"

    def _wait(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        return self._thread.run(function, *args, **kwargs)

    def _iterate(self, pieces: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T:
            return await anext(pieces, _END)

        try:
            while (piece := self._wait(following)) is not _END:
                yield piece
        finally:
            with contextlib.suppress(StateException):  # closed with the client
                self._wait(pieces.aclose)  # type: ignore[attr-defined]  # an async generator


class _Thread:
    """An event loop on a thread of its own, for one client, which is closed at its end."""

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._url = client.server_url
        self._lock = threading.Lock()
        self._ended = False
        begun: _Begun = concurrent.futures.Future()
        self._thread = threading.Thread(target=_work, args=(client, begun), name="adapter-client", daemon=True)
        self._thread.start()
        self._loop, self._told = begun.result()

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Await `function(*args, **kwargs)` on the loop, from any other thread."""
        with self._lock:  # what comes after the end would never be done, nor refused
            if self._ended or not self._thread.is_alive():  # a thread does not live on in a forked process
                raise StateException(
                    f"The client of {self._url} is closed, or was made in another process: make another."
                )
            future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise StateException(f"The client of {self._url} was closed before it had an answer.") from error
        except BaseException:  # CTRL+C in this thread ends the work in the other
            future.cancel()
            raise

    def end(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, True
        if self._thread.is_alive() and not ended:
            self._loop.call_soon_threadsafe(self._told.set)
            if threading.current_thread() is not self._thread:  # where garbage happens to be collected
                self._thread.join()


def _work(client: AsyncHTTPClient, begun: _Begun) -> None:
    try:
        asyncio.run(_until_told(client, begun))
    except BaseException as error:
        if begun.done():
            raise
        begun.set_exception(error)  # there are no files left for a loop


async def _until_told(client: AsyncHTTPClient, begun: _Begun) -> None:
    told = asyncio.Event()
    begun.set_result((asyncio.get_running_loop(), told))
    await told.wait()
    await client.close()

"""The client for `async def` functions."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

import anyio
import httpx

from adapter.client.endpoint import Endpoint, endpoints_of
from adapter.client.failures import broken, error_of, sentence_of
from adapter.client.task import AsyncAPI
from adapter.exceptions import (
    AdapterError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ServiceUnavailable,
    StateException,
    TooManyRequests,
)
from adapter.io import IODescriptor

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

DEFAULT_TIMEOUT_S = 300.0  # longer than a server's own, whose sentence says more
DEFAULT_RETRIES = 3
_CONNECT_S = 10.0
_KEEP_ALIVE_S = 3.0  # uvicorn closes an idle connection after 5 s, and a request that it crosses is lost
_POLL_S = 0.1
_VERBS = {"status": "GET", "get": "GET", "cancel": "PUT", "retry": "POST"}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Options(TypedDict, total=False):
    """What a client can be told.

    `timeout` is for one call in seconds, `retries` how often it is sent again at most; `headers` go with every request,
    `token` goes as `Authorization: Bearer …`; `verify` is as in httpx; `descriptors` are the IODescriptor classes of
    your own that the service uses.
    """

    timeout: float
    retries: int
    headers: Mapping[str, str] | None
    token: str | None
    verify: ssl.SSLContext | bool
    descriptors: Sequence[type[IODescriptor[Any]]]


class AsyncHTTPClient:
    """Call the APIs of a service from `async def` functions.

        async with AsyncHTTPClient.from_url("http://127.0.0.1:3000") as client:
            labels = await client.classify(np.array([[5.9, 3, 5.1, 1.8]]))

    An API is a method of its name; `call("name", value)` does the same, for every name. Values are those that the
    API function itself sees and returns (arrays, data frames, images, files, text, JSON values); models of JSON come
    back as dicts. A path (`pathlib.Path`) is sent as the file it names, and bytes as they are. An API with a Multipart
    input takes its parts as keyword arguments, or as one dict; a method of a class-based service takes its arguments as
    Python does. Where an API is a task, `task = await client.train.submit(rows)` begins it, and `await task.wait()` is
    what comes of it.

    Any status of 200 to 299 is success. Any other raises the exception of adapter that has this status, with the
    server's sentence as message, and `error_code` and `request_id` of the answer; an error of the server's code is a
    RemoteException, and what has no class of its own an AdapterError.

    A 503 or 429 says that the server did not take the request, or gave it up in a queue; it is sent again when
    its Retry-After is over, at most `retries` times, and never beyond `timeout`, which is for the whole call in
    seconds. So is a request whose connection could not be made. One whose connection broke is not, since it may
    have been served. `retries=0` leaves all that to you.
    """

    def __init__(
        self,
        server_url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        verify: ssl.SSLContext | bool = True,
        descriptors: Sequence[type[IODescriptor[Any]]] = (),
    ) -> None:
        self.server_url = _url(server_url)
        self._timeout = timeout
        self._retries = retries
        self._descriptors = descriptors
        self._endpoints: dict[str, Endpoint] | None = None
        url = httpx.URL(self.server_url)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={**({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})},
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=_KEEP_ALIVE_S),
            # reading the certificates takes longer than most calls
            verify=verify if url.scheme == "https" else False,
            trust_env=url.host not in _LOOPBACK,  # a proxy does not lead to this machine
        )

    @classmethod
    def from_url(cls, server_url: str, **options: Unpack[Options]) -> Self:
        """A client of the service at `http(s)://host:port/prefix` or `host:port`.

        Awaiting it, entering it or calling an API reads the service's document.
        """
        return cls(server_url, **options)

    @property
    def endpoints(self) -> list[str]:
        """The names of the APIs."""
        if self._endpoints is None:
            raise StateException("The client has not asked the server yet: write `client = await client` first.")
        return list(self._endpoints)

    async def call(
        self,
        name: str,
        /,
        *values: Any,
        stream: bool = False,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        path_params: Mapping[str, Any] | None = None,
        query_params: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Any:
        """Call an API by name; NotFound where the service has none of that name.

        An API of server-sent events gives an async iterator of `adapter.io.SSE`; one of text gives an async iterator of
        str, in the pieces that arrive, with `stream=True`. `timeout` then is the longest wait for each piece.
        A part that is called like one of these options goes into a dict: `call("name", {"timeout": …})`.
        """
        endpoint = await self._endpoint(name)
        stream = endpoint.streams(stream)
        response = await self._post(
            endpoint, "", values, parts, timeout, headers, path_params, query_params, read=not stream
        )
        return endpoint.pieces(response) if stream else await endpoint.value(response)

    async def submit(
        self,
        name: str,
        /,
        *values: Any,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **parts: Any,
    ) -> str:
        """Begin a task with the arguments of an API; returns its id. NotFound where the API is no task."""
        endpoint = await self._task_of(name)
        response = await self._post(endpoint, "/submit", values, parts, timeout, headers, None, None, read=True)
        return str(json.loads(response.content)["task_id"])

    async def task(self, name: str, identity: str, verb: str) -> Any:
        """Ask about a task: its `status` and what it `get`s, or `cancel` and `retry` it."""
        endpoint = await self._task_of(name)
        request = self._http.build_request(
            _VERBS[verb],
            f"{endpoint.path({})}/{verb}",
            params={"task_id": identity},
            timeout=_timeouts(self._timeout),
        )
        with _deadline(self._timeout, f"{self.server_url} did not answer {name!r}"):
            response = await self._send(request, time.monotonic() + self._timeout)
        return await endpoint.value(response) if verb == "get" else json.loads(response.content)

    async def task_result(self, name: str, identity: str, timeout: float | None) -> Any:
        """What came of a task, once it is over; DeadlineExceeded after `timeout` seconds."""
        with _deadline(self._timeout if timeout is None else timeout, f"The task {identity} of {name!r} was not over"):
            pause = _POLL_S / 4
            while (await self.task(name, identity, "status"))["status"] == "in_progress":
                await anyio.sleep(pause)
                pause = min(1.0, 1.5 * pause)
        return await self.task(name, identity, "get")

    async def _task_of(self, name: str) -> Endpoint:
        endpoint = await self._endpoint(name)
        if not endpoint.task:
            raise NotFound(f"The API {name!r} is no task: call it, and mark it with @adapter.task to submit it.")
        return endpoint

    async def _post(
        self,
        endpoint: Endpoint,
        below: str,
        values: Sequence[Any],
        parts: Mapping[str, Any],
        timeout: float | None,
        headers: Mapping[str, str] | None,
        path_params: Mapping[str, Any] | None,
        query_params: Mapping[str, Any] | None,
        *,
        read: bool,
    ) -> httpx.Response:
        """Send the arguments of an API to its route, or to one `below` it."""
        body, content_type = await endpoint.body(endpoint.argument(values, parts))
        seconds = self._timeout if timeout is None else timeout
        try:
            request = self._http.build_request(
                "POST",
                endpoint.path(path_params or {}) + below,
                params=query_params,
                content=body,
                headers={**endpoint.headers(content_type), **(headers or {})},
                timeout=_timeouts(seconds),
            )
        except (TypeError, ValueError, AttributeError) as error:  # text that is not ASCII, values that are no text
            raise InvalidArgument(
                f"{endpoint.name!r} cannot be called with these headers or parameters: {error}."
            ) from error
        with _deadline(seconds, f"{self.server_url} did not answer {endpoint.name!r}"):
            return await self._send(request, time.monotonic() + seconds, read=read)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request as it is, without descriptors, retries and exceptions for statuses; `options` are httpx's."""
        return await self._http.request(method, path, **{"timeout": _timeouts(self._timeout), **options})

    async def health(self) -> httpx.Response:
        """What `/readyz` answers: 200 where the service can be called, else 503 and why."""
        return await self.request("GET", "/readyz")

    @staticmethod
    async def wait_until_server_ready(host: str, port: int | None = None, timeout: float = 30) -> None:
        """Wait until the service at a URL, or at a host and port, can be called; DeadlineExceeded after `timeout` s."""
        client = client_of(host, port)
        try:
            await client.wait_until_ready(timeout)
        finally:
            await client.close()

    async def wait_until_ready(self, timeout: float = 30) -> None:
        """Wait until this client's service can be called; DeadlineExceeded after `timeout` seconds."""
        until = time.monotonic() + timeout
        reason = "it was not asked"
        while (left := until - time.monotonic()) > 0:
            try:
                response = await self.request("GET", "/readyz", timeout=min(left, _CONNECT_S))
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return
                reason = sentence_of(response)
            await anyio.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
        raise DeadlineExceeded(f"{self.server_url} was not ready within {timeout:g} seconds: {reason.rstrip('.')}.")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def __getattr__(self, name: str) -> AsyncAPI:
        return AsyncAPI(self, known(self, self.__dict__.get("_endpoints"), name))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._endpoints or ())]

    def __await__(self) -> Generator[Any, None, Self]:
        return self._connected().__await__()

    async def __aenter__(self) -> Self:
        return await self._connected()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server_url!r})"

    async def _connected(self) -> Self:
        try:
            await self._document()
        except BaseException:
            await self.close()
            raise
        return self

    async def _document(self) -> dict[str, Endpoint]:
        if self._endpoints is None:
            request = self._http.build_request("GET", "/docs.json", timeout=_timeouts(self._timeout))
            with _deadline(self._timeout, f"{self.server_url} did not answer"):
                response = await self._send(request, time.monotonic() + self._timeout)
            try:
                self._endpoints = endpoints_of(json.loads(response.content), self._descriptors)
            except (ValueError, InvalidArgument) as error:
                raise InvalidArgument(f"{self.server_url} is not an adapter service: {error}") from error
        return self._endpoints

    async def _endpoint(self, name: str) -> Endpoint:
        endpoints = await self._document()
        if name not in endpoints:
            raise NotFound(_no_api(self, endpoints, name))
        if endpoints[name].problem:
            raise InvalidArgument(endpoints[name].problem)
        return endpoints[name]

    async def _send(self, request: httpx.Request, until: float, *, read: bool = True) -> httpx.Response:
        """A successful response, with its body unless that is to be read as it comes."""
        for attempt in itertools.count():
            try:
                response = await self._http.send(request, stream=True)
                if read or not response.is_success:
                    await response.aread()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure: AdapterError = ServiceUnavailable(
                    f"{self.server_url} cannot be reached: {error or type(error).__name__}; is the service running?"
                )
                failure.__cause__ = error
                pause = _POLL_S * 2**attempt
            except httpx.TransportError as error:
                raise broken(self.server_url, error) from error
            else:
                if response.is_success:
                    return response
                failure = error_of(response)
                if not isinstance(failure, (TooManyRequests, ServiceUnavailable)):
                    raise failure
                pause = failure.retry_after * (1 + random.random() / 4)  # not all who were refused at once again
            if attempt >= self._retries or time.monotonic() + pause >= until:
                raise failure
            await anyio.sleep(pause)
        raise AssertionError("unreachable")


def _no_api(client: object, endpoints: Mapping[str, Endpoint], name: str) -> str:
    offered = ", ".join(endpoints) or "none at all"
    return f"The service at {getattr(client, 'server_url', '?')} has no API {name!r}; it has {offered}."


def known(client: object, endpoints: Mapping[str, Endpoint] | None, name: str) -> str:
    """The name of an API; AttributeError for any other. Every name may be one before the document has been read."""
    if name.startswith("_") or (endpoints is not None and name not in endpoints):
        raise AttributeError(_no_api(client, endpoints or {}, name))
    return name


def client_of(host: str, port: int | None) -> AsyncHTTPClient:
    if port is None:
        return AsyncHTTPClient(host)
    return AsyncHTTPClient(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, _CONNECT_S))


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what} within {seconds:g} seconds.") from error


def _url(given: str) -> str:
    """`http(s)://host:port/prefix` from what a person writes; InvalidArgument with a sentence for what is no URL."""
    try:
        url = httpx.URL(given if "://" in given else f"http://{given}")
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidArgument(
            f"{given!r} is no URL of a service: {error}; write for example http://127.0.0.1:3000."
        ) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidArgument(f"{given!r} is no URL of a service: write for example http://127.0.0.1:3000.")
    return str(url.copy_with(query=None, fragment=None)).rstrip("/")

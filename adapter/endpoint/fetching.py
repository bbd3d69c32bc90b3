"""Reading media from a URL: off unless allowed, limited in size and time, and closed to private addresses.

A URL in a request makes the server ask for it, so whoever can call the endpoint could reach what the server can reach:
that is why it is off, and why an address that is not public is refused where it is on, for each redirect as well.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpcore
from pydantic import AnyHttpUrl

from adapter.exceptions import InvalidArgument

_MOST_REDIRECTS = 5
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # what lies behind it is in its last 32 bits


@dataclass(frozen=True)
class Limits:
    """What may be read from a URL: nothing unless `allowed`, `max_bytes` within `timeout_s`, from public addresses.

    `private` lets addresses of your own network in, too.
    """

    allowed: bool = False
    max_bytes: int = 64 * 1024 * 1024
    timeout_s: float = 10.0
    private: bool = False


limits = Limits()  # of this process; `allow` changes them


def allow(changed: Limits) -> None:
    """Set what this process may read from URLs."""
    global limits
    limits = changed


def read(url: str, *, follow_redirects: bool = False) -> Iterator[bytes]:
    """The content that a URL leads to, in pieces; InvalidArgument where it may not be read, or cannot be."""
    now = limits
    if not now.allowed:
        raise InvalidArgument(
            f"The media lies at {url}, and this process does not read URLs: send the content as base64, or start "
            "the server with --allow-urls (a program: adapter.endpoint.fetching.allow(Limits(allowed=True)))."
        )
    url = _absolute(url)
    with httpcore.ConnectionPool(network_backend=_Guarded(now, time.monotonic() + now.timeout_s)) as pool:
        for _ in range(_MOST_REDIRECTS + 1):
            following = yield from _answer(pool, url, now, follow_redirects)
            if following is None:
                return
            url = _absolute(following, url)
    raise InvalidArgument(f"{url} redirects more than {_MOST_REDIRECTS} times.")


def _answer(pool: httpcore.ConnectionPool, url: str, now: Limits, follow: bool) -> Any:
    """Yield the pieces of one answer; return where it redirects to, None where it does not."""
    size = 0
    try:
        with pool.stream("GET", url, headers={"User-Agent": "triton-adapter"}) as response:
            location = dict(response.headers).get(b"location", b"").decode(errors="replace")
            if follow and response.status in (301, 302, 303, 307, 308) and location:
                return location
            if response.status != 200:
                raise InvalidArgument(f"{url} answered with the status {response.status}.")
            for piece in response.iter_stream():
                size += len(piece)
                if size > now.max_bytes:
                    raise InvalidArgument(f"The file at {url} is larger than {now.max_bytes} bytes.")
                yield piece
    except httpcore.TimeoutException as error:
        raise InvalidArgument(f"{url} was not read within {now.timeout_s:g} s.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise InvalidArgument(f"{url} cannot be read: {error or type(error).__name__}.") from error
    return None


def _absolute(url: str, base: str = "") -> str:
    try:
        return str(AnyHttpUrl(urllib.parse.urljoin(base, url)))  # which writes it in ASCII
    except ValueError as error:
        raise InvalidArgument(f"{url!r} is not an http or https URL.") from error


class _Guarded(httpcore.SyncBackend):
    """Connects to public addresses only: the one that was looked at is the one that is connected to."""

    def __init__(self, limits: Limits, until: float) -> None:
        super().__init__()
        self._private = limits.private
        self._until = until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"the host {host} is not known ({error})") from error
        addresses = [str(entry[4][0]) for entry in found]
        closed = [] if self._private else [address for address in addresses if not _public(address)]
        if closed:
            raise InvalidArgument(f"The host {host} has the address {closed[0]}, which is not public: it is not read.")
        stream = super().connect_tcp(addresses[0], port, _left(self._until), local_address, socket_options)
        return _Ending(stream, self._until)


class _Ending(httpcore.NetworkStream):
    """A connection that ends at a given time; a timeout of httpcore's begins anew with every byte that comes."""

    def __init__(self, stream: httpcore.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._until))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Ending(self._stream.start_tls(ssl_context, server_hostname, _left(self._until)), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def _public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return _public(str(inner))
    return ip.is_global and not ip.is_multicast

"""Where Tritons are: one address or several, and what a call of them needs beside it."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapter.exceptions import ConfigException, blaming
from adapter.kinds import PATH, STRING, Kind, WrongKind, optional

PLAIN, SECURE, EVERY = "grpc://", "grpcs://", "dns:///"
_EXAMPLES = "grpc://host:8001, grpcs://host:8001, dns:///name:8001, or several with commas between them"
_HOST = re.compile(r"[\w.:%-]+")
_HEADER = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_VALUE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True)
class Tls:
    """TLS to Tritons.

    `ca` has the authorities that may have signed their certificates, None is those of the system; `certificate` and
    `key`, which may be in one file, are shown to a Triton that wants to know who calls; `server_name` is the name that
    their certificates are for, where that is not the host of the address.
    """

    ca: Path | None = field(default=None, metadata={"kind": optional(PATH, "the system's")})
    certificate: Path | None = field(default=None, metadata={"kind": optional(PATH)})
    key: Path | None = field(default=None, metadata={"kind": optional(PATH)})
    server_name: str | None = field(default=None, metadata={"kind": optional(STRING, "the host of the address")})


@dataclass(frozen=True)
class Replica:
    """One Triton: where to connect to, and the `name` that it goes by."""

    host: str
    port: int
    name: str

    def __str__(self) -> str:
        return _joined(self.host, self.port)


@dataclass(frozen=True)
class Target:
    """One part of an address: a Triton, or a name each of whose network addresses is a Triton (`every`)."""

    host: str
    port: int
    every: bool = False

    def __str__(self) -> str:
        return f"{EVERY if self.every else ''}{_joined(self.host, self.port)}"

    def replicas(self, found: Iterable[Sequence[Any]] = ()) -> list[Replica]:
        """The Tritons behind it; `found` is what getaddrinfo() says of a name with `every`."""
        if not self.every:
            return [Replica(self.host, self.port, self.host)]
        hosts = sorted({entry[4][0] for entry in found})
        return [Replica(host, self.port, self.host) for host in hosts]


@dataclass(frozen=True)
class Address:
    """Tritons that serve the same entries; `metadata` goes with every call of them."""

    targets: tuple[Target, ...]
    secure: bool = False
    tls: Tls = Tls()
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        scheme = SECURE if self.secure else PLAIN
        return ",".join(f"{'' if target.every else scheme}{target}" for target in self.targets)

    def replicas(self) -> list[Replica]:
        """Every Triton that there is now; it may wait for a name server.

        ConfigException where a name is not known.
        """
        found: list[Replica] = []
        for target in self.targets:
            try:
                infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM) if target.every else []
            except (OSError, ValueError) as error:
                raise ConfigException(f"{target} cannot be resolved: {error}.") from error
            found += target.replicas(infos)
        return list(dict.fromkeys(found))

    def server_name(self, replica: Replica) -> str:
        """The name that the certificate of a replica must be for."""
        return self.tls.server_name or replica.name

    def context(self) -> ssl.SSLContext | None:
        """What TLS is made with, None without; ConfigException where a file cannot be used."""
        if not self.secure:
            return None
        tls = self.tls
        for name, file in (("ca", tls.ca), ("certificate", tls.certificate), ("key", tls.key)):
            with blaming(f"triton.tls.{name} is {str(file)!r}, which cannot be read"):
                if file is not None:
                    file.read_bytes()
        with blaming(f"triton.tls.ca is {str(tls.ca)!r}, which holds no certificate"):
            context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            place = f"{str(tls.certificate)!r} and the key in {str(tls.key or tls.certificate)!r}"
            with blaming(f"The certificate in {place}, without a password, cannot be shown to Triton"):
                # OpenSSL asks the terminal for a password where there is none; a text that no key has is an error
                context.load_cert_chain(tls.certificate, tls.key, "\0")
        context.set_alpn_protocols(["h2"])
        return context


NO_TLS = Tls()


def is_address(place: str) -> bool:
    """Whether a place of entries is a Triton, or several, and not a folder."""
    return place.startswith((PLAIN, SECURE, EVERY))


def parse(text: str, tls: Tls = NO_TLS, headers: Mapping[str, str] | None = None) -> Address:
    """Read `grpc://host:8001`, `host:8001`, `grpcs://host:8001`, `dns:///name:8001`, or several with commas.

    TLS is used where it says `grpcs://`, and where anything is set of `tls`. ConfigException with what is wrong.
    """
    parts = [part.strip() for part in text.split(",")]
    targets = tuple(dict.fromkeys(_target(part, text) for part in parts))
    plain, secure = (any(part.startswith(scheme) for part in parts) for scheme in (PLAIN, SECURE))
    if plain and secure:
        raise ConfigException(f"{text!r} has addresses with TLS ({SECURE}) and without ({PLAIN}): give them one way.")
    if plain and tls != NO_TLS:
        name = next(name for name, value in vars(tls).items() if value is not None)
        raise ConfigException(
            f"{text!r} is without TLS, but triton.tls.{name} is set: write {SECURE}, or leave it out."
        )
    if tls.key is not None and tls.certificate is None:
        raise ConfigException(
            "triton.tls.key is set without the certificate that it is of: set triton.tls.certificate."
        )
    return Address(targets, secure or tls != NO_TLS, tls, tuple((headers or {}).items()))


def _target(part: str, whole: str) -> Target:
    scheme = next((scheme for scheme in (PLAIN, SECURE, EVERY) if part.startswith(scheme)), "")
    place = part.removeprefix(scheme)
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:  # such as a port that is no number
        host, port = None, None
    # urlsplit leaves out of them what does not belong here: a path, a user
    if not host or not port or place.lower() != _joined(host, port) or not _HOST.fullmatch(host):
        of = "" if part == whole else f" in {whole!r}"
        raise ConfigException(f"{part!r}{of} cannot be the address of a Triton: write {_EXAMPLES}.")
    return Target(host, port, every=scheme == EVERY)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---- as settings ----------------------------------------------------------------------------------------------------


def _address(value: Any) -> str:
    try:
        parse(STRING.read(value))
    except ConfigException as error:
        raise WrongKind from error
    return str(value)


def _headers(value: Any) -> Mapping[str, str]:
    # a text, since an environment variable holds no mapping
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")] if value.strip() else []
        value = {name.strip(): given.strip() for name, _, given in pairs}
    if not isinstance(value, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) and _HEADER.fullmatch(k) and _VALUE.fullmatch(v)
        for k, v in value.items()
    ):
        raise WrongKind
    return dict(value)


ADDRESS = Kind(
    "the address of a Triton over gRPC, or several with commas between them, such as dns:///name:8001, "
    "grpcs://host:8001 or grpc://host:8001",
    _address,
)
HEADERS = Kind(
    "a mapping from names of headers, in small letters, to texts, or one text such as name=value,other=value",
    _headers,
    secret=True,
)

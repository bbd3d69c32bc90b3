"""HTTPS of `adapter serve`: certificates made here, and clients with and without one of their own."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.e2e.conftest import Serve, Served

Run = Callable[..., subprocess.CompletedProcess[str]]
PASSWORD = "a password: ä"  # of a key that is made here
CIPHER = "ECDHE-ECDSA-AES256-GCM-SHA384"
SERVICE = """
import adapter
from adapter.io import Text

svc = adapter.Service("plain")


@svc.api(input=Text(), output=Text())
async def echo(text: str) -> str:
    return text
"""


@dataclass(frozen=True)
class Files:
    """The folder with what a server needs (`locked.pem` is its key with a password), and who signed it."""

    folder: Path
    authority: trustme.CA

    @property
    def trusting(self) -> ssl.SSLContext:
        """What a client checks the server with."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    (folder / "key.pem").write_bytes(own.private_key_pem.bytes())
    key = load_pem_private_key(own.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode()))
    (folder / "locked.pem").write_bytes(locked)
    (folder / "authority.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "service.py").write_text(SERVICE)
    return Files(folder, authority)


@pytest.fixture(scope="module")
def secure(serve: Serve, files: Files) -> Served:
    """HTTPS by flags, with a key that has a password."""
    place = files.folder
    options = ("--ssl-certfile", str(place / "cert.pem"), "--ssl-keyfile", str(place / "locked.pem"))
    env = {"ADAPTER_SSL_KEYFILE_PASSWORD": PASSWORD}
    return serve("service:svc", "--api-workers", "1", *options, working_dir=place, env=env)


@pytest.fixture(scope="module")
def mutual(serve: Serve, files: Files) -> Served:
    """HTTPS by a file, where clients need a certificate, and TLS 1.2 with one cipher."""
    config = files.folder / "mutual.yaml"
    config.write_text(
        "api_server:\n  workers: 1\n  ssl:\n    certfile: cert.pem\n    keyfile: key.pem\n    ca_certs: authority.pem\n"
        f"    cert_reqs: 2\n    version: 5\n    ciphers: {CIPHER}\n"
    )
    return serve("service:svc", "--config", str(config), working_dir=files.folder)


def ask(served: Served, context: ssl.SSLContext) -> str:
    with httpx.Client(verify=context, timeout=10) as client:
        return client.post(f"{served.url}/echo", content="hello").text


def test_https_is_answered_and_http_is_not(secure: Served, files: Files) -> None:
    assert secure.url.startswith("https://")
    assert ask(secure, files.trusting) == "hello"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(secure, ssl.create_default_context())
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(secure.url.replace("https", "http") + "/echo", content="hello")
    assert ask(secure, files.trusting) == "hello"


def test_client_without_a_certificate_is_refused(mutual: Served, files: Files) -> None:
    trusting = files.trusting
    files.authority.issue_cert("client.example").configure_cert(trusting)
    assert ask(mutual, trusting) == "hello"
    with pytest.raises(httpx.TransportError):
        ask(mutual, files.trusting)
    stranger = files.trusting
    trustme.CA().issue_cert("stranger.example").configure_cert(stranger)
    with pytest.raises(httpx.TransportError):
        ask(mutual, stranger)


def test_version_and_ciphers_that_are_named_are_those_that_are_used(mutual: Served, files: Files) -> None:
    def handshake(ciphers: str, oldest: ssl.TLSVersion) -> tuple[str, str, int] | None:
        context = files.trusting
        files.authority.issue_cert("client.example").configure_cert(context)
        context.minimum_version = oldest
        context.set_ciphers(ciphers)
        port = int(mutual.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            return wrapped.cipher()

    assert handshake("ALL", ssl.TLSVersion.TLSv1_2) == (CIPHER, "TLSv1.2", 256)
    for other, oldest in [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", ssl.TLSVersion.TLSv1_2),
        ("ALL", ssl.TLSVersion.TLSv1_3),
    ]:
        with pytest.raises(ssl.SSLError):
            handshake(other, oldest)


def test_key_that_cannot_be_used_ends_the_command_with_a_sentence(run_adapter: Run, files: Files) -> None:
    options = ("--ssl-certfile", "cert.pem", "--ssl-keyfile", "locked.pem")  # nobody is asked for its password
    ended = run_adapter("serve", "service:svc", "--port", "0", *options, working_dir=files.folder)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: The certificate in '")
    assert ended.stderr.count("\n") == 1

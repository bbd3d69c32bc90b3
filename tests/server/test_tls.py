from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from adapter.exceptions import ConfigException
from adapter.server import tls
from adapter.settings import SSL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    (folder / "cert.pem").write_bytes(cert.cert_chain_pems[0].bytes())
    (folder / "key.pem").write_bytes(cert.private_key_pem.bytes())
    (folder / "both.pem").write_bytes(cert.private_key_and_cert_chain_pem.bytes())
    key = load_pem_private_key(cert.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim"))
    (folder / "locked.pem").write_bytes(locked)
    (folder / "other.pem").write_bytes(authority.issue_cert("127.0.0.2").private_key_pem.bytes())
    (folder / "authority.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "text.pem").write_text("no certificate")
    return folder


def read(folder: Path, values: Mapping[str, Any]) -> SSL:
    files = {name: folder / value for name, value in values.items() if str(value).endswith(".pem")}
    return SSL(**{"enabled": True, **values, **files})


USABLE: list[dict[str, Any]] = [
    {"certfile": "both.pem"},
    {"certfile": "cert.pem", "keyfile": "key.pem"},
    {"certfile": "cert.pem", "keyfile": "locked.pem", "keyfile_password": "geheim"},
    {"certfile": "both.pem", "ca_certs": "authority.pem", "cert_reqs": 2},
    {"certfile": "both.pem", "ciphers": "ECDHE+AESGCM"},
]


@pytest.mark.parametrize("values", USABLE, ids=str)
def test_certificate_is_usable(values: dict[str, Any], folder: Path) -> None:
    tls.check(read(folder, values))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"certfile": "none.pem"}, "none.pem', which cannot be read"),
    ({"certfile": "both.pem", "ca_certs": "none.pem"}, "api_server.ssl.ca_certs is"),
    ({"certfile": "text.pem"}, "without a password, cannot be used: "),
    ({"certfile": "cert.pem"}, "and the key in"),
    ({"certfile": "cert.pem", "keyfile": "other.pem"}, "other.pem', without a password, cannot be used"),
    ({"certfile": "cert.pem", "keyfile": "locked.pem"}, "without a password"),
    ({"certfile": "cert.pem", "keyfile": "locked.pem", "keyfile_password": "wrong"}, "with a password"),
    ({"certfile": "cert.pem", "keyfile": "locked.pem", "keyfile_password": "x" * 2000}, "with a password"),
    ({"certfile": "both.pem", "ciphers": "NONE-SUCH"}, "api_server.ssl.ciphers is 'NONE-SUCH'"),
    ({"certfile": "both.pem", "ca_certs": "key.pem", "cert_reqs": 2}, "key.pem', which holds no certificate"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=str)
def test_certificate_that_cannot_be_used_is_refused_with_a_sentence(
    values: dict[str, Any], words: str, folder: Path
) -> None:
    with pytest.raises(ConfigException) as caught:
        tls.check(read(folder, values))
    message = caught.value.message
    assert words in message
    assert message.isprintable()
    assert "geheim" not in message
    assert "wrong" not in message


def test_without_tls_uvicorn_is_told_nothing_of_it() -> None:
    tls.check(SSL())
    assert tls.arguments(SSL()) == {}

"""Addresses of Tritons as people write them."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from adapter.exceptions import ConfigException
from adapter.kinds import WrongKind
from adapter.triton.address import HEADERS, Address, Replica, Target, Tls, parse

READ = [
    ("grpc://host:8001", [Target("host", 8001)], False),
    ("host:8001", [Target("host", 8001)], False),
    ("grpcs://Host.example:1", [Target("host.example", 1)], True),
    ("a:1,b:2", [Target("a", 1), Target("b", 2)], False),
    ("grpcs://a:1 , grpcs://b:2", [Target("a", 1), Target("b", 2)], True),
    ("a:1,a:1,grpc://a:1", [Target("a", 1)], False),
    ("[::1]:8001", [Target("::1", 8001)], False),
    ("dns:///triton-headless.ns.svc:8001", [Target("triton-headless.ns.svc", 8001, every=True)], False),
    ("dns:///a:1,b:2", [Target("a", 1, every=True), Target("b", 2)], False),
]


@pytest.mark.parametrize(("text", "targets", "secure"), READ)
def test_address_is_read(text: str, targets: list[Target], secure: bool) -> None:
    address = parse(text)
    assert list(address.targets) == targets
    assert address.secure is secure
    assert parse(str(address)) == address


REFUSED = [
    *("", " ", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:+1", "ho st:1", "::1:8001", "[::1:8001"),
    *("http://host:1", "grpc://", "grpc:host:1", "grpc://host:1/", "grpc://me@host:1", "host:1?x", "host:1#x"),
    *("dns://server/name:1", "dns:name:1", "dns:///name", "a:1,", ",a:1", "a:1,,b:1", "a:1;b:2", "h\0:1"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_other_text_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(ConfigException, match=r"cannot be the address of a Triton: write grpc://host:8001"):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        address = parse(text)
    except ConfigException:
        return
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "tls", "reason"),
    [
        ("grpc://a:1,grpcs://b:1", Tls(), "with TLS (grpcs://) and without (grpc://)"),
        ("grpc://a:1", Tls(ca=Path("ca.pem")), "without TLS, but triton.tls.ca is set"),
        ("grpcs://a:1", Tls(key=Path("key.pem")), "triton.tls.key is set without the certificate"),
    ],
)
def test_contradictions_are_refused(text: str, tls: Tls, reason: str) -> None:
    with pytest.raises(ConfigException) as caught:
        parse(text, tls)
    assert reason in caught.value.message


def test_tls_is_on_where_anything_of_it_is_set() -> None:
    assert parse("dns:///name:1", Tls(server_name="triton")).secure
    assert parse("host:1", Tls(server_name="triton")).server_name(Replica("10.0.0.1", 1, "host")) == "triton"
    assert parse("grpcs://host:1").server_name(Replica("10.0.0.1", 1, "host")) == "host"


def test_every_address_of_a_name_is_a_replica() -> None:
    found = [(socket.AF_INET, None, 0, "", (host, 1)) for host in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]
    replicas = Target("name", 1, every=True).replicas(found)
    assert [str(replica) for replica in replicas] == ["10.0.0.1:1", "10.0.0.2:1"]
    assert {replica.name for replica in replicas} == {"name"}
    assert [str(replica) for replica in parse("dns:///127.0.0.1:7,127.0.0.1:8,[::1]:9").replicas()] == [
        "127.0.0.1:7",
        "127.0.0.1:8",
        "[::1]:9",
    ]


def test_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(ConfigException, match=r"dns:///nobody\.invalid:1 cannot be resolved: .*\."):
        parse("dns:///nobody.invalid:1").replicas()


def test_files_of_tls_are_tried_when_the_server_starts(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, own, other, empty = (tmp_path / name for name in ("ca.pem", "own.pem", "other.pem", "empty.pem"))
    ca.write_bytes(authority.cert_pem.bytes())
    own.write_bytes(authority.issue_cert("x").private_key_and_cert_chain_pem.bytes())
    other.write_bytes(authority.issue_cert("y").private_key_pem.bytes())
    empty.write_text("")
    assert parse("h:1").context() is None
    context = parse("h:1", Tls(ca=ca, certificate=own)).context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    for tls, reason in [
        (Tls(ca=tmp_path / "none.pem"), "triton.tls.ca is .*none.pem', which cannot be read"),
        (Tls(ca=empty), "triton.tls.ca is .*empty.pem', which holds no certificate"),
        (
            Tls(certificate=own, key=other),
            "The certificate in .*own.pem' and the key in .*other.pem'.* cannot be shown",
        ),
        (Tls(certificate=tmp_path), "triton.tls.certificate is .*, which cannot be read"),
    ]:
        with pytest.raises(ConfigException, match=reason):
            parse("h:1", tls).context()


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        ({"triton-grpc-protocol-key": "a b"}, {"triton-grpc-protocol-key": "a b"}),
        ("", {}),  # a variable that is passed on without a value
        ("a=1,b=x=y, c = z ", {"a": "1", "b": "x=y", "c": "z"}),
    ],
)
def test_headers_are_read(value: Any, headers: dict[str, str]) -> None:
    assert HEADERS.read(value) == headers
    assert parse("h:1", headers=headers).metadata == tuple(headers.items())
    assert "x=y" not in repr(Address((), metadata=tuple(headers.items())))


@pytest.mark.parametrize(
    "value",
    [
        1,
        "a",
        "a=",
        "=a",
        "A=1",
        "a b=1",
        ":path=x",
        "grpc-timeout=1",
        "a-bin=1",
        "a=ä",
        {"a": "b\r\nc"},
        {"a": 1},
        ["a"],
    ],
)
def test_other_headers_are_refused(value: Any) -> None:
    with pytest.raises(WrongKind):
        HEADERS.read(value)

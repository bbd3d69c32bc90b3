"""Which Tritons a runner is sent to, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import adapter
from adapter.exceptions import ConfigException
from adapter.layers import load
from adapter.server.elsewhere import check, place_of
from adapter.settings import Triton


class Twice(adapter.Runnable):
    @adapter.Runnable.method
    def run(self, x: Any) -> Any:
        return 2 * x


def service() -> adapter.Service:
    one, here = adapter.Runner(Twice, name="one"), adapter.Runner(Twice, name="here", embedded=True)
    return adapter.Service("s", runners=[one, here, adapter.triton.Runner("coded", "grpc://coded:8001")])


def triton(options: str) -> Triton:
    return load(None, {"ADAPTER_CONFIG_OPTIONS": options}).settings.triton


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ("", [None, None, "grpc://coded:8001"]),
        ("triton.url=all:1", ["all:1", "all:1", "grpc://coded:8001"]),
        ("triton.url=all:1 triton.runners.one.url=own:1", ["own:1", "all:1", "grpc://coded:8001"]),
        ("triton.runners.coded.url=own:1", [None, None, "own:1"]),  # settings are stronger than code
        ("triton.url=all:1 triton.runners.one.url=~", ["all:1", "all:1", "grpc://coded:8001"]),
    ],
)
def test_runner_is_sent_to_its_own_tritons_or_those_of_all(options: str, places: list[str | None]) -> None:
    given = triton(options)
    assert [place_of(runner.spec, given) for runner in service().runners] == places


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "triton.url=h:1 triton.runners.three.url=h:1",
            "the runner 'three', but the service 's' has one, here, coded",
        ),
        ("triton.url=h:1 triton.runners.here.url=h:1", "'here', which is embedded: it runs in the front"),
        (
            "triton.runners.coded.url=h:1",
            "The runner 'one' has no Triton: set triton.url (--triton) for all",
        ),
        ("triton.url=grpcs://h:1 triton.tls.ca=/none.pem", "triton.tls.ca is '/none.pem', which cannot be read"),
        ("triton.url=grpc://h:1 triton.tls.ca=/none.pem", "'grpc://h:1' is without TLS, but triton.tls.ca is set"),
        ("triton.url=h:1 triton.tls.key=/k", "triton.tls.key is set without the certificate"),
    ],
)
def test_what_does_not_go_together_is_refused(options: str, reason: str) -> None:
    with pytest.raises(ConfigException) as caught:
        check(service(), triton(options))
    assert reason in caught.value.message


def test_what_goes_together_is_taken() -> None:
    check(service(), triton("triton.url=dns:///h:1 triton.runners.one.url=a:1,b:2"))


def test_settings_of_runners_survive_the_way_to_a_front(tmp_path: Path) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text(
        "triton:\n  url: a:1\n  headers: {triton-grpc-protocol-x: 'a,b'}\n  tls: {ca: ca.pem}\n"
        "  runners:\n    One: {url: 'b:1,c:1'}\n    two: {url: null}\n    three:\n"
    )
    found = load(file, {"ADAPTER_CONFIG_OPTIONS": "triton.runners.four.url=grpc://d:1"}).settings
    assert {name: runner.url for name, runner in found.triton.runners.items()} == {
        "one": "b:1,c:1",
        "two": None,
        "four": "grpc://d:1",
    }
    assert found.triton.headers == {"triton-grpc-protocol-x": "a,b"}
    assert found.triton.tls.ca == tmp_path / "ca.pem"
    assert type(found).from_json(found.to_json()) == found
    assert "a,b" not in repr(found)

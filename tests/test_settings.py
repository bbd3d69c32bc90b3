from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapter import kinds
from adapter.kinds import Kind, WrongKind
from adapter.settings import (
    SSL,
    ApiServer,
    Batching,
    MethodBatching,
    Otlp,
    RunnerResources,
    Runners,
    RunnerSettings,
    Settings,
    Tracing,
    flat,
    made,
)

SET = Settings(
    api_server=ApiServer(workers=3, ssl=SSL(True, Path("/a/cert.pem"), keyfile_password="ä\n")),
    runners=Runners(
        defaults=RunnerSettings(batching=Batching(max_batch_size=5)),
        every=RunnerSettings(batching=Batching(enabled=False)),
        named={
            "x.y": RunnerSettings(
                resources=RunnerResources(cpu=0.5, nvidia_gpu=(2, 4)),
                runnable_method_configs={"predict": MethodBatching(max_latency_ms=1.5)},
            ),
            "all": RunnerSettings(resources=RunnerResources(cpu="system", nvidia_gpu=0.5)),
        },
    ),
    tracing=Tracing(exporter_type="otlp", excluded_urls=("/a",), otlp=Otlp(headers={"authorization": "x"})),
)


def test_defaults_are_those_of_a_server_for_this_machine_alone() -> None:
    server = Settings().api_server
    assert (server.http.host, server.http.port, server.workers, server.backlog) == ("127.0.0.1", 3000, None, 2048)
    assert (server.traffic.timeout, server.traffic.max_concurrency) == (60.0, None)
    assert (server.metrics.namespace, server.logging.format) == ("adapter_api_server", "auto")
    assert not server.ssl.enabled
    assert not server.http.cors.enabled


@pytest.mark.parametrize("settings", [Settings(), SET])
def test_json_takes_settings_to_another_process_as_they_are(settings: Settings) -> None:
    assert Settings.from_json(settings.to_json()) == settings


def test_keys_lead_to_every_setting_of_a_record_and_back() -> None:
    runner = SET.runners.named["x.y"]
    keys = flat(runner)
    assert keys[("resources", "nvidia.com/gpu")] == (2, 4)
    assert keys[("runnable_method_configs", "predict", "max_latency_ms")] == 1.5
    assert made(RunnerSettings, keys) == runner


READ: list[tuple[Kind, Any, Any]] = [
    (kinds.CPU, 2, 2.0),
    (kinds.CPU, "500m", 0.5),
    (kinds.CPU, "system", "system"),
    (kinds.GPUS, 0, 0.0),
    (kinds.GPUS, [2, 4], (2, 4)),
    (kinds.GPUS, 0.5, 0.5),
    (kinds.GPUS, [], ()),
    (kinds.STRINGS, "GET, POST", ("GET", "POST")),
    (kinds.STRINGS, ["GET"], ("GET",)),
    (kinds.BUCKETS, [1, 2.5], (1.0, 2.5)),
    (kinds.SECONDS, 1, 1.0),
    (kinds.whole(0, 5), 5, 5),
    (kinds.optional(kinds.BOOL), None, None),
    (kinds.choice(17, 2), 2, 2),
    (kinds.PATH, "~root/x", Path("~root/x").expanduser()),
]


@pytest.mark.parametrize(("kind", "value", "expected"), READ)
def test_value_is_read_as_its_kind(kind: Kind, value: Any, expected: Any) -> None:
    read = kind.read(value)
    assert read == expected
    assert type(read) is type(expected)


REFUSED: list[tuple[Kind, list[Any]]] = [
    (kinds.CPU, [0, -1, "0m", "m", "1.5m", "500", True, None, [], float("nan"), float("inf"), 10**400]),
    (kinds.GPUS, [-1, "1", [-1], [1, 1], [0.5], [True], {}, float("nan")]),
    (kinds.STRING, ["", 5, None, "a\n", "\0", "\ud800"]),
    (kinds.STRINGS, ["", "a,,b", 5, [5], [""], {"a": 1}]),
    (kinds.BUCKETS, [[], [2, 1], [1, 1], 1, ["1"], [float("nan")], [True]]),
    (kinds.SECONDS, [0, -1, "1", True, 1e300, float("nan")]),
    (kinds.whole(1, 5), [0, 6, 1.0, "1", True, 10**30]),
    (kinds.whole(0), [-1, 2**31]),
    (kinds.number(0, 1), [-0.1, 1.1, "1"]),
    (kinds.BOOL, [0, 1, "true", None]),
    (kinds.choice("a", "b"), ["c", 1, None, ["a"], {}]),
    (kinds.choice(17, 2), [17.0, True, "17"]),
    (kinds.PATTERN, ["(", "", "(?P<", 5]),
    (kinds.PREFIX, ["", "1a", "a-b", "ä", 5]),
    (kinds.PATH, ["", 5, "a\0b"]),
    (kinds.TEXTS, [[], {"a": 1}, {"": "a"}, "a"]),
]


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in REFUSED for value in values], ids=lambda v: repr(v)[:30]
)
def test_value_of_another_kind_is_refused(kind: Kind, value: Any) -> None:
    with pytest.raises(WrongKind):
        kind.read(value)

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import adapter
from adapter.exceptions import ConfigException
from adapter.layers import OPTIONS, load
from adapter.resources import Resources
from adapter.settings import Runners
from adapter.tuning import tune, with_settings


class Two(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu", "nvidia.com/gpu")

    @adapter.Runnable.method(batchable=True)
    def first(self, x: Any) -> Any:
        return x

    @adapter.Runnable.method(batchable=True)
    def second(self, x: Any) -> Any:
        return x


class Single(adapter.Runnable):
    SUPPORTS_CPU_MULTI_THREADING = True

    @adapter.Runnable.method
    def run(self, x: Any) -> Any:
        return x


def settings(tmp_path: Path, text: str = "", options: str = "") -> Runners:
    file = tmp_path / "adapter.yaml"
    file.write_text(text)
    return load(file, {OPTIONS: options}).settings.runners


# what stands where, weakest first: code, the file on all runners, the file on `r`, the environment -> first, second
LAYERS: list[tuple[Mapping[str, Any], str, str, str, tuple[int, int]]] = [
    ({}, "", "", "", (100, 100)),
    ({}, "7", "", "", (7, 7)),
    ({"max_batch_size": 8}, "7", "", "", (8, 8)),
    ({"method_configs": {"first": {"max_batch_size": 9}}}, "7", "", "", (9, 7)),
    ({"max_batch_size": 8, "method_configs": {"first": {"max_batch_size": 9}}}, "7", "", "", (9, 8)),
    ({"max_batch_size": 8, "method_configs": {"first": {"max_batch_size": None}}}, "7", "", "", (8, 8)),
    ({"max_batch_size": 8, "method_configs": {"first": {"max_batch_size": 9}}}, "7", "6", "", (6, 6)),
    ({"max_batch_size": 8}, "7", "6, method_configs: {second: {max_batch_size: 5}}", "", (6, 5)),
    ({}, "", "6, method_configs: {second: {max_batch_size: 5}}", "runners.max_batch_size=4", (4, 4)),
    ({"max_batch_size": 8}, "7", "6", "runners.r.method_configs.first.max_batch_size=3", (3, 6)),
    ({"max_batch_size": 8}, "7", "", "runners.max_batch_size=2", (2, 2)),
]


@pytest.mark.parametrize(("code", "everywhere", "named", "options", "expected"), LAYERS)
def test_batch_size_comes_from_the_strongest_layer(
    code: Mapping[str, Any], everywhere: str, named: str, options: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    lines = [f"  max_batch_size: {everywhere}"] if everywhere else []
    lines += [f"  r: {{max_batch_size: {named}}}"] if named else []
    spec = adapter.Runner(Two, name="r", **code).spec
    found = with_settings(spec, settings(tmp_path, "\n".join(["runners:", *lines]), options))
    assert tuple(m.batching.max_batch_size for m in found.methods.values()) == expected


def test_without_settings_nothing_changes() -> None:
    for code in ({}, {"cpu": 2, "nvidia_gpu": 1, "max_latency_ms": 5, "custom_resources": {"x": 1}}):
        spec = adapter.Runner(Two, name="r", **code).spec  # type: ignore[arg-type]  # a mapping of any values
        assert with_settings(spec, Runners()) == spec


RESOURCES: list[tuple[Mapping[str, Any], str, Resources]] = [
    ({}, "resources: {cpu: 3}", Resources(3.0)),
    ({"cpu": 2}, "resources: {cpu: 3}", Resources(2)),
    ({"cpu": 2}, "r: {cpu: 500m}", Resources(0.5)),
    ({"cpu": 2, "nvidia_gpu": 1}, "r: {nvidia_gpu: 0}", Resources(2, 0)),
    ({"gpu": 1}, "resources: {nvidia.com/gpu: 2}", Resources(None, 1)),
    ({"gpu": 1}, "r: {resources: {nvidia.com/gpu: [2, 4]}}", Resources(None, (2, 4))),
]


@pytest.mark.parametrize(("code", "text", "expected"), RESOURCES)
def test_resources_come_from_the_strongest_layer(
    code: Mapping[str, Any], text: str, expected: Resources, tmp_path: Path
) -> None:
    spec = adapter.Runner(Two, name="r", **code).spec
    assert with_settings(spec, settings(tmp_path, f"runners:\n  {text}")).resources == expected


def test_batching_that_is_disabled_makes_methods_that_are_not_batchable(tmp_path: Path) -> None:
    text = "runners:\n  batching: {enabled: false}\n  r: {batching: {enabled: true}}"
    found = settings(tmp_path, text)
    assert not any(m.signature.batchable for m in with_settings(adapter.Runner(Two).spec, found).methods.values())
    spec = adapter.Runner(Two, name="r").spec
    assert all(m.signature.batchable for m in with_settings(spec, found).methods.values())


def test_timeout_of_a_batch_is_set(tmp_path: Path) -> None:
    spec = adapter.Runner(Two, name="r").spec
    assert with_settings(spec, settings(tmp_path, "runners: {traffic: {timeout: 5}}")).call_timeout_s == 5.0


# weakest first: the file on all runners, code, the file on `r`, the environment
ISOLATED: list[tuple[str, Mapping[str, Any], str, bool]] = [
    ("", {}, "", True),
    ("isolated: false", {}, "", False),
    ("isolated: false", {"isolated": True}, "", True),
    ("isolated: true", {"isolated": False}, "", False),
    ("r: {isolated: true}", {"isolated": False}, "", True),
    ("r: {isolated: true}", {}, "runners.r.isolated=false", False),
    ("traffic: {timeout: 5}", {"isolated": False}, "", False),
]


@pytest.mark.parametrize(("text", "code", "options", "expected"), ISOLATED)
def test_process_of_its_own_comes_from_the_strongest_layer(
    text: str, code: Mapping[str, Any], options: str, expected: bool, tmp_path: Path
) -> None:
    found = settings(tmp_path, f"runners: {{{text}}}", options)
    assert with_settings(adapter.Runner(Two, name="r", **code).spec, found).isolated is expected


def test_limit_on_the_calls_of_a_runner_in_the_stub_is_refused(tmp_path: Path) -> None:
    message = r"runner 'r' do not go together: nobody can end its calls after a traffic\.timeout \(5 s\), since"
    for code, text in (({}, "isolated: false, "), ({"isolated": False}, "")):
        spec = adapter.Runner(Two, name="r", **code).spec  # type: ignore[arg-type]  # a mapping of any values
        with pytest.raises(ConfigException, match=message):
            with_settings(spec, settings(tmp_path, f"runners: {{r: {{{text}traffic: {{timeout: 5}}}}}}"))


def test_generator_is_not_moved_into_the_stub_by_a_setting(tmp_path: Path) -> None:
    class Talking(adapter.Runnable):
        @adapter.Runnable.method
        def tokens(self, n: int) -> Iterator[int]:
            yield n

    found = settings(tmp_path, "runners: {isolated: false}")
    with pytest.raises(ConfigException, match=r"'talking' do not go together: .* tokens\(\) is a generator"):
        with_settings(adapter.Runner(Talking).spec, found)
    with_settings(adapter.Runner(Talking, isolated=True).spec, found)
    with_settings(adapter.Runner(Talking, embedded=True).spec, found)


def test_wait_for_a_full_batch_is_set_for_all_for_one_and_for_a_method(tmp_path: Path) -> None:
    text = "runners:\n  max_wait_ms: 1\n  r: {max_wait_ms: 2, runnable_method_configs: {second: {max_wait_ms: 0}}}"
    found = settings(tmp_path, text)

    def waits(name: str, **code: Any) -> list[float]:
        spec = adapter.Runner(Two, name=name, **code).spec
        return [m.batching.max_wait_ms for m in with_settings(spec, found).methods.values()]

    assert waits("other") == [1, 1]
    assert waits("other", method_configs={"first": {"max_wait_ms": 7}}) == [7, 1]
    assert waits("r", max_wait_ms=9) == [2, 0]


def test_settings_that_do_not_go_together_are_told_with_their_runner(tmp_path: Path) -> None:
    spec = adapter.Runner(Two, name="r", max_wait_ms=50).spec
    with pytest.raises(
        ConfigException, match=r"settings of the runner 'r' do not go together: max_wait_ms is 50, .* [(]20[)]"
    ):
        with_settings(spec, settings(tmp_path, "runners: {r: {max_latency_ms: 20}}"))
    with pytest.raises(ConfigException, match="custom_resources has 'cpu'"):
        with_settings(spec, settings(tmp_path, "runners: {r: {custom_resources: {cpu: 2}}}"))


def test_runners_of_a_service_are_tuned_where_code_has_hold_of_them(tmp_path: Path) -> None:
    runner = adapter.Runner(Two, name="r")
    held = runner.first
    tune(adapter.Service("s", runners=[runner]), settings(tmp_path, "runners: [{name: R, max_batch_size: 3}]"))
    assert held.max_batch_size == runner.second.max_batch_size == 3
    assert runner.spec.methods["first"] is held.config


def test_settings_of_what_is_not_there_are_refused(tmp_path: Path) -> None:
    service = adapter.Service("s", runners=[adapter.Runner(Two, name="r"), adapter.Runner(Single)])
    with pytest.raises(ConfigException, match=r"the runner 'rr', but the service 's' has r, single\."):
        tune(service, settings(tmp_path, "runners: {rr: {cpu: 1}}"))
    with pytest.raises(ConfigException, match=r"the method 'frst' of the runner 'r', but it has first, second\."):
        tune(service, settings(tmp_path, "runners: {r: {method_configs: {frst: {max_batch_size: 1}}}}"))
    with pytest.raises(ConfigException, match=r"the runner 'r', but the service 't' has none\."):
        tune(adapter.Service("t"), settings(tmp_path, "runners: {r: {cpu: 1}}"))


def test_settings_that_change_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("adapter").propagate = True
    service = adapter.Service("s", runners=[adapter.Runner(Single)])
    with caplog.at_level(logging.WARNING):
        tune(service, settings(tmp_path, "runners: {single: {max_batch_size: 2}}"))
    assert "none of its methods is batchable" in caplog.messages[0]

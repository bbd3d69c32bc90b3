"""The scenarios themselves: what they start answers, and answers rightly; how fast is not looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapter.triton.installation import Installation
from benchmarks import __main__ as command
from benchmarks import answers, load, plot
from benchmarks.comparison import Comparison, Contender, Effort
from benchmarks.exceptions import BenchmarkError
from benchmarks.findings import Findings, Ratio
from benchmarks.load import Sample
from benchmarks.scenarios import batching, decoding, larger, scenarios, small, soak, worker
from benchmarks.stage import Stage

QUICK = Effort(rounds=1, seconds=1, warm_up_s=1, connections=(2,))


@pytest.fixture
def stage(installation: Installation) -> Iterator[Stage]:
    with Stage.open() as opened:
        yield opened


def prepare(stage: Stage, contender: Contender) -> None:
    load.prepare(contender.url, contender.headers, contender.samples, stage.folder / contender.key)


def echoes(stage: Stage) -> list[Contender]:
    yardstick = stage.uvicorn("benchmarks.fronts.echo:app")
    ours = stage.adapter("benchmarks.services.echo:svc")
    return [
        Contender("a", "Starlette", yardstick, "/echo", small.ECHOED),
        Contender("b", "adapter", ours, "/echo", small.ECHOED),
    ]


def test_comparison_is_measured_and_written(installation: Installation, tmp_path: Path) -> None:
    """The smallest scenario from end to end, as `make bench` runs it, under a name that the page knows."""
    scenario = Comparison("small", "Echo", echoes, (Ratio("b", "a"),), one_at_a_time=True)
    findings = command.measure(scenario, QUICK)
    command.write(findings, tmp_path)
    command.write(findings, tmp_path)  # a second time over the first
    assert [(m.key, m.connections) for m in findings.measurements] == [("a", 2), ("b", 2)]
    assert all(m.requests_per_s > 0 and 0 < m.p50_ms <= m.p99_ms for m in findings.measurements)
    assert [check.name for check in findings.checks] == ["req/s b/a at 2"]
    assert json.loads((tmp_path / "small.json").read_text()) == json.loads(json.dumps(findings.to_dict()))
    assert "<svg" in (tmp_path / "small.svg").read_text()
    assert "| (b) | adapter" in (tmp_path / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "small.json", "small.svg"]


def test_small_requests_are_answered(stage: Stage) -> None:
    contenders = small.contenders(1)(stage)
    assert [contender.key for contender in contenders] == ["a", "b", "c", "d", "e"]
    for contender in contenders:
        prepare(stage, contender)
    (front,) = contenders[2].server.workers()
    assert b"adapter.server.front" in Path(f"/proc/{front}/cmdline").read_bytes()


def test_larger_work_is_answered(stage: Stage) -> None:
    servers = larger.start(stage)
    for endpoint in larger.ENDPOINTS:
        for contender in endpoint.contenders(*servers):
            prepare(stage, contender)


def test_expensive_bodies_are_answered(stage: Stage) -> None:
    servers = decoding.start(stage)
    for endpoint in decoding.ENDPOINTS:
        for contender in endpoint.contenders(*servers):
            prepare(stage, contender)


def test_batches_and_calls_alone_are_answered(stage: Stage) -> None:
    for contender in batching.contenders(stage):
        prepare(stage, contender)


def test_our_worker_and_a_model_by_hand_answer_the_same(stage: Stage) -> None:
    for contender in worker.contenders(stage):
        prepare(stage, contender)


def test_soak_follows_every_process(stage: Stage, tmp_path: Path) -> None:
    findings = soak.Soak(most=3).run(stage, replace(QUICK, requests=100), {"CPU": "x", "CPUs": "2"})
    assert [course.name for course in findings.courses] == ["front", "worker", "stub", "engine", "launcher"]
    assert all(value > 1 for course in findings.courses for _, value in course.points)
    assert all(check.met for check in findings.checks)
    assert Findings.from_dict(json.loads(json.dumps(findings.to_dict()))) == findings
    plot.draw(findings, tmp_path / "soak.svg")
    assert "launcher" in (tmp_path / "soak.svg").read_text()


def test_wrong_answer_fails_the_run(stage: Stage, tmp_path: Path) -> None:
    server = stage.uvicorn("benchmarks.fronts.echo:app")
    url = f"{server.url}/echo"
    with pytest.raises(BenchmarkError, match="answered sample 0 wrongly, with 200: 1"):
        load.prepare(url, {}, [Sample(b"1", answers.same_json(2))], tmp_path)
    load.prepare(url, {}, [Sample(b"1", answers.same_json(1)), Sample(b"2", answers.same_json(2))], tmp_path)
    assert load.run(url, tmp_path, mode="check", connections=2, seconds=1, threads=2).compared > 0
    (tmp_path / "answer-1").write_bytes(b"3")  # as if the second connection were given another's answer
    with pytest.raises(BenchmarkError, match=r"at 2 connections: Of \d+ answers, \d+ were wrong"):
        load.run(url, tmp_path, mode="check", connections=2, seconds=1, threads=2)
    with pytest.raises(BenchmarkError, match="of status"):
        load.run(f"{server.url}/nothing", tmp_path, mode="measure", connections=2, seconds=1)


def test_server_that_cannot_start_says_why(stage: Stage) -> None:
    with pytest.raises(
        BenchmarkError, match=r'ended with \d+ at its start:\n.*import module "benchmarks.fronts.nowhere"'
    ):
        stage.uvicorn("benchmarks.fronts.nowhere:app")


def test_scenarios_have_names_of_their_own() -> None:
    found = scenarios()
    assert next(iter(found)) == "small"
    assert all(name == scenario.name and name.isidentifier() for name, scenario in found.items())
    assert not found["peers"].by_default


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nothing"], "There is no scenario 'nothing'; there are small, workers"),
        (["run", "small", "--connections", "1,x"], "'1,x' is not a list of numbers"),
        (["profile", "memory", "a", "-o", "x.svg"], "memory has no contenders."),
    ],
)
def test_command_refuses(arguments: list[str], sentence: str) -> None:
    ended = CliRunner().invoke(command.main, arguments)
    assert ended.exit_code == 2
    assert sentence in ended.output

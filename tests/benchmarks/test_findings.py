from __future__ import annotations

import json

import pytest

from benchmarks.findings import Check, Difference, Findings, Measurement, Ratio
from benchmarks.load import Reading


def measured(key: str, connections: int, rate: float, p50: float = 1.0) -> Measurement:
    return Measurement(key, f"contender {key}", connections, rate, p50, 2 * p50, (rate,))


def test_measurement_takes_the_median_of_each_figure() -> None:
    readings = [Reading(100, 1, 3.0, 9.0), Reading(300, 1, 1.0, 50.0), Reading(200, 1, 2.0, 8.0)]
    found = Measurement.of("a", "echo", 16, readings)
    assert (found.requests_per_s, found.p50_ms, found.p99_ms) == (200, 2.0, 9.0)
    assert found.rounds == (100, 300, 200)
    assert found.spread == 1.0


def test_ratio_is_taken_at_each_number_of_connections_and_limited_at_one() -> None:
    measurements = [measured("b", 1, 90), measured("a", 1, 100), measured("b", 64, 80), measured("a", 64, 100)]
    assert Ratio("b", "a", at=64, floor=0.7, aim=0.9).of(measurements) == [
        Check("req/s b/a at 1", 0.9),
        Check("req/s b/a at 64", 0.8, floor=0.7, aim=0.9),
    ]


def test_ratio_of_latencies_at_one_number_of_connections_only() -> None:
    measurements = [measured("c", n, 1, p50=6.0) for n in (1, 16)] + [measured("e", n, 1, p50=2.0) for n in (1, 16)]
    assert Ratio("c", "e", "p50_ms", at=1, only=True, ceiling=3).of(measurements) == [
        Check("p50 c/e at 1", 3.0, ceiling=3)
    ]


def test_ratio_of_what_was_not_measured_is_left_out() -> None:
    assert Ratio("b", "a").of([measured("b", 1, 90)]) == []
    assert Ratio("b", "a", at=64, only=True).of([measured("b", 1, 90), measured("a", 1, 100)]) == []


@pytest.mark.parametrize(
    ("check", "met"),
    [
        (Check("x", 0.8), None),
        (Check("x", 0.8, aim=0.9), None),
        (Check("x", 0.8, floor=0.8), True),
        (Check("x", 0.79, floor=0.8), False),
        (Check("x", 1.05, ceiling=1.05), True),
        (Check("x", 1.06, ceiling=1.05), False),
        (Check("x", 2, floor=1, ceiling=3), True),
    ],
)
def test_check_is_met(check: Check, met: bool | None) -> None:
    assert check.met is met


def test_findings_come_back_from_json() -> None:
    checks = (Check("ratio", 0.5, floor=0.7, aim=0.9),)
    findings = Findings("small", "Small", {"CPU": "one"}, (measured("a", 1, 12.5),), checks, ("a note",))
    record = json.loads(json.dumps(findings.to_dict()))
    assert record["checks"][0]["met"] is False
    assert Findings.from_dict(record) == findings


def test_difference() -> None:
    measurements = [measured("a", 1, 90, p50=1.5), measured("b", 1, 100, p50=1.25)]
    assert Difference("a", "b", "p50_ms", at=1, ceiling=0.2).of(measurements) == [
        Check("p50 a - b at 1", 0.25, ceiling=0.2)
    ]

from __future__ import annotations

from dataclasses import replace

from benchmarks import report
from benchmarks.findings import Check, Findings, Measurement

FINDINGS = Findings(
    "small",
    "Small requests",
    {"CPU": "one of them", "date": "2030-01-01 00:00 UTC", "busy before": "2%"},
    (
        Measurement("a", "echo", 1, 12345.6, 0.091, 1.5, (12000, 12345.6, 13000)),
        Measurement("ours", "adapter, iris", 64, 987.4, 10, 20, (987.4,)),
    ),
    (Check("req/s a/b at 1", 0.756, floor=0.7, aim=0.95), Check("p50 a/b at 1", 3.2, ceiling=3), Check("rest", 1)),
    ("Something to know.",),
)


def test_table() -> None:
    assert report.table(FINDINGS) == "\n".join(
        [
            "|      | what          | connections |  req/s | p50 ms | p99 ms | spread |",
            "| ---- | ------------- | ----------: | -----: | -----: | -----: | -----: |",
            "| (a)  | echo          |           1 | 12,346 |   0.09 |   1.50 |     8% |",
            "| ours | adapter, iris |          64 |    987 |  10.00 |  20.00 |     0% |",
            "",
            "| figure         | found |  limit |  aim |        |",
            "| -------------- | ----: | -----: | ---: | -----: |",
            "| req/s a/b at 1 |  0.76 | >= 0.7 | 0.95 |    met |",
            "| p50 a/b at 1   |  3.20 |   <= 3 |      | MISSED |",
            "| rest           |  1.00 |        |      |        |",
            "",
            "- Something to know.",
        ]
    )


def test_page_names_the_machine_once_where_it_is_the_same() -> None:
    machine = {**FINDINGS.machine, "date": "x"}
    later = replace(FINDINGS, scenario="memory", title="Memory", measurements=(), machine=machine)
    other = replace(FINDINGS, title="Elsewhere", machine={**machine, "CPU": "another"})
    page = report.page([FINDINGS, later, other])
    assert page.count("CPU: one of them") == 1
    same = page.index("The same machine; x, the CPUs 2% busy before.")
    assert page.index("## Memory") < same < page.index("## Elsewhere")
    assert "CPU: another" in page
    assert "![Small requests](small.svg)" in page
    assert "memory.svg" not in page  # nothing to draw

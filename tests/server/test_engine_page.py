from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapter.server.engine_page import joined

PAGE = """# HELP a A.
# TYPE a gauge
a 1.0
# HELP cups_total Cups.
# TYPE cups_total counter
cups_total{kind="tea"} 2.0
cups_total{kind="milk"} 1.0
"""


def _numbers(page: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            assert f"{sample.name} {labels}" not in found
            found[f"{sample.name} {labels}"] = sample.value
    return found


def test_families_of_triton_follow() -> None:
    other = (
        "# HELP b B.\n# TYPE b gauge\nb 1\n\n# HELP a A.\n# TYPE a gauge\na 2\n# TYPE c summary\nc_sum 3\nc_count 3\n"
    )
    assert joined(PAGE, other) == f"{PAGE}# HELP b B.\n# TYPE b gauge\nb 1\n# TYPE c summary\nc_sum 3\nc_count 3\n"


def test_counters_of_one_name_are_added_up() -> None:
    other = "# HELP cups_total Cups.\n# TYPE cups_total counter\n"
    other += 'cups_total{kind="tea"} 40\ncups_total{kind="a\\"b\\\\c\\nd"} 7\n'
    numbers = _numbers(joined(PAGE, other))
    assert numbers["cups_total kind=tea"] == 42
    assert numbers["cups_total kind=milk"] == 1
    assert numbers['cups_total kind=a"b\\c\nd'] == 7
    assert numbers["a "] == 1


def test_labels_may_have_any_character() -> None:
    odd = "a\u2028b\x85c\x0bd\re"
    other = f'# HELP cups_total Cups.\n# TYPE cups_total counter\ncups_total{{kind="{odd}"}} 3\n'
    other += f'# HELP q Q.\n# TYPE q gauge\nq{{adapter_instance="i",adapter_mode="livesum",kind="{odd}"}} 4\n'
    numbers = _numbers(joined(PAGE, other))
    assert (numbers[f"cups_total kind={odd}"], numbers[f"q kind={odd}"]) == (3, 4)


def _gauges(name: str, mode: str, *values: str) -> str:
    lines = [f'{name}{{adapter_instance="i{n}",adapter_mode="{mode}"}} {v}\n' for n, v in enumerate(values)]
    return f"# HELP {name} Q.\n# TYPE {name} gauge\n{''.join(lines)}"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("livesum", 7), ("sum", 7), ("livemax", 4), ("max", 4), ("livemin", 1), ("min", 1)],
)
def test_gauges_become_one(mode: str, expected: float) -> None:
    # one worker has died
    assert _numbers(joined(PAGE, _gauges("q", mode, "2", "4", "Nan", "1"))) == {**_numbers(PAGE), "q ": expected}
    both = joined("# HELP q Q.\n# TYPE q gauge\nq 3\n", _gauges("q", mode, "2", "4", "1"))
    assert _numbers(both) == {"q ": expected + 3 if mode.endswith("sum") else expected}


def test_gauges_of_all_are_told_apart() -> None:
    assert _numbers(joined("", _gauges("q", "liveall", "2", "Nan", "1"))) == {"q pid=i0": 2, "q pid=i2": 1}


def test_a_gauge_of_which_nothing_is_left_is_not_there() -> None:
    assert joined("", _gauges("q", "livemax", "Nan")) == ""


_SPREAD = """# HELP size_bucket S.
# TYPE size_bucket counter
size_bucket{kind="x",le="10000000.0"} 3
size_bucket{kind="x",le="+Inf"} 5
# HELP size_count S.
# TYPE size_count counter
size_count{kind="x"} 5
# HELP size_sum S.
# TYPE size_sum gauge
size_sum{kind="x"} -1.5
"""
_OWN = """# HELP size Sizes.
# TYPE size histogram
size_bucket{kind="x",le="1e+07"} 1.0
size_bucket{kind="x",le="+Inf"} 1.0
size_count{kind="x"} 1.0
size_sum{kind="x"} 2.0
"""


def test_a_histogram_is_one_again() -> None:
    page = joined("", _SPREAD)
    assert [line for line in page.splitlines() if line.startswith("#")] == ["# HELP size S.", "# TYPE size histogram"]
    assert _numbers(page) == {
        "size_bucket kind=x,le=1e+07": 3,
        "size_bucket kind=x,le=+Inf": 5,
        "size_count kind=x": 5,
        "size_sum kind=x": -1.5,
    }


def test_histograms_are_added_up() -> None:
    assert list(_numbers(joined(_OWN, _SPREAD)).values()) == [4, 6, 6, 0.5]


def test_a_summary_is_one_again() -> None:
    page = joined("", _SPREAD[_SPREAD.index("# HELP size_count") :])
    assert "# TYPE size summary" in page.splitlines()
    assert _numbers(page) == {"size_count kind=x": 5, "size_sum kind=x": -1.5}


@pytest.mark.parametrize("other", [_SPREAD.replace("10000000.0", "1.0"), _gauges("size", "livesum", "1")])
def test_what_does_not_fit_is_left_out_and_said(other: str) -> None:
    page = joined(_OWN, other)
    assert page.startswith(_OWN)
    (comment,) = page.removeprefix(_OWN).splitlines()
    assert comment.startswith("# The ")
    assert comment.endswith("size of a Runnable is left out: that of the APIs is another.")

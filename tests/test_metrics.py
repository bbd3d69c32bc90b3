from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

import adapter
from adapter import metrics
from adapter.exceptions import ConfigException


def _value(name: str, **labels: str) -> float:
    """One number of the page."""
    found = [
        sample.value
        for family in metrics.text_string_to_metric_families()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def test_counter() -> None:
    orders = adapter.metrics.Counter("shop_orders_total", "Orders.", ["kind"])
    orders.labels("tea").inc()
    orders.labels(kind="tea").inc(2)
    orders.labels("coffee").inc(0)
    assert _value("shop_orders_total", kind="tea") == 3
    assert _value("shop_orders_total", kind="coffee") == 0


def test_counter_counts_exceptions() -> None:
    failures = metrics.Counter("shop_failures", "Failures.")
    with pytest.raises(KeyError), failures.count_exceptions():
        raise KeyError
    with pytest.raises(KeyError), failures.count_exceptions(ValueError):
        raise KeyError
    assert _value("shop_failures_total") == 1


def test_gauge() -> None:
    queue = metrics.Gauge("shop_queue", "Queue.", namespace="my", subsystem="own", unit="people")
    queue.set(3)
    queue.inc()
    queue.dec(2)
    with queue.track_inprogress():
        assert _value("my_own_shop_queue_people") == 3
    assert _value("my_own_shop_queue_people") == 2
    queue.set_to_current_time()
    assert _value("my_own_shop_queue_people") > 1e9


def test_histogram() -> None:
    sizes = metrics.Histogram("shop_sizes", "Sizes.", buckets=[1, 10])
    for size in (0.5, 1, 5, 50):
        sizes.observe(size)
    assert [_value("shop_sizes_bucket", le=bound) for bound in ("1.0", "10.0", "+Inf")] == [2, 3, 4]
    assert _value("shop_sizes_sum") == 56.5


def test_summary_as_a_decorator() -> None:
    seconds = metrics.Summary("shop_seconds", "Seconds.")

    @seconds.time()
    def work() -> int:
        return 7

    assert work() == 7
    assert work() == 7
    assert _value("shop_seconds_count") == 2


def test_a_name_leads_to_the_same_metric() -> None:
    first = metrics.Counter("shop_again", "Again.", ["a", "b"])
    assert metrics.Counter("shop_again", "In other words.", ("a", "b")) is first


def test_a_metric_in_a_pickle_is_that_of_its_name() -> None:
    one = metrics.Histogram("shop_pickled", "Pickled.", ["a"], buckets=(1.0, 2.0))
    assert pickle.loads(pickle.dumps(one)) is one
    labelled = pickle.loads(cloudpickle.dumps(one.labels("x")))
    labelled.observe(1)
    assert _value("shop_pickled_count", a="x") == 1


_WRONG = [
    ('Counter("wrong_a", "A.", registry=object())', "'wrong_a' cannot have a registry of its own"),
    ('Counter("wrong b", "B.")', "'wrong b' cannot be the name of a metric: use"),
    ('Counter("", "B.")', "'' cannot be the name of a metric"),
    ('Counter(7, "B.")', "7 cannot be the name of a metric"),
    ('Counter("wrong_b", None)', "The documentation of 'wrong_b' is None: give a sentence"),
    ('Histogram("wrong_c", "C.", buckets=[2, 1])', "The buckets of 'wrong_c' are [2, 1]: give numbers in rising order"),
    ('Histogram("wrong_c", "C.", buckets=[1, 1])', "give numbers in rising order"),
    ('Histogram("wrong_c", "C.", buckets=[])', "give numbers in rising order"),
    ('Histogram("wrong_c", "C.", buckets=[float("nan")])', "give numbers in rising order"),
    ('Histogram("wrong_c", "C.", buckets=[1, "x"])', "give numbers in rising order"),
    ('Histogram("wrong_c", "C.", buckets=7)', "The buckets of 'wrong_c' are 7: give numbers in rising order"),
    ('Gauge("wrong_d", "D.", multiprocess_mode="x")', "The multiprocess_mode of 'wrong_d' is 'x': there are livesum,"),
    ('Counter("wrong_e", "E.", ["le", "__x"])', "'__x' cannot be a label of 'wrong_e': it is taken"),
    ('Counter("wrong_e", "E.", ["a", "a"])', "'a' cannot be a label of 'wrong_e': it is taken"),
    ('Histogram("wrong_e", "E.", ["le"])', "'le' cannot be a label of 'wrong_e': it is taken"),
    ('Summary("wrong_e", "E.", ["quantile"])', "'quantile' cannot be a label of 'wrong_e': it is taken"),
    ('Counter("wrong_e", "E.", unit="m/s")', "'m/s' cannot be the unit: use"),
    ('Counter("wrong_e", "E.", ["é"])', "'é' cannot be the name of a label"),
    ('Counter("wrong_e", "E.", [1])', "1 cannot be the name of a label"),
    ('Counter("wrong_f", "F.", "kind")', "give a list, such as ['kind']"),
    ('Counter("taken", "T.", ["a"])', "give 'taken' another name"),
    ('Gauge("taken", "T.")', "There is a metric 'taken' already"),
    ('Gauge("taken_total", "T.")', "There is a metric 'taken' already"),
    ('Histogram("take", "T.", unit="n")\nmetrics.Gauge("take_n_sum", "T.")', "There is a metric 'take_n' already"),
    ('Counter("taken", "T.").labels("x")', "has no labels: name them when it is made"),
    ('Counter("labelled", "L.", ["a"]).inc()', "has labels: call `.labels(a=…)` first"),
    (
        'Counter("labelled", "L.", ["a"]).labels("x", "y")',
        "other labels than `.labels('x', 'y')` gives: call",
    ),
    ('Counter("labelled", "L.", ["a"]).labels(b=1)', "other labels than `.labels(b=1)` gives: call `.labels(a=…)`"),
    ('Counter("labelled", "L.", ["a"]).labels("x", a=1)', "other labels than `.labels('x', a=1)` gives"),
    ('Counter("labelled", "L.", ["a"]).labels()', "other labels than `.labels()` gives"),
    ('Counter("labelled", "L.", ["a"]).labels("x").labels("y")', "has its labels already"),
]


def _refusal(expression: str) -> str:
    metrics.Counter("taken", "T.")
    with pytest.raises(ConfigException) as refused:
        exec(f"metrics.{expression}", {"metrics": metrics})
    return str(refused.value)


@pytest.mark.parametrize(("expression", "says"), _WRONG)
def test_what_cannot_be_used_is_refused(expression: str, says: str) -> None:
    assert says in _refusal(expression)


_IN_A_WORKER = """
import json, sys
from adapter import ledger, metrics, worker_metrics
from adapter.exceptions import ConfigException
worker_metrics.use(ledger.Ledger(ledger.create(), lambda: None))
metrics.Counter("taken", "T.")
told = []
for expression in json.load(sys.stdin):
    try:
        exec(f"metrics.{expression}", {"metrics": metrics})
        told.append("")
    except ConfigException as error:
        told.append(str(error))
print(json.dumps(told))
"""


def test_a_worker_of_triton_refuses_it_with_the_same_sentences() -> None:
    expressions = [expression for expression, _ in _WRONG]
    told = subprocess.run(
        [sys.executable, "-c", _IN_A_WORKER],
        input=json.dumps(expressions),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    # the address of an object is not the same in another process
    assert [re.sub("0x[0-9a-f]+", "", text) for text in json.loads(told)] == [
        re.sub("0x[0-9a-f]+", "", _refusal(expression)) for expression in expressions
    ]


def test_a_counter_is_the_same_with_total_and_without() -> None:
    assert metrics.Counter("shop_same_total", "Same.") is metrics.Counter("shop_same", "Same.")


def test_the_value_of_a_label_is_any_text() -> None:
    odd = metrics.Gauge("shop_odd", "Odd.", ["text"])
    odd.labels("a\0b\ud800 ☕\n").set(1)
    assert _value("shop_odd", text="ab? ☕\n") == 1


_WORKER = """
import sys
from adapter import metrics
orders = metrics.Counter("orders", "Orders.", ["kind"])
queue = metrics.Gauge("queue", "Queue.")
times = metrics.Histogram("times", "Times.", buckets=[1.0])
for _ in range(int(sys.argv[1])):
    orders.labels("tea").inc()
    times.observe(0.5)
queue.set(int(sys.argv[1]))
sys.stdout.buffer.write(metrics.generate_latest())
"""


def _run(code: str, *arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_the_page_is_the_sum_over_processes(tmp_path: Path) -> None:
    folder = {metrics.FOLDER: str(tmp_path)}
    assert 'orders_total{kind="tea"} 2.0' in _run(_WORKER, "2", **folder)
    page = _run(_WORKER, "5", **folder)
    assert 'orders_total{kind="tea"} 7.0' in page
    assert 'times_bucket{le="1.0"} 7.0' in page
    assert "queue 7.0" in page
    assert len(list(metrics.text_string_to_metric_families(page))) == 3


_WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
from adapter import metrics
orders = metrics.Counter("orders", "Orders.", ["kind"])
orders.labels("tea").inc()
with metrics.Gauge("queue", "Queue.").track_inprogress():
    metrics.Histogram("times", "Times.").observe(1)
@metrics.Summary("seconds", "Seconds.").time()
def work():
    return "worked"
print(work(), metrics.generate_latest(), list(metrics.text_string_to_metric_families()))
"""


def test_metrics_do_nothing_where_prometheus_client_is_not_installed() -> None:
    assert _run(_WITHOUT) == "worked b'' []\n"

"""Dashboards and alerts: what they ask Prometheus for is what a real front and a real Triton export."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from adapter.triton.stubs import stubs_of
from tests.e2e.conftest import ROOT, Serve, wait_until
from tests.e2e.load import load

SERVICES = Path(__file__).parent / "services"
DASHBOARDS = sorted((ROOT / "deploy" / "dashboards").glob("*.json"))
ALERTS = ROOT / "deploy" / "alerts" / "adapter.yaml"
OPERATIONS = ROOT / "docs" / "operations.md"
OWN_LABELS = {"job", "instance"}  # those that Prometheus adds
MADE_BY_PROMETHEUS: dict[str, set[str]] = {"up": set()}
# a machine without a GPU exports none of these; their names are those of metrics.cc of Triton's core
OF_GPUS = {f"nv_gpu_{name}": {"gpu_uuid"} for name in ("utilization", "memory_used_bytes", "memory_total_bytes")}

Series = dict[str, set[str]]


def series_of(page: str) -> Series:
    """The names on a page, each with its labels."""
    found: Series = {}
    for name, labels in re.findall(r"^([a-z_]+)(\{.*\})? ", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.fixture(scope="module")
def exported(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What the pages of a front with an engine and of one whose Triton is elsewhere have, after every kind of fault."""
    folder = tmp_path_factory.mktemp("operations")
    options = ("--api-workers", "1", "--timeout", "10")
    served = serve("faulty.py:svc", *options, "--repository", str(folder), working_dir=SERVICES)
    assert served.post("/one", content="work").status_code == 200
    (server,) = served.children("tritonserver ")
    port = re.search(r"--grpc-port[= ](\d+)", Path(f"/proc/{server}/cmdline").read_text().replace("\0", " "))
    assert port is not None
    there = ("--triton", f"grpc://127.0.0.1:{port[1]}", "--manifest", str(folder / "manifest.json"))
    front = serve("faulty.py:svc", *options, *there, working_dir=SERVICES)
    assert front.post("/one", content="work").status_code == 200
    found = series_of(front.get("/metrics").text)

    def has(*names: str) -> Callable[[], bool]:
        def whether() -> bool:
            with contextlib.suppress(httpx.TransportError):  # the front was killed
                for name, labels in series_of(served.get("/metrics").text).items():
                    found.setdefault(name, set()).update(labels)
            return set(names) <= set(found)

        return whether

    with load(served.url, {"/one": 8}):
        while not has("adapter_runner_retry_total", "adapter_worker_restarts_total")():
            served.post("/one", content="exit")
            time.sleep(0.5)
    stub = next(stub for stub in stubs_of(server) if stub.entry.endswith("calm"))
    os.kill(stub.pid, signal.SIGKILL)
    os.kill(served.children("adapter.server.front")[0], signal.SIGKILL)
    wait_until(has("adapter_stub_restarts_total", "adapter_front_restarts_total"), 30, pause=0.2)
    os.kill(server, signal.SIGKILL)
    wait_until(has("adapter_engine_restarts_total"), 30, pause=0.2)
    return found


# ---- what is asked for ----------------------------------------------------------------------------------------------


def panels(dashboard: Any) -> Iterator[Any]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def of_dashboard(file: Path) -> Iterator[str]:
    dashboard = json.loads(file.read_text())
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "5m")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":  # label_values(the series, a label)
            series = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert series is not None
            yield f"count by ({series[2]}) ({series[1]})"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def every_expression() -> list[Any]:
    asked = [pytest.param(e, id=f"{file.stem} {n}") for file in DASHBOARDS for n, e in enumerate(of_dashboard(file))]
    return asked + [pytest.param(rule["expr"], id=rule["alert"]) for rule in rules()]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The names in an expression, each with the labels that are asked of it; fails where it cannot be read."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {matcher.name for matcher in node.matchers.matchers}))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            below = [name for name, _ in selectors(node.expr.prettify())]
            found.extend((name, set(node.modifier.labels)) for name in below)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


@pytest.mark.parametrize("expression", every_expression())
def test_expression_asks_for_what_there_is(expression: str, exported: Series) -> None:
    known = {**exported, **OF_GPUS, **MADE_BY_PROMETHEUS}
    asked = list(selectors(expression))
    assert asked
    for name, labels in asked:
        assert name in known, f"{name} is exported by nobody"
        assert labels <= known[name] | OWN_LABELS, f"{name} has no label {labels - known[name]}"


def test_misspelled_names_and_labels_would_be_found() -> None:
    assert list(selectors('sum by (model) (rate(a_total{x="1"}[5m])) / -b offset 1m')) == [
        ("a_total", {"model"}),
        ("a_total", {"x"}),
        ("b", set()),
    ]
    for broken in ("sum by (a (b)", "rate(a)", "histogram_quantile(b)", "nothing(a)", 'a{b="c}'):
        with pytest.raises(ValueError, match=r"."):
            list(selectors(broken))


# ---- their form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboard_can_be_imported(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert dashboard["schemaVersion"] >= 39  # of Grafana 11
    assert dashboard["id"] is None  # a number would be that of another one where it is imported
    assert re.fullmatch(r"[a-z-]{1,40}", dashboard["uid"])
    found = list(panels(dashboard))
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0


def test_every_alert_says_what_to_do() -> None:
    page = OPERATIONS.read_text().split("## Alerts")[1].split("\n## ")[0]
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert headings == {rule["alert"].lower() for rule in rules()}

"""The log as JSON and the traces of one running service, with a real Triton and a collector of OpenTelemetry."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.conftest import Serve, Served

SERVICE = """
import logging
import os
import time
import warnings

import adapter
from adapter.io import JSON, Text

logger = logging.getLogger("cafe")


class Barista(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)
    SUPPORTS_CPU_MULTI_THREADING = False

    def __init__(self) -> None:
        print("the machine is warm")

    @adapter.Runnable.method(batchable=False)
    def brew(self, kind: str) -> str:
        print("grinding\\nfor", kind)
        logger.info("brewing %s", kind)
        if kind == "mud":
            raise ValueError("no mud")
        return f"a {kind}"

    @adapter.Runnable.method(batchable=False)
    def rinse(self, kind: str) -> int:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logger.log(level, "rinsed %s\\n{\\"level\\": \\"forged\\"} ☕", kind)
            time.sleep(0.002)
        print(f"rinsed {kind}")
        return os.getpid()


barista = adapter.Runner(Barista, name="barista", cpu=2)
svc = adapter.Service("cafe", runners=[barista])


@svc.api(input=Text(), output=JSON())
async def order(kind: str) -> str:
    return await barista.brew.async_run(kind)


@svc.api(input=Text(), output=JSON())
async def rinse(kind: str) -> int:
    return await barista.rinse.async_run(kind)


@svc.api(input=Text(), output=JSON())
def order_slowly(kind: str) -> str:
    return barista.brew.run(kind)


@svc.api(input=Text(), output=JSON())
def spill(kind: str) -> str:
    logger.warning("it is wet")
    raise KeyError(kind)
"""

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass(frozen=True)
class Span:
    trace: str
    identity: str
    parent: str
    name: str


class _Collector(http.server.BaseHTTPRequestHandler):
    spans: list[Span]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-type"] == "application/json":  # Triton's
            sent = json.loads(body)["resourceSpans"]
            found = [span for resource in sent for scope in resource["scopeSpans"] for span in scope["spans"]]
            self.spans += [Span(s["traceId"], s["spanId"], s.get("parentSpanId", ""), s["name"]) for s in found]
        else:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for s in (s for scope in resource.scope_spans for s in scope.spans):
                    self.spans.append(Span(s.trace_id.hex(), s.span_id.hex(), s.parent_span_id.hex(), s.name))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[Span]]]:
    """The address of a collector, and what it has got."""
    found: list[Span] = []
    handler = type("Handler", (_Collector,), {"spans": found})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def cafe(spans: tuple[str, list[Span]], serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("cafe")
    (folder / "cafe.py").write_text(SERVICE)
    tracing = {"exporter_type": "otlp", "otlp": {"endpoint": spans[0]}}
    (folder / "adapter.yaml").write_text(json.dumps({"tracing": tracing}))
    env = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    return serve("cafe:svc", "--api-workers", "1", "--log-format", "json", working_dir=folder, env=env)


def _records(served: Served) -> list[dict[str, Any]]:
    return [json.loads(line) for line in list(served.lines)]


def _record(served: Served, **wanted: object) -> dict[str, Any]:
    """The record with these fields, once it is there."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for record in _records(served):
            if wanted.items() <= record.items():
                return record
        time.sleep(0.05)
    raise AssertionError(f"no record has {wanted}:\n{served.log}")


def _span(found: list[Span], trace: str, name: str) -> Span:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for span in list(found):
            if span.trace == trace and span.name == name:
                return span
        time.sleep(0.05)
    raise AssertionError(found)


def test_what_a_runnable_says_names_its_entry_and_its_request(cafe: Served) -> None:
    assert cafe.post("/order", content="tea", headers={"x-request-id": "mine-1"}).json() == "a tea"
    known = {"component": "runner", "entry": "cafe.barista", "level": "INFO"}
    _record(cafe, message="the machine is warm", logger="adapter.runner", **known)
    _record(cafe, message="grinding", logger="adapter.runner", request_id="mine-1", **known)
    _record(cafe, message="for tea", logger="adapter.runner", request_id="mine-1", **known)
    _record(cafe, message="brewing tea", logger="cafe", request_id="mine-1", **known)


def test_lines_of_two_instances_are_whole_and_each_names_its_own_request(cafe: Served) -> None:
    with ThreadPoolExecutor(8) as threads:
        kinds = [f"cup-{n}" for n in range(40)]
        instances = set(
            threads.map(lambda kind: cafe.post("/rinse", content=kind, headers={"x-request-id": kind}).json(), kinds)
        )
    assert len(instances) == 2
    _record(cafe, message=f"rinsed {kinds[-1]}")
    for kind in kinds:
        found = [r for r in _records(cafe) if r.get("request_id") == kind and r["component"] == "runner"]
        text = f'rinsed {kind}\n{{"level": "forged"}} ☕'
        levels = ("INFO", "WARNING", "ERROR", "CRITICAL")
        expected = [*((level, "cafe", text) for level in levels), ("INFO", "adapter.runner", f"rinsed {kind}")]
        assert [(r["level"], r["logger"], r["message"]) for r in found] == expected


def test_an_error_in_a_runnable_is_told_with_its_traceback(cafe: Served) -> None:
    assert cafe.post("/order", content="mud", headers={"x-request-id": "mine-2"}).status_code == 500
    record = _record(cafe, component="runner", level="ERROR", request_id="mine-2", entry="cafe.barista")
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("ValueError: no mud")
    _record(cafe, component="api:1", level="ERROR", request_id="mine-2")


def test_an_error_in_an_api_is_told_with_its_traceback(cafe: Served) -> None:
    assert cafe.post("/spill", content="x", headers={"x-request-id": "mine-3"}).status_code == 500
    record = _record(cafe, component="api:1", level="ERROR", request_id="mine-3", logger="adapter.server")
    assert record["exception"].endswith("KeyError: 'x'")
    _record(cafe, component="api:1", logger="cafe", message="it is wet", request_id="mine-3")


def test_the_access_log_has_fields(cafe: Served) -> None:
    cafe.post("/order", content="tea", headers={"x-request-id": "mine-4", "content-type": "text/plain"})
    record = _record(cafe, logger="adapter.access", request_id="mine-4")
    assert record["component"] == "api:1"
    assert (record["method"], record["path"], record["status"]) == ("POST", "/order", 200)
    assert (record["request_content_type"], record["request_content_length"]) == ("text/plain", 3)
    assert record["response_content_type"].startswith("application/json")
    assert record["duration_ms"] > 0


@pytest.mark.parametrize("path", ["/order", "/order_slowly"])
def test_one_trace_goes_from_http_to_triton(cafe: Served, spans: tuple[str, list[Span]], path: str) -> None:
    missing: AssertionError | None = None
    for attempt in range(3):  # Triton was seen to send no span of a request, once
        trace = f"{TRACE[:-2]}{attempt}{len(path) % 10}"
        assert cafe.post(path, content="tea", headers={"traceparent": f"00-{trace}-{CALLER}-01"}).status_code == 200
        names = (f"POST {path}", "barista.brew", "ModelInfer cafe.barista")
        top, middle, last = (_span(spans[1], trace, name) for name in names)
        assert top.parent == CALLER
        assert middle.parent == top.identity
        assert last.parent == middle.identity
        try:
            triton = _span(spans[1], trace, "InferRequest")
        except AssertionError as error:
            missing = error
            continue
        assert triton.parent == last.identity
        return
    raise AssertionError("Triton sent no span for any of three requests") from missing


def test_health_is_not_traced(cafe: Served, spans: tuple[str, list[Span]]) -> None:
    assert cafe.get("/readyz").status_code == 200
    cafe.post("/order", content="tea", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    _span(spans[1], TRACE, "POST /order")
    assert not [span.name for span in spans[1] if "readyz" in span.name]


def test_every_line_has_the_same_schema(cafe: Served) -> None:
    assert cafe.stop() == 0
    records = _records(cafe)
    assert {record["component"] for record in records} - {"engine"} == {"cli", "api:1", "runner"}
    for record in records:
        assert {"time", "level", "component", "logger", "message"} <= set(record)

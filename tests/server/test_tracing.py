from __future__ import annotations

import asyncio
import http.server
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from adapter.exceptions import ConfigException
from adapter.server.tracing import Tracer, engine_traces_url, provider, start, traces_endpoint
from adapter.settings import Otlp, Tracing

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def _scope(path: str = "/classify", **headers: str) -> dict[str, Any]:
    named = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "scheme": "http", "method": "POST", "path": path, "headers": named}


class _Traces:
    """A tracer, and what it has exported when it is closed."""

    def __init__(self, settings: Tracing | None = None) -> None:
        settings = settings or Tracing()
        self._exporter = InMemorySpanExporter()
        self.tracer = Tracer(provider(settings, "iris", self._exporter), settings.excluded_urls)

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans by name."""
        return {span.name: span for span in self.all()}

    def all(self) -> list[ReadableSpan]:
        self.tracer.close()
        return list(self._exporter.get_finished_spans())


def _ids(span: ReadableSpan) -> tuple[str, str, str]:
    """The ids of the trace, of the span, and of its parent."""
    assert span.context is not None
    parent = "" if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def test_one_trace_goes_from_http_to_triton() -> None:
    traces = _Traces()
    with traces.tracer.request(_scope(traceparent=f"00-{TRACE}-{CALLER}-01"), "/classify") as request:
        with traces.tracer.call("clf", "predict") as call, traces.tracer.flight("clf.predict", [call.link]) as flight:
            metadata = dict(flight.metadata)
        request.answered(200)
        assert request.trace_id == TRACE
    spans = traces.spans()
    top, middle, last = (_ids(spans[name]) for name in ("POST /classify", "clf.predict", "ModelInfer clf.predict"))
    assert (top[0], top[2]) == (TRACE, CALLER)
    assert (middle[0], middle[2]) == (TRACE, top[1])
    assert (last[0], last[2]) == (TRACE, middle[1])
    assert metadata == {"traceparent": f"00-{TRACE}-{last[1]}-01"}
    span = spans["POST /classify"]
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "url.path": "/classify",
        "url.scheme": "http",
        "http.response.status_code": 200,
    }
    assert span.resource.attributes["service.name"] == "iris"


def test_a_trace_begins_here_when_the_caller_has_none() -> None:
    traces = _Traces()
    for header in ({}, {"traceparent": "nonsense\xff"}, {"traceparent": ""}):
        with traces.tracer.request(_scope(**header), "/classify"):
            pass
    found = [_ids(span) for span in traces.all()]
    assert len({trace for trace, _, _ in found}) == 3
    assert {parent for _, _, parent in found} == {""}


def test_a_request_with_several_calls_is_linked_with_them() -> None:
    traces = _Traces(Tracing(sample_rate=0.0))
    links = []
    for header in (
        {},
        {"traceparent": f"00-{TRACE}-{CALLER}-01"},
        {"traceparent": f"00-{TRACE[::-1]}-{CALLER}-01"},
    ):
        with traces.tracer.request(_scope(**header), "/classify"), traces.tracer.call("clf", "predict") as call:
            links.append(call.link)
    with traces.tracer.flight("clf.predict", links) as flight:
        assert flight.trace_id == TRACE  # the first that is sampled
    span = traces.spans()["ModelInfer clf.predict"]
    assert [link.context for link in span.links] == [links[0], links[2]]


def test_sample_rate_counts_for_traces_that_begin_here() -> None:
    traces = _Traces(Tracing(sample_rate=0.0))
    with traces.tracer.request(_scope(), "/a"), traces.tracer.call("clf", "predict"):
        pass
    with traces.tracer.request(_scope(traceparent=f"00-{TRACE}-{CALLER}-01"), "/b"):
        pass
    assert list(traces.spans()) == ["POST /b"]


@pytest.mark.parametrize(
    ("excluded", "path", "traced"),
    [
        (None, "/livez", False),
        (None, "/metrics", False),
        (None, "/livez/more", True),
        ((), "/livez", True),
        (("^/a", "b$"), "/ax", False),
        (("^/a", "b$"), "/xb", False),
        (("^/a", "b$"), "/livez", True),
    ],
)
def test_excluded_urls_are_not_traced_nor_what_they_call(
    excluded: tuple[str, ...] | None, path: str, traced: bool
) -> None:
    traces = _Traces(Tracing(excluded_urls=excluded))
    with traces.tracer.request(_scope(path), path) as span, traces.tracer.call("clf", "predict") as call:
        span.answered(200)
        with traces.tracer.flight("clf.predict", [call.link]):
            pass
    assert bool(traces.all()) is traced


def test_errors_are_noted() -> None:
    traces = _Traces()
    with traces.tracer.request(_scope(), "/a") as request:
        with pytest.raises(ValueError, match="no"), traces.tracer.call("clf", "predict"):
            raise ValueError("no")
        request.answered(503)
    with traces.tracer.request(_scope(), "/b") as request:
        request.answered(404)
    spans = traces.spans()
    assert spans["POST /a"].status.status_code is StatusCode.ERROR
    assert spans["POST /b"].status.status_code is StatusCode.UNSET
    assert spans["clf.predict"].status.status_code is StatusCode.ERROR
    assert spans["clf.predict"].status.description == "ValueError: no"


def test_requests_at_the_same_time_keep_to_their_own_traces() -> None:
    traces = _Traces()

    async def one(number: int) -> None:
        trace = f"{number:032x}"
        with traces.tracer.request(_scope(traceparent=f"00-{trace}-{CALLER}-01"), f"/{number}"):
            await asyncio.sleep(0)
            await asyncio.to_thread(call, number)

    def call(number: int) -> None:
        with traces.tracer.call("clf", str(number)):
            pass

    async def many() -> None:
        await asyncio.gather(*(one(number) for number in range(1, 101)))

    asyncio.run(many())
    spans = traces.spans()
    for number in range(1, 101):
        trace, identity, _ = _ids(spans[f"POST /{number}"])
        assert trace == f"{number:032x}"
        assert _ids(spans[f"clf.{number}"])[::2] == (trace, identity)


class _Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, self.headers["x-key"], body))  # type: ignore[attr-defined]  # made below
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_otlp_reaches_a_collector() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Collector) as server:
        server.got = []  # type: ignore[attr-defined]  # for the handler
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        otlp = Otlp(endpoint=f"http://127.0.0.1:{server.server_port}", headers={"x-key": "k"})
        tracer = start(Tracing(exporter_type="otlp", otlp=otlp, timeout=5), "iris")
        assert tracer is not None
        with tracer.request(_scope(traceparent=f"00-{TRACE}-{CALLER}-01"), "/classify"):
            pass
        tracer.close()
        server.shutdown()
        thread.join()
        ((path, key, body),) = server.got  # type: ignore[attr-defined]  # as above
    assert (path, key) == ("/v1/traces", "k")
    assert bytes.fromhex(TRACE) in body


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/own/path", "https://a/own/path"),
    ],
)
def test_traces_endpoint(endpoint: str, expected: str) -> None:
    assert traces_endpoint(endpoint) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Tracing(), None),
        (Tracing(exporter_type="console"), None),
        (Tracing(exporter_type="otlp"), None),
        (Tracing(exporter_type="otlp", otlp=Otlp(endpoint="http://a:4318")), "http://a:4318/v1/traces"),
        (Tracing(exporter_type="otlp", otlp=Otlp(endpoint="http://a:4318", headers={"key": "x"})), None),
    ],
)
def test_engine_traces_url(settings: Tracing, expected: str | None) -> None:
    assert engine_traces_url(settings) == expected


def test_triton_is_told_of_no_trace_that_is_not_sampled() -> None:
    tracer = _Traces(Tracing(sample_rate=0.0)).tracer
    with tracer.request(_scope(), "/a") as request, tracer.flight("clf.predict", [request.link]) as flight:
        assert flight.metadata == ()
    tracer.close()


def test_start_when_it_is_off() -> None:
    assert start(Tracing(), "iris") is None


def test_start_prints_to_a_console(capfd: pytest.CaptureFixture[str]) -> None:
    tracer = start(Tracing(exporter_type="console"), "iris")
    assert tracer is not None
    with tracer.request(_scope(), "/classify"):
        pass
    tracer.close()
    assert '"name": "POST /classify"' in capfd.readouterr().out


def test_start_refuses_what_is_no_regular_expression() -> None:
    with pytest.raises(ConfigException, match=r"tracing.excluded_urls has '\(', which is no regular expression"):
        start(Tracing(exporter_type="console", excluded_urls=("(",)), "iris")


_WITHOUT = """
import sys
sys.modules["opentelemetry.sdk.trace"] = None
from adapter.server import tracing
from adapter.settings import Tracing
assert tracing.start(Tracing(), "iris") is None
tracing.start(Tracing(exporter_type="otlp"), "iris")
"""


def test_start_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().endswith(
        "OpenTelemetry is not installed, and tracing needs it: run `pip install 'triton-adapter[tracing]'`."
    )


def test_spans_of_a_stream_last_until_its_end_and_are_nobodys_parents() -> None:
    traces = _Traces()
    ended = []

    async def values() -> AsyncIterator[int]:
        with (
            traces.tracer.call("speaker", "words").apart() as call,
            traces.tracer.flight("speaker.stream", [call.link]).apart() as flight,
        ):
            assert flight.metadata
            try:
                for i in range(3):
                    yield i
            finally:
                ended.append("values")

    async def step(stream: AsyncIterator[int]) -> int:
        return await anext(stream)

    async def main() -> None:
        with traces.tracer.request(_scope(), "/classify"):
            stream = values()
            for _ in range(2):  # each step in a context of its own, as the server makes them
                await asyncio.create_task(step(stream))
            with traces.tracer.call("other", "m"):
                ended.append("other")
            await stream.aclose()  # type: ignore[attr-defined]  # it is a generator

    asyncio.run(main())
    assert ended == ["other", "values"]
    spans = traces.spans()
    top, call, flight, other = (
        _ids(spans[name]) for name in ("POST /classify", "speaker.words", "ModelInfer speaker.stream", "other.m")
    )
    assert [call[2], other[2], flight[2]] == [top[1], top[1], call[1]]
    assert spans["speaker.words"].status.status_code is StatusCode.UNSET  # a reader that has enough is no error

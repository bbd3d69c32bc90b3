"""Traces with OpenTelemetry: one from an HTTP request through the calls of runners to Triton.

`start` gives a Tracer, or None where tracing is off, which then costs nothing. Around an HTTP request:

    with tracer.request(scope, route) as span:
        ...
        span.answered(status)

Around a call of a runner, by whoever waits for it, and around a request to Triton that may carry several calls:

    with tracer.call(runner, method) as span:
        link = span.link
        ...
    with tracer.flight(entry, links) as flight:
        await stub.ModelInfer(request, metadata=flight.metadata)

A request that carries several calls belongs to the trace of one of them, and is linked with the others. Triton goes on
with the trace when it is started with `--trace-config mode=opentelemetry`, as the engine that runs here is.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from starlette.types import Scope

from adapter.exceptions import ConfigException, MissingDependencyException, sentence
from adapter.settings import Tracing

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext

EXCLUDED = ("^/livez$", "^/healthz$", "^/readyz$", "^/metrics$")  # where no `excluded_urls` are set
_NAME = "adapter"
_TRACES = "/v1/traces"
_LONGEST_END_S = 5.0
_CARRIED = (b"traceparent", b"tracestate")

T = TypeVar("T", bound="Traced")


def start(settings: Tracing, service: str) -> Tracer | None:
    """Begin to trace as the settings say; None where they do not ask for it.

    MissingDependencyException where they do, and OpenTelemetry is not installed.
    """
    if settings.exporter_type is None:
        return None
    if _missing is not None:
        raise MissingDependencyException("OpenTelemetry", extra="tracing", feature="tracing") from _missing
    return Tracer(provider(settings, service, _exporter(settings)), settings.excluded_urls)


def provider(settings: Tracing, service: str, exporter: SpanExporter) -> TracerProvider:
    """What makes spans: a share of the traces that begin here, and all of those that a caller wants to see."""
    made = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_rate)),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,  # `Tracer.close` does
    )
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made


def _exporter(settings: Tracing) -> SpanExporter:
    if settings.exporter_type == "console":
        return ConsoleSpanExporter(out=sys.stdout)
    endpoint = settings.otlp.endpoint
    return OTLPSpanExporter(
        endpoint=None if endpoint is None else traces_endpoint(endpoint),
        headers=None if settings.otlp.headers is None else dict(settings.otlp.headers),
        timeout=settings.timeout,
    )


def traces_endpoint(endpoint: str) -> str:
    """The address that takes traces: a collector's own address, such as http://127.0.0.1:4318, gets its usual path."""
    return endpoint.rstrip("/") + _TRACES if urlsplit(endpoint).path in ("", "/") else endpoint


def engine_traces_url(settings: Tracing) -> str | None:
    """Where an engine that runs here sends its part of a trace: the collector that is named, if it asks for no headers.

    Triton can send none.
    """
    otlp = settings.otlp
    if settings.exporter_type != "otlp" or otlp.endpoint is None or otlp.headers:
        return None
    return traces_endpoint(otlp.endpoint)


class Tracer:
    """Makes the spans of one worker."""

    def __init__(self, provider: TracerProvider, excluded_urls: Sequence[str] | None = None) -> None:
        """`excluded_urls` are regular expressions; a path in which one is found is not traced."""
        patterns = EXCLUDED if excluded_urls is None else excluded_urls
        try:
            self._excluded = [re.compile(pattern) for pattern in patterns]
        except re.error as error:
            raise ConfigException(
                f"tracing.excluded_urls has {error.pattern!r}, which is no regular expression: {error.msg}."
            ) from error
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._ids = RandomIdGenerator()

    def request(self, scope: Scope, route: str) -> Traced:
        """The span of an HTTP request, below the caller's where it sent a `traceparent`; `route` is that of its API."""
        if any(pattern.search(scope["path"]) for pattern in self._excluded):
            return Traced(self._silent())
        carrier = {key.decode(): value.decode("latin-1") for key, value in scope["headers"] if key in _CARRIED}
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            context=self._propagator.extract(carrier) if carrier else contexts.Context(),
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
            },
        )
        return Traced(span)

    def call(self, runner: str, method: str) -> Traced:
        """The span of a call of a runner, below that of the request which makes it."""
        attributes = {"adapter.runner": runner, "adapter.method": method}
        return Traced(self._tracer.start_span(f"{runner}.{method}", attributes=attributes))

    def flight(self, entry: str, links: Sequence[SpanContext]) -> Flight:
        """The span of a request to Triton that carries the calls with these links."""
        first = next((link for link in links if link.trace_flags.sampled), links[0])
        span = self._tracer.start_span(
            f"ModelInfer {entry}",
            context=trace.set_span_in_context(trace.NonRecordingSpan(first), contexts.Context()),
            kind=trace.SpanKind.CLIENT,
            links=[trace.Link(link) for link in links if link is not first],
            attributes={"rpc.system": "grpc", "rpc.method": "ModelInfer", "adapter.entry": entry},
        )
        carrier: dict[str, str] = {}
        if span.is_recording():  # Triton does not ask whether a trace that it is told of is sampled
            self._propagator.inject(carrier, trace.set_span_in_context(span))
        return Flight(span, tuple(carrier.items()))

    def close(self) -> None:
        """Hand over what is not handed over yet; a collector that does not take it is given five seconds."""
        end = threading.Thread(target=self._provider.shutdown, name="adapter-tracing-end", daemon=True)
        end.start()
        end.join(_LONGEST_END_S)

    def _silent(self) -> Span:
        """A span that is not recorded, and none below it."""
        context = trace.SpanContext(
            self._ids.generate_trace_id(), self._ids.generate_span_id(), False, trace.TraceFlags(0)
        )
        return trace.NonRecordingSpan(context)


class Traced:
    """A span for a `with` block, the parent of those that are made in it; an error that leaves the block is noted."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self: T) -> T:
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        contexts.detach(self._token)
        self._end(error)

    @contextlib.contextmanager
    def apart(self: T) -> Iterator[T]:
        """The span for a block that is run step by step, in any context: no parent of the spans made in it."""
        try:
            yield self
        except BaseException as error:
            self._end(None if isinstance(error, GeneratorExit) else error)
            raise
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if error is not None:
            self._span.set_status(trace.StatusCode.ERROR, sentence(error))
        self._span.end()

    @property
    def link(self) -> SpanContext:
        """What another span can be linked with."""
        return self._span.get_span_context()

    @property
    def trace_id(self) -> str:
        """The id of the trace, as 32 hexadecimal digits."""
        return trace.format_trace_id(self.link.trace_id)

    def answered(self, status: int) -> None:
        """Note the HTTP status that the client got."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)


class Flight(Traced):
    """The span of a request to Triton, and the gRPC metadata that lets Triton continue the trace."""

    __slots__ = ("metadata",)

    def __init__(self, span: Span, metadata: tuple[tuple[str, str], ...]) -> None:
        super().__init__(span)
        self.metadata = metadata

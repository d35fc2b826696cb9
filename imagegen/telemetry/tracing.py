"""Traces by OpenTelemetry: a span for each request and job, and one for each stage of the job.

Off until OTEL_EXPORTER_OTLP_ENDPOINT (or its form for traces) is set; then the SDK of the extra `otel` sends spans
there, and takes all that OTEL_* says of sampling, headers and the service's name. A trace that a caller began goes on
here (https://www.w3.org/TR/trace-context/). No attribute holds a caller's words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from imagegen import __version__
from imagegen.errors import ConfigurationError
from imagegen.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

_HEADERS = ("traceparent", "tracestate")


class _Tracing:
    """What is sent where; None while traces are off."""

    provider: TracerProvider | None = None


def configure(settings: Settings) -> None:
    """Begins to send traces, where the settings say so; once in a process.

    Raises:
        ConfigurationError: traces are wanted and the SDK is not installed.
    """
    if settings.otlp_endpoint is None or _Tracing.provider is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: is set, and OpenTelemetry's SDK is not installed; install "
            "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
        ) from None
    ours = Resource.create({"service.name": "image-gen", "service.version": __version__})
    _Tracing.provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    _Tracing.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT")


def close() -> None:
    """Sends the spans that were not sent yet, for as long as OTEL_BSP_EXPORT_TIMEOUT allows, and ends."""
    if _Tracing.provider is not None:
        _Tracing.provider.shutdown()
        _Tracing.provider = None


@contextmanager
def request(name: str, headers: Mapping[str, str], kind: str, **attributes: str) -> Iterator[Span]:
    """A span for a request or a stored job; what runs in it, and in the tasks that are begun in it, is its part.

    Args:
        headers: of the request; `traceparent` and `tracestate` name the trace that it belongs to.
        kind: "server" for a request that waits for its answer, "consumer" for a job of a queue, "client" for a request
            of this server's own.
        attributes: what is known of it.
    """
    if _Tracing.provider is None:
        yield Span(None)
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: headers[key] for key in _HEADERS if key in headers}
    parent = TraceContextTextMapPropagator().extract(carrier)
    with _tracer().start_as_current_span(
        name, parent, kind=trace.SpanKind[kind.upper()], attributes=attributes, record_exception=False
    ) as span:
        yield Span(span)


def current() -> str | None:
    """The `traceparent` of the span that is open here, to be kept with what goes on later; None for none."""
    if _Tracing.provider is None:
        return None
    from opentelemetry import trace

    return Span(trace.get_current_span()).headers.get("traceparent")


def carrier(traceparent: str | None) -> dict[str, str]:
    """What `current` gave, as the headers for `request`."""
    return {} if traceparent is None else {"traceparent": traceparent}


class Span:
    """A span that is open, or none where traces are off."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def note(self, **attributes: str | int | float) -> None:
        """Adds what has become known. Never a caller's words."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, code: str) -> None:
        """It failed, with this code of the contract."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, code)

    @property
    def headers(self) -> dict[str, str]:
        """`traceparent`, and `tracestate` if there is one, for those who are asked on behalf of this span."""
        carrier: dict[str, str] = {}
        if self._span is not None:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        return carrier


class JobTrace:
    """The span of a job, and its stages', which are known when they have ended. Of any thread."""

    def __init__(self, mode: str, **attributes: str) -> None:
        self._span: Any = None
        self._context: Context | None = None
        if _Tracing.provider is not None:
            from opentelemetry import trace

            self._span = _tracer().start_span(mode, attributes={f"imagegen.{k}": v for k, v in attributes.items()})
            self._context = trace.set_span_in_context(self._span)

    @property
    def headers(self) -> dict[str, str]:
        """As `Span.headers`."""
        return Span(self._span).headers

    def stage(self, name: str, seconds: float, ago: float = 0.0) -> None:
        """A stage that took `seconds` has ended `ago` seconds before now."""
        if self._span is not None and seconds > 0:
            end = time.time_ns() - int(ago * 1e9)
            span = _tracer().start_span(name, self._context, start_time=end - int(seconds * 1e9))
            span.end(end)

    def end(self, outcome: str, **attributes: str | int | float) -> None:
        """The job has ended: ok, or with the code of its error."""
        if self._span is not None:
            self._span.set_attributes({f"imagegen.{name}": value for name, value in attributes.items()})
            self._span.set_attribute("imagegen.outcome", outcome)
            if outcome != "ok":
                Span(self._span).fail(outcome)
            self._span.end()


def _tracer() -> Any:
    assert _Tracing.provider is not None
    return _Tracing.provider.get_tracer("imagegen", __version__)

"""OpenTelemetry: one server span a request, with the GenAI attribute names, exported over OTLP/HTTP.

Source: OpenTelemetry semantic conventions, "Generative AI spans". Prompts and answers are never recorded.
"""

from __future__ import annotations

from typing import Any

from atoll.core.errors import SetupError
from atoll.core.meter import dollars
from atoll.core.types import Entry

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
TIMEOUT_S = 10


class Tracer:
    """Spans are made from finished ledger entries, so tracing cannot slow a request down while it runs."""

    def __init__(self, endpoint: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise SetupError(
                "otlp_endpoint is set, but OpenTelemetry is not installed: pip install 'atoll[otel]'"
            ) from None
        resource = Resource.create({"service.name": "atoll", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("atoll")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, entry: Entry, traceparent: str | None) -> None:
        """A span for a finished entry, child of the caller's span if it sent one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = OPERATIONS.get(entry.route, entry.route.rsplit("/", 1)[-1])
        span = self._tracer.start_span(
            f"{operation} {entry.model}",
            context=self._propagator.extract({"traceparent": traceparent}) if traceparent else None,
            kind=SpanKind.SERVER,
            start_time=int(entry.created_at * 1e9),
            attributes=_attributes(entry, operation),
        )
        if entry.error:
            span.set_status(Status(StatusCode.ERROR, entry.error))
        span.end(int((entry.created_at + (entry.duration_ms or 0.0) / 1000) * 1e9))

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        self._provider.shutdown()


def _attributes(entry: Entry, operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "atoll",
        "gen_ai.request.model": entry.model,
        "gen_ai.usage.input_tokens": entry.usage.input,
        "gen_ai.usage.output_tokens": entry.usage.output,
        "http.route": entry.route,
        "http.response.status_code": entry.http_status,
        "cloud.region": entry.region,
        "atoll.request.id": entry.id,
        "atoll.cost_dollars": dollars(entry.cost),
    }
    if entry.first_token_ms is not None:
        attributes["gen_ai.server.time_to_first_token"] = entry.first_token_ms / 1000
    if entry.error:
        attributes["error.type"] = entry.error
    return attributes

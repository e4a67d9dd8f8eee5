"""Prometheus metrics, under the OpenTelemetry GenAI names where they exist
(semantic conventions, gen_ai.server.* and gen_ai.client.token.usage, dots as underscores)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from atoll.core.meter import dollars
from atoll.core.types import Entry

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class Metrics:
    """Fed with every finished ledger entry."""

    def __init__(self, running: dict[str, object]) -> None:
        self.registry = CollectorRegistry()
        labels = ["gen_ai_request_model", "route", "region", "status"]
        self._requests = Counter("atoll_requests", "Requests by final status", labels, registry=self.registry)
        self._tokens = Counter(
            "gen_ai_client_token_usage", "Units used (tokens, seconds or characters)",
            ["gen_ai_request_model", "gen_ai_token_type"], registry=self.registry,
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "From admission to the last byte",
            ["gen_ai_request_model"], buckets=SECONDS, registry=self.registry,
        )
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "From admission to the first token",
            ["gen_ai_request_model"], buckets=SECONDS, registry=self.registry,
        )
        self._cost = Counter("atoll_cost_dollars", "Charged", ["gen_ai_request_model"], registry=self.registry)
        gauge = Gauge("atoll_requests_running", "Requests under way", registry=self.registry)
        gauge.set_function(lambda: len(running))

    def observe(self, entry: Entry) -> None:
        model = entry.model
        self._requests.labels(model, entry.route, entry.region, entry.status).inc()
        if entry.usage.input:
            self._tokens.labels(model, "input").inc(entry.usage.input)
        if entry.usage.output:
            self._tokens.labels(model, "output").inc(entry.usage.output)
        if entry.cost:
            self._cost.labels(model).inc(dollars(entry.cost))
        if entry.duration_ms is not None:
            self._duration.labels(model).observe(entry.duration_ms / 1000)
        if entry.first_token_ms is not None:
            self._first.labels(model).observe(entry.first_token_ms / 1000)

    def render(self) -> bytes:
        return generate_latest(self.registry)

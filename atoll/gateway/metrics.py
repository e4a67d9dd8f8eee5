"""Prometheus metrics, under the OpenTelemetry GenAI names where they exist
(semantic conventions: gen_ai.server.request.duration, gen_ai.server.time_to_first_token,
gen_ai.client.token.usage; dots become underscores)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from atoll.core.meter import dollars
from atoll.core.types import Entry

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
MODEL = "gen_ai_request_model"


@dataclass(slots=True)
class Distribution:
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        bounds, reached, rows = [*map(str, SECONDS), "+Inf"], 0, []
        for bound, count in zip(bounds, self.counts, strict=True):
            reached += count
            rows.append((bound, float(reached)))
        return rows


@dataclass(slots=True)
class Sums:
    input: int = 0
    output: int = 0
    cost: int = 0
    duration: Distribution = field(default_factory=Distribution)
    first_token: Distribution = field(default_factory=Distribution)


class Metrics:
    """Plain sums, fed with every finished ledger entry; turned into metric families when scraped."""

    def __init__(self, running: Sized) -> None:
        self._running = running
        self._requests: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
        self._models: defaultdict[str, Sums] = defaultdict(Sums)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, entry: Entry) -> None:
        if entry.status == "open":
            return
        self._requests[entry.model, entry.route, entry.region, entry.status] += 1
        sums = self._models[entry.model]
        sums.input += entry.usage.input
        sums.output += entry.usage.output
        sums.cost += entry.cost
        if entry.duration_ms is not None:
            sums.duration.add(entry.duration_ms / 1000)
        if entry.first_token_ms is not None:
            sums.first_token.add(entry.first_token_ms / 1000)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "atoll_requests", "Requests by final status", labels=[MODEL, "route", "region", "status"]
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        yield GaugeMetricFamily("atoll_requests_running", "Requests under way", len(self._running))
        yield from self._per_model()

    def _per_model(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "gen_ai_client_token_usage",
            "Units used: tokens, seconds or characters",
            labels=[MODEL, "gen_ai_token_type"],
        )
        cost = CounterMetricFamily("atoll_cost_dollars", "Charged", labels=[MODEL])
        duration = HistogramMetricFamily(
            "gen_ai_server_request_duration_seconds", "From admission to the last byte", labels=[MODEL]
        )
        first = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds", "From admission to the first token", labels=[MODEL]
        )
        for model, sums in self._models.items():
            tokens.add_metric([model, "input"], sums.input)
            tokens.add_metric([model, "output"], sums.output)
            cost.add_metric([model], dollars(sums.cost))
            duration.add_metric([model], sums.duration.buckets(), sums.duration.total)
            first.add_metric([model], sums.first_token.buckets(), sums.first_token.total)
        yield from (tokens, cost, duration, first)

"""Which endpoint serves a request, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.core.health import Health
from atoll.core.types import Endpoint


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known about an endpoint now. `limit` outstanding requests at most; 0 means no limit."""

    endpoint: Endpoint
    outstanding: int = 0
    limit: int = 0
    health: Health = Health()


@dataclass(frozen=True, slots=True)
class Decision:
    """Endpoints to try, best first, and the reason each of the rest was left out, by name."""

    order: tuple[Endpoint, ...]
    reasons: dict[str, str]


def route(candidates: Sequence[Candidate], now: float) -> Decision:
    """Least outstanding requests first among healthy endpoints with room; ties go to the first listed."""
    fit, reasons = [], {}
    for c in candidates:
        if not c.health.admits(now):
            reasons[c.endpoint.name] = f"unhealthy: {c.health.failures} failures, next try at {c.health.retry_at:.1f}"
        elif c.limit and c.outstanding >= c.limit:
            reasons[c.endpoint.name] = f"full: {c.outstanding} of {c.limit} requests"
        else:
            fit.append(c)
    fit.sort(key=lambda c: c.outstanding)
    return Decision(tuple(c.endpoint for c in fit), reasons)

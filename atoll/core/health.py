"""Is an endpoint fit for traffic? A circuit breaker as a pure function of what was observed.

Closed: traffic flows. After `threshold` failures in a row it opens for a time that doubles up to `longest`.
When that has passed, one attempt is let through (half-open): its outcome closes or re-opens the circuit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Health:
    failures: int = 0
    opened: int = 0
    retry_at: float = 0.0

    def admits(self, now: float) -> bool:
        return now >= self.retry_at


def observe(state: Health, ok: bool, now: float, *, threshold: int = 3, longest: float = 30.0) -> Health:
    """The state after one attempt. Back-off: 1 s, 2 s, 4 s, ... `longest`. Attempts that were under way when the
    circuit opened fail for the same reason and count no more."""
    if ok:
        return Health() if state.failures or state.opened else state
    if now < state.retry_at:
        return state
    failures = state.failures + 1
    if failures < threshold and not state.opened:
        return replace(state, failures=failures)
    return Health(failures, state.opened + 1, now + min(longest, 2.0**state.opened))


def backoff(attempt: int, *, first: float = 1.0, longest: float = 30.0) -> float:
    """Seconds to wait before restart number `attempt` (0, 1, ...) of a process that keeps dying."""
    return min(longest, first * 2.0 ** min(attempt, 16))

"""Is an endpoint fit for traffic? Pure functions of what was observed.

Circuit breaker (`Health`): closed, traffic flows. After `threshold` failures in a row it opens for a time that doubles
up to `longest`. When that has passed, one attempt is let through (half-open): its outcome closes or re-opens it.

Gray failures (`Vitals`, `examine`) count as failures: an endpoint that answers, but stalled, slow or with garbage.
Slow means against its own past and against its peers at once: when all get slower together (one machine, a burst),
nobody is at fault, and opening every circuit would turn load into an outage.

Outliers (`eject`): who errs, or is slow to begin, far more than the median of its peers is left out for a while; never
more than a share of all, as then the fault lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

Fault = Literal["unreachable", "died", "stalled", "slow", "garbage"]
FAULTS: frozenset[str] = frozenset({"unreachable", "died", "stalled", "slow", "garbage"})


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
    return Health(failures, state.opened + 1, now + min(longest, 2.0 ** min(state.opened, 16)))


def backoff(attempt: int, *, first: float = 1.0, longest: float = 30.0) -> float:
    """Seconds to wait before restart number `attempt` (0, 1, ...) of a process that keeps dying."""
    return min(longest, first * 2.0 ** min(attempt, 16))


def blames(kind: str) -> bool:
    """Whether a failure of this kind (`core.recover.Kind`) speaks against the endpoint: not if it was merely full, the
    request was wrong, or the client went away."""
    return kind in FAULTS


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`stall_least` seconds, `stall_factor` x usual gap: no token for the longer of both is a stall (before the first:
    at least `first_least`, `first_factor` x usual TTFT or foreseen prefill, `first_pace` x unread tokens). Slow: over
    `slow_own` x its own usual and `slow_peers` x the median of peers. Outlier: error rate over `error_least` and
    `outlier` x the median, or TTFT over `outlier` x it; at most `share` of all, for `ejected` seconds, twice as long
    each time. A TTFT of up to `ttft_fine` seconds is never too slow. Nothing is judged on under `samples` requests,
    nobody compared with under `peers` peers; times only with those of peers that were asked in the last `recent`
    seconds, as one that rests knows nothing of a burst."""

    stall_least: float = 1.0
    stall_factor: float = 8.0
    first_least: float = 5.0
    first_factor: float = 8.0
    first_pace: float = 0.02
    slow_own: float = 4.0
    slow_peers: float = 4.0
    outlier: float = 3.0
    error_least: float = 0.2
    ttft_fine: float = 0.5
    share: float = 0.3
    ejected: float = 10.0
    longest: float = 300.0
    samples: int = 5
    peers: int = 2
    recent: float = 30.0


DEFAULTS = Thresholds()
FRESH, USUAL = 0.2, 0.05
STEADY = 12


@dataclass(frozen=True, slots=True)
class Vitals:
    """An endpoint's recent requests, as exponential means: `errors` (0 to 1), `ttft` seconds, `gap` seconds between
    tokens. `usual_*` move slowly, and by good requests only. `at`: the last request."""

    count: int = 0
    errors: float = 0.0
    ttft: float | None = None
    gap: float | None = None
    usual_ttft: float | None = None
    usual_gap: float | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request that is over. `fault` None: it was answered. `seconds` from its first to its last token. There is no
    `gap` to learn from an answer of under `STEADY` tokens: its end comes in one piece with its last token."""

    fault: Fault | None = None
    ttft: float | None = None
    tokens: int = 0
    seconds: float = 0.0

    @property
    def gap(self) -> float | None:
        return self.seconds / (self.tokens - 1) if self.tokens >= STEADY else None


def examine(
    vitals: Vitals, outcome: Outcome, peers: Mapping[str, Vitals], now: float, limits: Thresholds = DEFAULTS
) -> tuple[Vitals, Fault | None]:
    """What the request says: the new vitals, and its fault, which may be that it was slow. To be passed on to
    `observe`. `peers`: the other endpoints of the same model (without this one)."""
    fault = outcome.fault or ("slow" if slow(vitals, outcome, peers, now, limits) else None)
    good = fault is None
    learned = Vitals(
        vitals.count + 1,
        _mean(vitals.errors if vitals.count else None, 0.0 if good else 1.0, FRESH) or 0.0,
        _mean(vitals.ttft, outcome.ttft, FRESH),
        _mean(vitals.gap, outcome.gap, FRESH),
        _mean(vitals.usual_ttft, outcome.ttft if good else None, USUAL),
        _mean(vitals.usual_gap, outcome.gap if good else None, USUAL),
        now,
    )
    return learned, fault


def stall_after(
    vitals: Vitals, begun: bool, limits: Thresholds = DEFAULTS, unread: int = 0, prefill: float = 0.0
) -> float:
    """Seconds without a token after which a stream has stalled. Before the first token, count only while it is not
    waiting in a queue, and the engine gives nothing to others either: it may be working for them. `unread` prompt
    tokens are to be read then, in `prefill` seconds as routing foresees."""
    if begun:
        return max(limits.stall_least, limits.stall_factor * (vitals.usual_gap or 0.0))
    usual = max(vitals.usual_ttft or 0.0, prefill)
    return max(limits.first_least, limits.first_factor * usual, limits.first_pace * unread)


def next_probe(health: Health, vitals: Vitals, now: float, every: float = 10.0) -> float:
    """When to check actively: as soon as an open circuit may be tried, and where there was no traffic for a while."""
    if health.opened:
        return max(now, health.retry_at)
    return max(now, vitals.at + every)


@dataclass(frozen=True, slots=True)
class Ejected:
    """Left out until `until`; `times` in a row."""

    until: float
    times: int
    reason: str


def eject(
    vitals: Mapping[str, Vitals], before: Mapping[str, Ejected], now: float, limits: Thresholds = DEFAULTS
) -> dict[str, Ejected]:
    """Who is left out now: those whose time is not over, then new outliers, the worst first, while the share allows.
    Entries whose `until` has passed are kept to know how often; they admit traffic (`now >= until`)."""
    kept = {n: e for n, e in before.items() if n in vitals and now < e.until + limits.longest}
    room = int(limits.share * len(vitals)) - sum(now < e.until for e in kept.values())
    if len(vitals) > limits.peers:
        room = max(room, 1 - sum(now < e.until for e in kept.values()))
    outliers = []
    for name, mine in vitals.items():
        past = kept.get(name)
        if past and (now < past.until or mine.at < past.until):
            continue
        if found := _outlier(mine, [v for other, v in vitals.items() if other != name], now, limits):
            outliers.append((found, name))
    for (_, reason), name in sorted(outliers, key=lambda o: (-o[0][0], o[1]))[: max(0, room)]:
        times = kept[name].times + 1 if name in kept else 1
        kept[name] = Ejected(now + min(limits.longest, limits.ejected * 2.0 ** (min(times, 16) - 1)), times, reason)
    return kept


def _outlier(mine: Vitals, others: list[Vitals], now: float, limits: Thresholds) -> tuple[float, str] | None:
    """How many times worse than the median of peers, and in what."""
    known = [v for v in others if v.count >= limits.samples]
    if mine.count < limits.samples or len(known) < limits.peers:
        return None
    usual = median(v.errors for v in known)
    if mine.errors > max(limits.error_least, limits.outlier * usual):
        worse = mine.errors / max(usual, 0.01)
        return worse, f"{mine.errors:.0%} of requests fail; the median of its peers is {usual:.0%}"
    times = [v.ttft for v in known if v.ttft is not None and now - v.at <= limits.recent]
    if mine.ttft is None or len(times) < limits.peers:
        return None
    if mine.ttft <= max(limits.ttft_fine, limits.outlier * median(times)):
        return None
    told = f"first token after {mine.ttft:.2f} s; the median of its peers is {median(times):.2f} s"
    return mine.ttft / max(median(times), 1e-9), told


def slow(
    vitals: Vitals, outcome: Outcome, peers: Mapping[str, Vitals], now: float, limits: Thresholds = DEFAULTS
) -> bool:
    """Whether a request, or a stretch of one under way, is too slow for its endpoint and beside its peers."""
    fresh = [peer for peer in peers.values() if now - peer.at <= limits.recent]
    pairs = (
        (outcome.ttft, vitals.usual_ttft, [v.ttft for v in fresh], limits.ttft_fine),
        (outcome.gap, vitals.usual_gap, [v.gap for v in fresh], 0.0),
    )
    for value, usual, theirs, fine in pairs:
        known = [t for t in theirs if t is not None]
        if value is None or value <= fine or usual is None:
            continue
        if vitals.count < limits.samples or len(known) < limits.peers:
            continue
        if value > limits.slow_own * usual and value > limits.slow_peers * median(known):
            return True
    return False


def _mean(old: float | None, new: float | None, weight: float) -> float | None:
    if new is None or old is None:
        return old if new is None else new
    return old + weight * (new - old)

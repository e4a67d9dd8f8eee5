"""Routing policies to compare with, behind the signature of `core.route.route`, and with the same hard filters.

They are written to be read: all but the consistent hash look at every endpoint of the card, so each costs time in
proportion to the fleet. `score` in their decisions is whatever the policy ranks by, in its own unit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from heapq import nsmallest
from math import ceil
from zlib import crc32

from atoll.core.prefix import Memory
from atoll.core.route import ORDER, Decision, Lost, Objective, Request, Rng, cached_tokens, closed, route, score, unfit
from atoll.core.view import Spot, View

Policy = Callable[[Request, View, Memory, Objective, Rng, float], Decision]
Fit = list[tuple[Spot, int]]
Key = Callable[[Spot, int], tuple[float, ...]]

IMBALANCE_REQUESTS, IMBALANCE_RATIO = 32, 1.1
GOOD_MATCH = 0.5


def _fit(request: Request, view: View, memory: Memory, now: float) -> tuple[Fit, list[Lost]]:
    """The endpoints that can take the request, in the order they joined, each with the prompt tokens it holds."""
    group = view.groups.get(request.model)
    held = memory.holders(request.blocks)
    fit: Fit = []
    lost: list[Lost] = []
    for spot in group.spots.values() if group else ():
        if (why := closed(spot, request) or unfit(spot, request, now)) is not None:
            lost.append((spot.name, spot.region, why))
        else:
            fit.append((spot, cached_tokens(request, held[spot.name]) if spot.name in held else 0))
    return fit, lost


def _decision(name: str, request: Request, ranked: list[tuple[float, Spot, int]], lost: list[Lost]) -> Decision:
    order = tuple([spot.name for _, spot, _ in ranked])
    rows = [(key, spot.seq, spot, cached, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) for key, spot, cached in ranked]
    return Decision(name, request.model, order, request.blocks, rows, lost, [])


def _least(name: str, request: Request, fit: Fit, lost: list[Lost], key: Key) -> Decision:
    """Smallest key first; ties go to the endpoint that joined first."""
    best = nsmallest(ORDER, ((key(spot, cached), spot.seq, spot, cached) for spot, cached in fit))
    return _decision(name, request, [(float(k[0]), spot, cached) for k, _, spot, cached in best], lost)


def round_robin(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Each in turn, by the number of decisions applied."""
    fit, lost = _fit(request, view, memory, now)
    turn = memory.turns.get(request.model, 0) % len(fit) if fit else 0
    ranked = [(float(i), spot, cached) for i, (spot, cached) in enumerate((fit[turn:] + fit[:turn])[:ORDER])]
    return _decision("round_robin", request, ranked, lost)


def least_outstanding(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    fit, lost = _fit(request, view, memory, now)
    return _least("least_outstanding", request, fit, lost, lambda s, c: (s.load,))


def nearest(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Smallest round trip; within a region the least loaded."""
    fit, lost = _fit(request, view, memory, now)
    return _least("nearest", request, fit, lost, lambda s, c: (_rtt(s, request), s.load))


def latency_ewma(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Mean observed time to first token x (load + 1), as in Finagle's and Linkerd's peak EWMA; the unknown first."""
    fit, lost = _fit(request, view, memory, now)
    return _least("latency_ewma", request, fit, lost, lambda s, c: (s.ttft * (s.load + 1), s.load))


def bounded_hash(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Consistent hashing with bounded loads (Mirrokni et al. 2016) on the first 256 bytes of the prompt (the key where
    it is shorter): on along the ring until one has at most ceil(c x mean) requests, this one included."""
    group = view.groups.get(request.model)
    if group is None:
        return _decision("bounded_hash", request, [], [])
    shelves = [s for s in group.shelves.values() if closed(s.head, request) is None]
    bound = ceil(objective.bound * (sum(s.load for s in shelves) + 1) / max(1, sum(s.spots for s in shelves)))
    point = request.blocks[0] if request.blocks else crc32((request.key or request.id).encode())
    at, seen, ranked, held = bisect_left(group.ring, (point, "")), set(), [], memory.holders(request.blocks)
    lost: list[Lost] = []
    within = 0
    for i in range(len(group.ring)):
        name = group.ring[(at + i) % len(group.ring)][1]
        if name in seen:
            continue
        seen.add(name)
        spot = group.spots[name]
        if (why := closed(spot, request) or unfit(spot, request, now)) is not None:
            lost.append((name, spot.region, why))
            continue
        over = spot.load + 1 > bound
        within += not over
        ranked.append((over, len(seen), spot, cached_tokens(request, held[name]) if name in held else 0))
        if within >= ORDER:
            break
    ranked.sort(key=lambda r: r[:2])
    return _decision("bounded_hash", request, [(float(i), s, c) for _, i, s, c in ranked[:ORDER]], lost)


def prefix_trie(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """The endpoint that holds the longest beginning, if it is more than half of the prompt; the least loaded if nothing
    matches, or once loads have drifted apart (by more than 32 requests and 10 %), as in SGLang's cache-aware router."""
    fit, lost = _fit(request, view, memory, now)
    loads = [s.load for s, _ in fit] or [0]
    apart = max(loads) - min(loads) > IMBALANCE_REQUESTS and max(loads) > IMBALANCE_RATIO * min(loads)
    enough = request.prompt * GOOD_MATCH
    return _least(
        "prefix_trie", request, fit, lost, lambda s, c: (-c if c > enough and not apart else 0, s.load)
    )  # fmt: skip


def power_of_two(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """The less loaded of two taken by chance (Mitzenmacher 2001); the rest of the order by chance too."""
    fit, lost = _fit(request, view, memory, now)
    drawn: Fit = []
    pool = list(fit)
    while pool and len(drawn) < ORDER:
        i = int(rng.random() * len(pool))
        drawn.append(pool[i])
        pool[i] = pool[-1]
        pool.pop()
    first = sorted(drawn[:2], key=lambda f: f[0].load)
    return _decision("power_of_two", request, [(float(s.load), s, c) for s, c in first + drawn[2:]], lost)


def selective_push(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """After SkyWalker (EuroSys 2026, arXiv 2505.24095): a request is pushed only to an endpoint where nothing waits, in
    the nearest region first, then to others; longest cached beginning first, then least load. When all have a queue, it
    stays in the nearest region."""
    fit, lost = _fit(request, view, memory, now)
    home = min(((_rtt(s, request), s.region) for s, _ in fit), default=(0.0, ""))[1]

    def key(spot: Spot, cached: int) -> tuple[float, ...]:
        local = spot.region == home
        if spot.load < spot.slots and not spot.queued:
            return (0 if local else 1, -cached, 0.0 if local else _rtt(spot, request), spot.load)
        return (2, 0 if local else 1, spot.load / spot.slots, 0.0)

    return _least("selective_push", request, fit, lost, key)


def gorgo_cost(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """After GORGO (arXiv 2602.11688): round trip + prefill of the uncached tokens and of those queued there."""
    fit, lost = _fit(request, view, memory, now)

    def key(spot: Spot, cached: int) -> tuple[float, ...]:
        return (_rtt(spot, request) + (request.prompt - cached + spot.backlog) * spot.per_token,)

    return _least("gorgo_cost", request, fit, lost, key)


def cheapest(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Lowest price and cost of electricity; the least loaded among equals."""
    fit, lost = _fit(request, view, memory, now)
    only = Objective("price", seconds_per_dollar=1.0)
    return _least("cheapest", request, fit, lost, lambda s, c: (sum(score(s, c, request, only)[7:9]), s.load / s.slots))


def greenest(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """Least CO2; the least loaded among equals."""
    fit, lost = _fit(request, view, memory, now)
    only = Objective("carbon", seconds_per_gram=1.0)
    return _least("greenest", request, fit, lost, lambda s, c: (score(s, c, request, only)[9], s.load / s.slots))


def _rtt(spot: Spot, request: Request) -> float:
    here = spot.place.rtt
    return request.rtts.get(spot.region, here) if request.rtts else here


POLICIES: dict[str, Policy] = {
    "atoll": route,
    **{
        policy.__name__: policy
        for policy in (
            round_robin, least_outstanding, nearest, latency_ewma, bounded_hash, prefix_trie, power_of_two,
            selective_push, gorgo_cost, cheapest, greenest,
        )
    },
}  # fmt: skip

"""Which endpoint serves a request, and why the others do not.

    score = rtt + wait + prefill of the uncached part                   seconds to the first token
          + seconds_per_dollar x (price + energy) + seconds_per_gram x carbon + seconds_per_load x load / slots

after hard filters: region live and allowed, model, modalities, context, weights, health, limit. The lowest score wins;
ties go to the endpoint that joined first. `price` is what the tokens are sold for, `energy` what the electricity for
them costs in the region: the one tells endpoints apart, the other regions.

Prefix affinity is bounded as in consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): that an
endpoint holds a prefix counts only while it has a free slot, or while with this request it has at most ceil(c x its
fair share) of the load of the live, allowed endpoints (share by slots; c = 1.25). So nobody queues for a prefix where
others idle. Beyond the bound it is scored as if it held nothing, the request goes elsewhere, and the memory learns of a
second holder: a hot prefix spreads instead of drawing everyone to one place.

Two levels keep it fast: each shelf of the view (the like endpoints of one region) nominates its least loaded one, the
memory adds up to four holders of the longest known prefixes, and only these are scored: some 30 of 1,856. It is plain
Python: numpy costs more per call than a loop this short, and the common case, one endpoint, must be cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple, Protocol

from atoll.core.prefix import OFFSETS, Memory
from atoll.core.recover import Left
from atoll.core.types import NANO
from atoll.core.view import Group, Shelf, Spot, View

ORDER = 8
JOULES_PER_KWH = 3.6e6
BYTES_PER_TOKEN = 4
SPILLED = "; holds the prefix, but has more than its share of the load"

Scored = tuple[float, int, Spot, int, float, float, float, float, float, float, float]
Lost = tuple[str, str, str]


class Rng(Protocol):
    def random(self) -> float: ...


class Request(NamedTuple):
    """What routing must know. `prompt` tokens (an estimate) of `prompt_bytes` bytes, `output` tokens at most, `blocks`
    as `core.prefix.blocks` gives them. `rtts`: seconds by region from where the client is, in place of the gateway's.
    `allowed` region ids, None for all: residency, resolved. `excluded`: endpoints or regions not to use (they failed).
    `digest`: only endpoints with these weights, for a stream that is to go on exactly. `overlong`: by the estimate no
    endpoint could hold it, so the context filter is off; the engine counts exactly."""

    id: str
    model: str
    key: str = ""
    modalities: frozenset[str] = frozenset({"text"})
    prompt: int = 0
    output: int = 0
    prompt_bytes: int = 0
    blocks: tuple[int, ...] = ()
    rtts: Mapping[str, float] | None = None
    allowed: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    digest: str = ""
    overlong: bool = False


@dataclass(frozen=True, slots=True)
class Objective:
    """What a dollar, a gram of CO2 and a full set of slots are worth, in seconds of waiting. `bound` is the c of the
    load bound. The presets `cheapest` and `greenest` are where the dollars and grams really spent were least in the
    simulated world of bench/route.py: a greater weight only makes queues, and queues cost more cache than they save."""

    name: str
    seconds_per_dollar: float = 0.0
    seconds_per_gram: float = 0.0
    seconds_per_load: float = 0.0
    bound: float = 1.25


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("fastest"),
        Objective("balanced", seconds_per_dollar=200.0, seconds_per_gram=0.2, seconds_per_load=0.05),
        Objective("cheapest", seconds_per_dollar=2000.0),
        Objective("greenest", seconds_per_gram=1.0),
    )
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint in an explanation. `parts` add up to `score` (seconds); one left out has only its `reason`."""

    name: str
    region: str
    reason: str
    score: float | None = None
    cached: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


class Decision(NamedTuple):
    """Endpoints to try, best first, at most eight. `ranked` and `lost` keep what was weighed and what was left out;
    they are put into words only when asked. `spilled` hold the prefix, but have more than their share of load: it does
    not count for them. `remember` goes to `Memory.apply` once the request is on its way."""

    policy: str
    model: str
    order: tuple[str, ...]
    remember: tuple[int, ...]
    ranked: list[Scored]
    lost: list[Lost]
    spilled: list[str]

    @property
    def chosen(self) -> str | None:
        return self.order[0] if self.order else None

    @property
    def region(self) -> str | None:
        return self.ranked[0][2].region if self.order else None

    @property
    def cached(self) -> int:
        """Prompt tokens that the chosen endpoint is expected to hold already."""
        return self.ranked[0][3] if self.order else 0

    @property
    def reason(self) -> str:
        """One line: why the chosen one won, or why there is none."""
        if not self.order:
            return "no endpoint: " + ("; ".join(f"{n or r}: {why}" for n, r, why in self.lost[:8]) or "none has joined")
        won = self.candidates()[0]
        parts = ", ".join(f"{name} {value:.4g}" for name, value in won.parts.items() if value)
        return f"{self.policy}: {won.name} is best of {len(self.ranked)} with {won.score:.4g} ({parts or 'no parts'})"

    def candidates(self) -> list[Candidate]:
        """Everything weighed, best first, then everything left out. A region left out whole is one entry, name `*`."""
        best = self.ranked[0][0] if self.ranked else 0.0
        scored = [_told(s, best, "chosen" if i == 0 else "") for i, s in enumerate(self.ranked)]
        scored = [replace(c, reason=c.reason + SPILLED) if c.name in self.spilled else c for c in scored]
        return scored + [Candidate(name or "*", region, why) for name, region, why in sorted(self.lost)]


def _told(s: Scored, best: float, reason: str) -> Candidate:
    score, _, spot, cached, rtt, wait, prefill, price, energy, carbon, load = s
    parts = {"rtt": rtt, "wait": wait, "prefill": prefill, "price": price, "energy": energy}
    parts |= {"carbon": carbon, "load": load}
    reason = reason or (f"{score - best:.4g} behind" if score > best else "equal, joined later")
    return Candidate(spot.name, spot.region, reason, score, cached, parts)


def route(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> Decision:  # fmt: skip
    """The best endpoints for `request` at `now`. Reads only; takes no chance (`rng` is for policies that do)."""
    group = view.groups.get(request.model)
    if group is None:
        return Decision("atoll", request.model, (), request.blocks, [], [], [])
    lost: list[Lost] = []
    held = memory.holders(request.blocks) if request.blocks and len(group.spots) > 1 else {}
    ranked, shelves, load, slots = _nominees(group, held, request, objective, lost)
    spilled: list[str] = []
    for spot in group.sick.values():
        if (why := closed(spot, request) or unfit(spot, request, now)) is not None:
            lost.append((spot.name, spot.region, why))
        elif spot.name not in held:
            ranked.append(score(spot, 0, request, objective))
    for name, depth in held.items():
        spot = group.spots.get(name)
        if spot is None or closed(spot, request) or unfit(spot, request, now):
            continue
        share = (load + 1) * spot.slots / (slots or spot.slots)
        bounded = spot.load < max(spot.slots, ceil(objective.bound * share))
        cached = int(cached_tokens(request, depth) * spot.trust) if bounded else 0
        ranked.append(score(spot, cached, request, objective))
        if not bounded:
            spilled.append(name)
    if len(ranked) < ORDER and len(ranked) + len(lost) < len(group.spots):
        _fill(ranked, shelves, request, objective)
    ranked.sort()
    order = tuple([s[2].name for s in ranked[:ORDER]])
    return Decision("atoll", request.model, order, request.blocks, ranked, lost, spilled)


def _nominees(
    group: Group, held: Mapping[str, int], request: Request, objective: Objective, lost: list[Lost]
) -> tuple[list[Scored], list[Shelf], int, int]:
    """Score the least loaded endpoint of each shelf, but for those in `held`. Returns the scores, the shelves open to
    the request, and the load and slots on them. `closed`, `unfit` and `score` written out: most of the cost is here."""
    ranked: list[Scored] = []
    allowed, excluded, wanted, digest = request.allowed, request.excluded, request.modalities, request.digest
    prompt, output, rtts = request.prompt, request.output, request.rtts
    kwh = (prompt + output) / JOULES_PER_KWH
    needed = 0 if request.overlong else prompt + output
    dollars, grams = objective.seconds_per_dollar / NANO, objective.seconds_per_gram * kwh
    bill = objective.seconds_per_dollar * kwh
    busy, load, slots, shelves = objective.seconds_per_load, 0, 0, []
    for shelf in group.shelves.values():
        spot, place = shelf.head, shelf.place
        region = place.id
        if (
            place.status != "live"
            or (allowed is not None and region not in allowed)
            or region in excluded
            or not wanted <= spot.modalities
            or 0 < spot.context < needed
            or (digest and spot.digest != digest)
        ):
            lost.append(("", region, closed(spot, request) or ""))
            continue
        shelves.append(shelf)
        load += shelf.load
        slots += shelf.slots
        if 0 < spot.limit <= spot.outstanding or spot.name in excluded:
            found = next(_fit(shelf, request, lost), None)
            if found is None:
                continue
            spot = found
        if spot.name in held:
            continue
        rtt = rtts.get(region, place.rtt) if rtts else place.rtt
        cost, wait, prefill = spot.price, spot.wait, prompt * spot.per_token
        price = dollars * (prompt * cost.input + output * cost.output) if dollars else 0.0
        energy, carbon = bill * place.electricity * spot.joules, grams * place.carbon * spot.joules
        fill = busy * spot.load / spot.slots
        total = rtt + wait + prefill + price + energy + carbon + fill
        ranked.append((total, spot.seq, spot, 0, rtt, wait, prefill, price, energy, carbon, fill))
    return ranked, shelves, load, slots


def score(spot: Spot, cached: int, request: Request, objective: Objective) -> Scored:
    """(score, tie-break, spot, cached tokens, rtt, wait, prefill, price, energy, carbon, load): the last seven are
    seconds."""
    place = spot.place
    rtts = request.rtts
    rtt = rtts.get(place.id, place.rtt) if rtts else place.rtt
    unread = request.prompt - cached
    prefill = unread * spot.per_token
    cost, dollars = spot.price, objective.seconds_per_dollar / NANO
    price = dollars * (unread * cost.input + cached * cost.cached + request.output * cost.output)
    kwh = (unread + request.output) / JOULES_PER_KWH
    energy = objective.seconds_per_dollar * kwh * place.electricity * spot.joules
    carbon = objective.seconds_per_gram * kwh * place.carbon * spot.joules
    busy, wait = objective.seconds_per_load * spot.load / spot.slots, spot.wait
    total = rtt + wait + prefill + price + energy + carbon + busy
    return (total, spot.seq, spot, cached, rtt, wait, prefill, price, energy, carbon, busy)


def cached_tokens(request: Request, depth: int) -> int:
    """Prompt tokens within the first `depth` blocks; the last token is never cached, as its logits are needed."""
    size = request.prompt_bytes or BYTES_PER_TOKEN * request.prompt
    return max(0, min(request.prompt - 1, request.prompt * OFFSETS[depth - 1] // size)) if size else 0


def closed(spot: Spot, request: Request) -> str | None:
    """Why this endpoint and all on its shelf cannot take the request; None if they can."""
    place = spot.place
    if place.status != "live":
        return f"region is {place.status}"
    if request.allowed is not None and place.id not in request.allowed:
        return "residency: region not allowed"
    if place.id in request.excluded:
        return "region excluded: it failed this request"
    if not request.modalities <= spot.modalities:
        return "cannot take " + ", ".join(sorted(request.modalities - spot.modalities))
    if spot.context and request.prompt + request.output > spot.context and not request.overlong:
        return f"context of {spot.context} tokens is too short for {request.prompt} + {request.output}"
    if request.digest and spot.digest != request.digest:
        return "other weights"
    return None


def unfit(spot: Spot, request: Request, now: float) -> str | None:
    """Why this very endpoint cannot take the request now. An open circuit lets one attempt through when its time has
    come, and no second one before the first has told."""
    if spot.limit and spot.outstanding >= spot.limit:
        return f"full: {spot.outstanding} of {spot.limit} requests"
    if spot.name in request.excluded:
        return "excluded: it failed or refused this request"
    if spot.health.opened and (now < spot.health.retry_at or spot.outstanding):
        return f"unhealthy: {spot.health.failures} failures, next try at {spot.health.retry_at:.1f}"
    return None


def left(request: Request, view: View, now: float, hoping: bool) -> Left:
    """What is left for an answer that was begun with the weights `request.digest`: an endpoint that has them and may
    serve it, only ones with others, or none. While one is `hoping`, those with an open circuit count too, and one that
    has left may come back; after that, open circuits count where there is nothing better. Of a model without any
    endpoint nothing can be said: its engine may just restart."""
    group = view.groups.get(request.model)
    if group is None or not group.spots:
        return "same"
    if hoping and not any(spot.digest == request.digest for spot in group.spots.values()):
        return "same"
    anything = request._replace(digest="", excluded=frozenset())
    spots = [spot for spot in group.spots.values() if closed(spot, anything) is None]
    well = [spot for spot in spots if spot.health.admits(now)]
    found = spots if hoping else well or spots
    if not found:
        return "same" if hoping else "none"
    return "same" if not request.digest or any(spot.digest == request.digest for spot in found) else "other"


def _fit(shelf: Shelf, request: Request, lost: list[Lost]) -> Iterator[Spot]:
    """The endpoints of an open shelf that can take the request, least loaded first; notes those that cannot."""
    for level in shelf.levels[shelf.low :]:
        for spot in level.values():
            if (why := unfit(spot, request, 0.0)) is None:
                yield spot
            else:
                lost.append((spot.name, spot.region, why))


def _fill(ranked: list[Scored], shelves: list[Shelf], request: Request, objective: Objective) -> None:
    """Few regions: each adds as many endpoints as are wanting, so that the order is complete."""
    known, want = {s[2].name for s in ranked}, ORDER - len(ranked)
    for shelf in shelves:
        left = want
        for spot in _fit(shelf, request, []):
            if spot.name not in known:
                ranked.append(score(spot, 0, request, objective))
                left -= 1
                if not left:
                    break


def explain(
    request: Request, view: View, memory: Memory, objective: Objective, rng: Rng, now: float
) -> tuple[Decision, list[Candidate]]:  # fmt: skip
    """The decision, and every endpoint of the card with its score or the reason it has none. O(endpoints)."""
    decision = route(request, view, memory, objective, rng, now)
    group = view.groups.get(request.model, Group())
    told = [c for c in decision.candidates() if c.name != "*"]
    known = {c.name for c in told}
    best = decision.ranked[0][0] if decision.ranked else 0.0
    rest: list[Scored] = []
    for spot in group.spots.values():
        if spot.name in known:
            continue
        if (why := closed(spot, request) or unfit(spot, request, now)) is not None:
            told.append(Candidate(spot.name, spot.region, why))
        else:
            rest.append(score(spot, 0, request, objective))
    for s in sorted(rest):
        told.append(_told(s, best, "not nominated: others of its region have less load"))
    return decision, sorted(told, key=lambda c: (c.name != decision.chosen, c.score is None, c.score or 0.0))

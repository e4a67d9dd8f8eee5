"""Who is served next at a region: a bounded queue with deadlines, priorities and fair shares between keys.

Two levels of start-time fair queueing (Goyal, Vin, Cheng 1996): between the ten priorities, each of which gets twice
the turns of the one below, and within a priority between keys, by `Ticket.weight`. A turn costs `Ticket.cost`. Whoever
is below its share goes first, so a lone urgent request waits for at most one turn of each other priority.

Nobody starves, whatever arrives: with equal costs and weights, a ticket of priority p that has j tickets of its own key
before it starts after at most `n = (j + 1) + k * (j + 2)` turns of its priority, where k other keys use that priority,
and `n + sum over other priorities q of (n * 2 ** (q - p) + 1)` turns in all. Ageing is in turns, not in seconds: each
turn given to others moves who waits closer to the front. When nobody waits, the past is forgotten.

Places in the queue are shared too: when all are taken, a key with fewer than the longest gets the place of the newest
ticket of the longest. Waits are estimated from how long requests took, and from how long those that run have run
already, so that an engine which stalls is noticed before it answers. Each operation is O(log n) amortised.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

PRIORITIES = 10
SMOOTHING = 0.1
UNKNOWN = 1.0
MICRO = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One request, told apart by identity. `deadline` is when it must have begun, on the caller's clock."""

    key: str
    priority: int = 5
    cost: float = 1.0
    deadline: float = float("inf")
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Admit:
    """It runs now; `release` it when it is over."""


@dataclass(frozen=True, slots=True)
class Wait:
    """`position`: how many of those waiting may go first. `evicted` had to give up its place for this one."""

    position: int
    evicted: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """`retry_after` in seconds: when a request like this one would have begun; None where waiting is in vain."""

    reason: str
    retry_after: float | None


@dataclass(slots=True)
class Flow:
    """The waiting tickets of one key at one priority. `entry` tells its valid place in the heap of its band."""

    band: int
    key: str
    tag: float = 0.0
    finish: float = 0.0
    entry: int = -1
    waiting: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Band:
    """One priority. `clock`: start tag of the turn it had last. `keys` of its flows have tickets waiting."""

    share: float
    tag: float = 0.0
    finish: float = 0.0
    clock: float = 0.0
    waiting: int = 0
    keys: int = 0
    tidy_at: int = 64
    flows: dict[str, Flow] = field(default_factory=dict)
    order: list[tuple[float, int, str]] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """Owned by its caller; changed by the functions below only. `limit` requests run at once (0: any number) and
    `capacity` wait. `seconds` is how long a request takes, None until one was over. `running` has the starts in
    microseconds and `started` their sum: integers, so that it stays exact."""

    limit: int
    capacity: int
    seconds: float | None = None
    clock: float = 0.0
    bands: list[Band] = field(default_factory=lambda: [Band(2.0**p) for p in range(PRIORITIES)])
    running: dict[Ticket, int] = field(default_factory=dict)
    started: int = 0
    places: dict[Ticket, Flow] = field(default_factory=dict)
    lengths: list[OrderedDict[tuple[int, str], Flow]] = field(default_factory=list)
    deadlines: list[tuple[float, int, Ticket]] = field(default_factory=list)
    late: dict[Ticket, None] = field(default_factory=dict)
    tidy_at: int = 64
    count: int = 0


def offer(state: State, ticket: Ticket, now: float) -> Admit | Wait | Refuse:
    """A request arrives. Refused early when it cannot begin by its deadline at the rate observed."""
    if not 0 <= ticket.priority < PRIORITIES or ticket.cost < 0 or ticket.weight <= 0:
        raise ValueError(f"priority 0 to {PRIORITIES - 1}, cost >= 0 and weight > 0 are needed: {ticket}")
    if ticket in state.running or ticket in state.places:
        raise ValueError("this ticket was offered before")
    if ticket.deadline <= now:
        return Refuse("the deadline has passed", None)
    _drop_late(state, now)
    if not state.places and _free(state) > 0:
        _start(state, ticket, now)
        return Admit()
    position = _position(state, ticket)
    wait = expected_wait(state, position, now)
    if wait is not None and now + wait > ticket.deadline:
        return Refuse(f"it would wait for {wait:.1f} s, past its deadline", wait)
    evicted = None
    if len(state.places) >= state.capacity:
        evicted = _longest(state, ticket)
        if evicted is None:
            return Refuse("all places to wait are taken", UNKNOWN if wait is None else wait)
        _leave(state, evicted)
    position = min(position, len(state.places))
    _join(state, ticket)
    return Wait(position, evicted)


def release(state: State, ticket: Ticket, now: float) -> tuple[Ticket, ...]:
    """A running request is over. The tickets that begin now."""
    began = state.running.pop(ticket)
    state.started -= began
    took = max(0.0, now - began / MICRO)
    state.seconds = took if state.seconds is None else state.seconds + SMOOTHING * (took - state.seconds)
    return _fill(state, now)


def cancel(state: State, ticket: Ticket) -> bool:
    """Its caller went away while it waited. True if it did; it costs its key nothing."""
    if ticket in state.places:
        _leave(state, ticket)
        return True
    return state.late.pop(ticket, True) is None


def expire(state: State, now: float) -> tuple[Ticket, ...]:
    """The tickets whose deadline passed while they waited, each told once."""
    _drop_late(state, now)
    late, state.late = tuple(state.late), {}
    return late


def resize(state: State, limit: int, capacity: int, now: float) -> tuple[Ticket, ...]:
    """Change both bounds; the tickets that begin now. What runs or waits beyond a smaller bound stays."""
    state.limit, state.capacity = limit, capacity
    return _fill(state, now)


def next_deadline(state: State) -> float | None:
    """When to call `expire` next."""
    while state.deadlines and state.deadlines[0][2] not in state.places:
        heapq.heappop(state.deadlines)
    return state.deadlines[0][0] if state.deadlines else None


def expected_wait(state: State, position: int, now: float) -> float | None:
    """Seconds until a ticket begins that has `position` others before it; None while nothing was observed.
    The mean time of a request over the number that run at once, times the turns to come."""
    if not state.limit or _free(state) > position:
        return 0.0
    age = now - state.started / len(state.running) / MICRO if state.running else 0.0
    if state.seconds is None and age <= 0:
        return None
    return max(state.seconds or 0.0, age) * (position + 1) / state.limit


def _free(state: State) -> float:
    return state.limit - len(state.running) if state.limit else float("inf")


def _fill(state: State, now: float) -> tuple[Ticket, ...]:
    _drop_late(state, now)
    begun = []
    while state.places and _free(state) > 0:
        begun.append(_start(state, _next(state), now))
    return tuple(begun)


def _start(state: State, ticket: Ticket, now: float) -> Ticket:
    state.running[ticket] = round(now * MICRO)
    state.started += state.running[ticket]
    return ticket


def _next(state: State) -> Ticket:
    """The ticket whose turn it is: of the band with the least start tag (the more urgent if equal), the first ticket of
    the key with the least start tag (who waits longer if equal)."""
    band = min((b for b in reversed(state.bands) if b.waiting), key=lambda b: b.tag)
    while True:
        _, entry, key = band.order[0]
        flow = band.flows.get(key)
        if flow is not None and flow.entry == entry and flow.waiting:
            return _leave(state, next(iter(flow.waiting)), served=True)
        heapq.heappop(band.order)


def _join(state: State, ticket: Ticket) -> None:
    band = state.bands[ticket.priority]
    flow = band.flows.get(ticket.key)
    if flow is None:
        flow = band.flows[ticket.key] = Flow(ticket.priority, ticket.key)
    if not band.waiting:
        band.tag = max(state.clock, band.finish)
    if not flow.waiting:
        flow.tag = max(band.clock, flow.finish)
        _queue(state, band, flow)
        band.keys += 1
    state.count += 1
    heapq.heappush(state.deadlines, (ticket.deadline, state.count, ticket))
    state.places[ticket] = flow
    band.waiting += 1
    flow.waiting[ticket] = None
    _measure(state, flow, len(flow.waiting) - 1)
    _tidy(state, band)


def _leave(state: State, ticket: Ticket, served: bool = False) -> Ticket:
    """Take a ticket out of the queue; if it is `served`, its key and priority pay for the turn."""
    flow = state.places.pop(ticket)
    band = state.bands[flow.band]
    del flow.waiting[ticket]
    band.waiting -= 1
    band.keys -= not flow.waiting
    _measure(state, flow, len(flow.waiting) + 1)
    if served:
        state.clock, band.clock = band.tag, flow.tag
        band.tag = band.finish = band.tag + ticket.cost / band.share
        flow.tag = flow.finish = flow.tag + ticket.cost / ticket.weight
        if flow.waiting:
            _queue(state, band, flow)
    _forget(state, band)
    return ticket


def _forget(state: State, band: Band) -> None:
    """Who was ahead of its share no longer matters when nobody waits."""
    if not band.waiting:
        band.flows.clear()
        band.order.clear()
        band.clock = 0.0
    if not state.places:
        state.clock = 0.0
        for each in state.bands:
            each.finish = 0.0


def _queue(state: State, band: Band, flow: Flow) -> None:
    state.count += 1
    flow.entry = state.count
    heapq.heappush(band.order, (flow.tag, flow.entry, flow.key))


def _measure(state: State, flow: Flow, before: int) -> None:
    """Keep flows by the number of their tickets, so that the longest is found at once."""
    length = len(flow.waiting)
    while len(state.lengths) <= length:
        state.lengths.append(OrderedDict())
    place = (flow.band, flow.key)
    if before:
        del state.lengths[before][place]
    if length:
        state.lengths[length][place] = flow
    while state.lengths and not state.lengths[-1]:
        state.lengths.pop()


def _longest(state: State, ticket: Ticket) -> Ticket | None:
    """The newest ticket of the longest flow, if that flow stays at least as long as the one that `ticket` joins."""
    flow = state.bands[ticket.priority].flows.get(ticket.key)
    if len(state.lengths) - 1 <= (len(flow.waiting) if flow else 0) + 1:
        return None
    return next(reversed(next(iter(state.lengths[-1].values())).waiting))


def _drop_late(state: State, now: float) -> None:
    while state.deadlines and state.deadlines[0][0] <= now:
        ticket = heapq.heappop(state.deadlines)[2]
        if ticket in state.places:
            state.late[_leave(state, ticket)] = None


def _position(state: State, ticket: Ticket) -> int:
    """How many of those waiting may go before `ticket`; the bound at the top, and never more than do wait."""
    own = state.bands[ticket.priority]
    flow = own.flows.get(ticket.key)
    mine = len(flow.waiting) if flow else 0
    keys = own.keys - (mine > 0)
    ahead = mine + min(own.waiting - mine, keys * (mine + 2))
    turns = ahead + 1
    others = (min(band.waiting, int(turns * band.share / own.share) + 1) for band in state.bands if band is not own)
    return ahead + sum(others)


def _tidy(state: State, band: Band) -> None:
    """Forget flows without a lead and entries out of date, each time their number has doubled."""
    if len(band.flows) + len(band.order) > band.tidy_at:
        band.flows = {k: f for k, f in band.flows.items() if f.waiting or f.finish > band.clock}
        band.order = sorted((f.tag, f.entry, f.key) for f in band.flows.values() if f.waiting)
        band.tidy_at = 2 * (len(band.flows) + len(band.order)) + 64
    if len(state.deadlines) > state.tidy_at:
        state.deadlines = sorted(d for d in state.deadlines if d[2] in state.places)
        state.tidy_at = 2 * len(state.deadlines) + 64

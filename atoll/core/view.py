"""The fleet as routing sees it: regions, endpoints, and what was observed of them.

The driver owns a `View` and changes it only through its methods, each O(log n) or better. Endpoints that are alike
(same region, limits, price, speed class) share a `Shelf`, where they stand on levels by load, so that the least loaded
one is at hand when a decision is due. Endpoints with an open circuit stand apart until they may be tried.
Times are seconds, `now` is an argument.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from zlib import crc32

from atoll.core.errors import SetupError
from atoll.core.health import Health, observe
from atoll.core.places import RegionStatus
from atoll.core.types import Price

RING_POINTS = 8
LEARNING = 0.2
HOPEFUL = 1e-5
TYPICAL_TOKENS = 500.0
JOULES = 1.0


@dataclass(slots=True, eq=False)
class Place:
    """A region: `carbon` in g CO2 per kWh, `rtt` in seconds from the gateway, `electricity` in US dollars per kWh."""

    id: str
    status: RegionStatus = "live"
    carbon: float = 0.0
    rtt: float = 0.0
    electricity: float = 0.0


@dataclass(slots=True, eq=False)
class Spot:
    """An endpoint that serves one card. Only `View` changes it after it joined.

    Given: `limit` outstanding requests at most (0: none), `slots` requests worked on at once, `context` in tokens
    (0: unknown), `joules` per token read or written (`JOULES` is an estimate, where nothing is known). Learned: `base`
    seconds and `per_token` seconds of prefill, `decode` tokens/s of one stream, `hold` seconds a request keeps its
    slot, `ttft` mean seconds, from `seen` requests, the last at `seen_at`; `trust`, the share of tokens thought cached
    that were. The first guesses are hopeful: what was thought too good is tried and known, what was thought too bad
    would never be tried.
    Counted: `outstanding` requests sent from here and not finished, `others` sent by others (as the region reports),
    `queued` that wait there, `backlog` prompt tokens sent and not yet read. `wait` and `load` follow from these.
    """

    name: str
    region: str
    limit: int = 0
    slots: int = 1
    context: int = 0
    modalities: frozenset[str] = frozenset({"text"})
    price: Price = Price()
    digest: str = ""
    joules: float = JOULES
    base: float = 0.0
    per_token: float = HOPEFUL
    decode: float = 0.0
    hold: float = 0.1
    ttft: float = 0.0
    seen: int = 0
    trust: float = 1.0
    seen_at: float = 0.0
    health: Health = Health()
    outstanding: int = 0
    others: int = 0
    queued: int = 0
    backlog: int = 0
    wait: float = 0.0
    load: int = 0
    seq: int = 0
    speed: int | None = None
    shelf: Shelf | None = None
    place: Place = field(default_factory=lambda: Place(""))

    def estimate(self) -> None:
        """Recompute `load` and `wait`: prompt tokens to be read first, or slots to come free, whichever is longer."""
        self.load = load = self.outstanding + self.others
        over = load + 1 - self.slots
        if over < self.queued:
            over = self.queued
        reading, queue = self.backlog * self.per_token, over * self.hold / self.slots
        self.wait = self.base + (reading if reading > queue else queue)

    def full(self) -> bool:
        return bool(self.limit) and self.outstanding >= self.limit

    def key(self) -> tuple[object, ...]:
        """Endpoints with the same key share a shelf. `speed` is the power of four nearest to the seconds before the
        first token of a typical prompt on an idle endpoint: a slow one must not stand before the quick ones."""
        given = (self.region, self.context, self.modalities, self.price, self.joules, self.digest, self.slots)
        return (*given, self.speed)


class Shelf:
    """Endpoints of one region that differ only in load; `levels[load]` holds them in the order they came there, and
    `head` is the first of the lowest. `load` and `slots` are sums over them."""

    __slots__ = ("head", "key", "levels", "load", "low", "place", "slots", "spots")

    def __init__(self, key: tuple[object, ...], first: Spot) -> None:
        self.key = key
        self.place = first.place
        self.head = first
        self.levels: list[dict[str, Spot]] = [{}]
        self.low = self.load = self.slots = self.spots = 0

    def put(self, spot: Spot) -> None:
        self.spots += 1
        self.load += spot.load
        self.slots += spot.slots
        self._stand(spot)

    def take(self, spot: Spot) -> None:
        self.spots -= 1
        self.load -= spot.load
        self.slots -= spot.slots
        del self.levels[spot.load][spot.name]
        if self.spots:
            self._settle()

    def shift(self, spot: Spot, before: int) -> None:
        """Its load was `before`."""
        self.load += spot.load - before
        del self.levels[before][spot.name]
        self._stand(spot)

    def _stand(self, spot: Spot) -> None:
        levels, load = self.levels, spot.load
        while len(levels) <= load:
            levels.append({})
        levels[load][spot.name] = spot
        if load < self.low:
            self.low = load
        self._settle()

    def _settle(self) -> None:
        levels, low = self.levels, self.low
        while not levels[low]:
            low += 1
        self.low = low
        for self.head in levels[low].values():
            break


class Group:
    """The endpoints of one card. `sick` have an open circuit; `ring` is for consistent hashing: (point, name)."""

    __slots__ = ("joined", "ring", "shelves", "sick", "spots")

    def __init__(self) -> None:
        self.spots: dict[str, Spot] = {}
        self.shelves: dict[tuple[object, ...], Shelf] = {}
        self.sick: dict[str, Spot] = {}
        self.ring: list[tuple[int, str]] = []
        self.joined = 0

    def place(self, spot: Spot) -> None:
        """Put it where it belongs; where it stood before, it leaves."""
        self.remove(spot)
        if spot.health.opened:
            self.sick[spot.name] = spot
            return
        key = spot.key()
        shelf = self.shelves.get(key)
        if shelf is None:
            shelf = self.shelves[key] = Shelf(key, spot)
        spot.shelf = shelf
        shelf.put(spot)

    def remove(self, spot: Spot) -> None:
        if spot.shelf is None:
            self.sick.pop(spot.name, None)
            return
        spot.shelf.take(spot)
        if not spot.shelf.spots:
            del self.shelves[spot.shelf.key]
        spot.shelf = None

    def count(self, spot: Spot) -> None:
        """Its counts changed. One that has left is only counted."""
        before = spot.load
        spot.estimate()
        if spot.shelf is not None and spot.load != before:
            spot.shelf.shift(spot, before)

    def judge(self, spot: Spot, health: Health) -> None:
        was, spot.health = spot.health, health
        if bool(was.opened) != bool(health.opened) and self.spots.get(spot.name) is spot:
            self.place(spot)

    def clock(self, spot: Spot) -> None:
        """What was learned of its speed changed. A spot changes class only well past the border between two, so that
        noise does not move it to and fro."""
        pace = _pace(spot)
        if spot.shelf is not None and abs(pace - (spot.speed or 0)) > 0.75:
            self.remove(spot)
            spot.speed = round(pace)
            self.place(spot)


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way: `tokens` of its prompt are to be read, `cached` are thought to be held there. `waits`
    seconds of waiting are expected before that, with the round trip `expected`."""

    group: Group
    spot: Spot
    tokens: int
    cached: int
    began: float
    waits: float
    expected: float
    first_at: float | None = None
    done: bool = False

    @property
    def foreseen(self) -> float:
        """Seconds from its start to the first token, as the endpoint is known now."""
        return self.expected + self.spot.base + self.tokens * self.spot.per_token


class View:
    """Regions by id, and groups of endpoints by card id."""

    __slots__ = ("groups", "places")

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.groups: dict[str, Group] = {}

    def region(
        self, id: str, status: RegionStatus | None = None, carbon: float | None = None, rtt: float | None = None,
        electricity: float | None = None,
    ) -> Place:  # fmt: skip
        """Make a region known, or change what is given of it."""
        place = self.places.setdefault(id, Place(id))
        place.status = place.status if status is None else status
        place.carbon = place.carbon if carbon is None else carbon
        place.rtt = place.rtt if rtt is None else rtt
        place.electricity = place.electricity if electricity is None else electricity
        return place

    def join(self, model: str, spot: Spot) -> None:
        """Put an endpoint into service for a card; one of the same name is replaced."""
        if spot.slots < 1:
            raise SetupError(f"endpoint '{spot.name}': slots must be at least 1, not {spot.slots}")
        self.leave(model, spot.name)
        group = self.groups.setdefault(model, Group())
        group.joined += 1
        spot.seq = spot.seq or group.joined
        spot.place = self.region(spot.region)
        spot.speed = round(_pace(spot)) if spot.speed is None else spot.speed
        spot.estimate()
        group.spots[spot.name] = spot
        for i in range(RING_POINTS):
            insort(group.ring, (crc32(f"{spot.name}#{i}".encode()), spot.name))
        group.place(spot)

    def leave(self, model: str, name: str) -> None:
        """Take an endpoint out of service; tickets for it may still be finished."""
        group = self.groups.get(model)
        spot = group.spots.pop(name, None) if group else None
        if group is None or spot is None:
            return
        group.remove(spot)
        for i in range(RING_POINTS):
            del group.ring[bisect_left(group.ring, (crc32(f"{name}#{i}".encode()), name))]

    def spot(self, model: str, name: str) -> Spot | None:
        group = self.groups.get(model)
        return group.spots.get(name) if group else None

    def begin(
        self, model: str, spot: Spot, tokens: int, now: float, cached: int = 0, rtt: float | None = None
    ) -> Ticket:
        """A request leaves for an endpoint, `rtt` seconds away if that is not the region's: `tokens` of its prompt are
        to be read there, `cached` more are thought to be held (`Decision.cached`)."""
        group = self.groups[model]
        waits = spot.wait - spot.base
        away = spot.place.rtt if rtt is None else rtt
        ticket = Ticket(group, spot, tokens, cached, now, waits, waits + away)
        spot.outstanding += 1
        spot.backlog += tokens
        group.count(spot)
        return ticket

    def first(self, ticket: Ticket, now: float) -> None:
        """Its first token arrived, so its prompt is read."""
        if ticket.first_at is not None or ticket.done:
            return
        spot, seconds = ticket.spot, now - ticket.began
        ticket.first_at = now
        spot.ttft = spot.ttft + LEARNING * (seconds - spot.ttft) if spot.ttft else seconds
        spot.backlog -= ticket.tokens
        spot.estimate()

    def forgive(self, now: float, after: float = 30.0) -> None:
        """Think a little better of endpoints not heard of for `after` seconds, so that one that was slow is tried
        again. Call it every few seconds; it looks at every endpoint."""
        for group in self.groups.values():
            for spot in list(group.spots.values()):
                if spot.seen and now - spot.seen_at > after:
                    spot.base = spot.base / 2 if spot.base > 0.001 else 0.0
                    spot.per_token = max(HOPEFUL, spot.per_token / 2)
                    group.count(spot)
                    group.clock(spot)

    def finish(
        self, ticket: Ticket, now: float, output: int = 0, ok: bool | None = None, cached: int | None = None
    ) -> None:
        """It ended after `output` tokens, `cached` of its prompt having been in the engine's cache, if the engine said
        so. `ok` is for the endpoint's health: None says nothing (the client went away)."""
        if ticket.done:
            return
        ticket.done = True
        spot = ticket.spot
        spot.outstanding -= 1
        if ticket.first_at is None:
            spot.backlog -= ticket.tokens
        elif ok:
            _learn(ticket, now, output, cached)
            ticket.group.clock(spot)
        ticket.group.count(spot)
        if ok is not None:
            ticket.group.judge(spot, observe(spot.health, ok, now))

    def judge(self, ticket: Ticket, ok: bool, now: float) -> None:
        """What a request under way says of its endpoint's health."""
        ticket.group.judge(ticket.spot, observe(ticket.spot.health, ok, now))

    def health(self, model: str, name: str, health: Health) -> None:
        """What a probe, or anything else that looked, found."""
        group = self.groups[model]
        group.judge(group.spots[name], health)

    def report(self, model: str, name: str, running: int, waiting: int) -> None:
        """What the region says of an endpoint: requests worked on and requests that wait, whoever sent them."""
        group = self.groups[model]
        spot = group.spots[name]
        spot.others = max(0, running + waiting - spot.outstanding)
        spot.queued = waiting
        group.count(spot)


def _pace(spot: Spot) -> float:
    return math.log(spot.base + TYPICAL_TOKENS * spot.per_token, 4.0)


def _learn(ticket: Ticket, now: float, output: int, cached: int | None) -> None:
    """What a request that ended well tells of its endpoint: seconds before the first token, seconds a token of prompt,
    tokens/s after that, seconds a slot was held, and how much of what was thought cached there really was.

    Seconds before the first token, waiting taken off, are fitted to base + tokens x per_token by normalised least mean
    squares (Widrow and Hoff 1960). The more of the time was waiting, the less is learned from it: its error is not the
    engine's. The first requests count fully."""
    spot, first_at = ticket.spot, ticket.first_at or now
    rate = max(LEARNING, 1.0 / (spot.seen + 1))
    tokens = ticket.tokens
    if cached is not None:
        tokens = max(1, ticket.tokens + ticket.cached - cached)
        if ticket.cached:
            spot.trust += LEARNING * (min(1.0, cached / ticket.cached) - spot.trust)
    seconds, busy = first_at - ticket.began, now - first_at
    own, size = spot.base + tokens * spot.per_token, tokens / TYPICAL_TOKENS
    missed = seconds - ticket.expected - own
    weight = (own + 0.01) / (own + 0.01 + ticket.waits)
    step = rate * weight * missed / (1.0 + size * size)
    spot.base = max(0.0, spot.base + step)
    spot.per_token = max(1e-6, spot.per_token + step * size / TYPICAL_TOKENS)
    spot.hold += rate * (busy + tokens * spot.per_token - spot.hold)
    if output > 1 and busy > 0:
        spot.decode += (rate if spot.decode else 1.0) * ((output - 1) / busy - spot.decode)
    spot.seen += 1
    spot.seen_at = now

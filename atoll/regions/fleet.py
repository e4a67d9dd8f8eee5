"""The live picture of the fleet, and how a request reaches it: choose, connect, fail over, give up in time."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import orjson

from atoll.core.cards import Card
from atoll.core.errors import (
    AtollError,
    DeadlineExceeded,
    EngineFailed,
    NotFound,
    Overloaded,
    QuotaExceeded,
    Unplaceable,
    from_wire,
)
from atoll.core.health import STEADY, Health
from atoll.core.ports import Ask
from atoll.core.prefix import Memory
from atoll.core.recover import Left
from atoll.core.replay import record
from atoll.core.route import OBJECTIVES, ORDER, Decision, Request, closed, left, route, unfit
from atoll.core.types import Endpoint
from atoll.core.view import JOULES, Spot, Ticket, View
from atoll.regions.beats import silence
from atoll.regions.upstream import UNREACHABLE, Connection, Pool, Sink, Timeouts
from atoll.regions.vitals import LAG_S, Watch

log = logging.getLogger("atoll.regions")

ATTEMPTS = 3
LIVELY = Timeouts(connect=2.0, head=3.0, idle=2.5)
REMEMBERED = 1000
SLOTS = 4
PANIC = 3600.0
REFUSALS = {429, 503}


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint in service for one card."""

    endpoint: Endpoint
    pool: Pool
    spot: Spot


class Message(NamedTuple):
    """What is sent, wherever it goes."""

    path: str
    body: bytes
    content_type: str


class Made(NamedTuple):
    """A decision of the past, and what it was made from."""

    at: float
    request: Request
    decision: Decision


class Answer:
    """`core.ports.Reply` over one connection; tells the view how it went. `elsewhere`: whether another endpoint could
    serve it now."""

    __slots__ = (
        "_connection", "_elsewhere", "_heard", "_mark", "_pieces", "_ticket", "_view", "_watch", "endpoint", "headers",
        "status",
    )  # fmt: skip

    def __init__(
        self, view: View, watch: Watch, ticket: Ticket, connection: Connection, elsewhere: Callable[[], bool]
    ) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self.endpoint = connection.pool.endpoint
        self._view = view
        self._watch = watch
        self._elsewhere = elsewhere
        self._ticket = ticket
        self._pieces = 0
        self._heard = 0.0
        self._mark = (0.0, 0)
        self._connection: Connection | None = connection

    @property
    def expected(self) -> float:
        return self._ticket.foreseen

    async def read(self) -> bytes:
        """A station that lives, but whose engine hangs or has fallen silent in the middle, is given up too."""
        try:
            data = await self._open().read()
        except AtollError:
            self.fail()
            raise
        now = time.time()
        if b"data:" in data or not self.endpoint.station:
            self._pieces += 1
            self._heard = now
            self._view.first(self._ticket, now)
            if self.endpoint.station and self._lags(now):
                self._end(False)
                raise DeadlineExceeded(f"'{self.endpoint.name}' makes tokens too slowly")
        elif data and (silent := self._stalled(data, now)):
            self._end(False)
            raise DeadlineExceeded(f"'{self.endpoint.name}' made no token for {silent:.0f} s")
        return data

    def _lags(self, now: float) -> bool:
        """Whether the last seconds of the answer came too slowly, and another endpoint could go on with it."""
        since, before = self._mark
        tokens, seconds = self._pieces - before, now - since
        if not since or (seconds >= LAG_S and tokens >= STEADY):
            self._mark = now, self._pieces
            return bool(since) and self._watch.lags(self.endpoint.name, tokens, seconds, now) and self._elsewhere()
        return False

    def _stalled(self, beat: bytes, now: float) -> float:
        """Seconds without a token where these are too many. Before the first one the station counts them."""
        if self._pieces:
            silent = now - self._heard
            return silent if self._watch.stalled(self.endpoint.name, silent) else 0.0
        silent = silence(beat)
        return silent if silent and self._watch.hangs(self._ticket, silent) and self._elsewhere() else 0.0

    async def pipe(self, sink: Sink, drained: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._open().pipe(sink, drained)
        except AtollError:
            self.fail()
            raise

    def _open(self) -> Connection:
        if self._connection is None:
            raise EngineFailed("the answer was closed")
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._end(True if self._connection.complete and self.status < 500 else None)

    def fail(self) -> None:
        """What it said was an error, or made no sense."""
        if self._connection is not None:
            self._end(False)

    def _end(self, ok: bool | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
        now = time.time()
        if ok is not None and self.endpoint.station:
            ok = self._watch.examine(self._ticket, self._pieces, not ok, now) is None
        self._view.finish(self._ticket, now, self._pieces, ok)


class Fleet:
    """Cards, tiers and the endpoints behind them. Implements `core.ports.Models`. `policy` chooses endpoints and
    `objective` says what counts; `log` takes a record of each decision."""

    def __init__(self, timeouts: Timeouts | None = None, patience: float = 20.0) -> None:
        self.timeouts = timeouts or Timeouts()
        self.patience = patience
        self.tiers: dict[str, str] = {}
        self.view = View()
        self.memory = Memory()
        self.policy = route
        self.objective = OBJECTIVES["balanced"]
        self.decisions: OrderedDict[str, list[Made]] = OrderedDict()
        self.log: Callable[[bytes], object] | None = None
        self._rng = random.Random()
        self._cards: dict[str, Card] = {}
        self._members: dict[str, dict[str, Member]] = {}
        self._watches: dict[str, Watch] = {}
        self._failed: dict[str, str] = {}
        self._changed = asyncio.Event()

    def cards(self) -> Mapping[str, Card]:
        return MappingProxyType(self._cards)

    def resolve(self, name: str) -> Card:
        card = self._cards.get(name) or self._cards.get(self.tiers.get(name, ""))
        if card is None:
            known = ", ".join([*sorted(self.tiers), *sorted(self._cards)])
            message = f"model '{name}' does not exist here; there are: {known}"
            raise NotFound(message, param="model", code="model_not_found")
        return card

    def offer(self, card: Card) -> None:
        """Make a model known; requests wait up to `patience` seconds for its first endpoint."""
        self._cards[card.id] = card
        self._members.setdefault(card.id, {})
        self._watches.setdefault(card.id, Watch())
        self._failed.pop(card.id, None)

    async def retire(self, card_id: str) -> None:
        self._cards.pop(card_id, None)
        members = self._members.pop(card_id, {})
        for name in members:
            self.view.leave(card_id, name)
        while any(member.spot.outstanding for member in members.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for member in members.values():
            await member.pool.close()

    def join(
        self, card_id: str, endpoint: Endpoint, limit: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        """Put an endpoint into service; one of the same name is replaced (an engine restarted elsewhere). A station
        that streams says at least twice a second that it lives, so its silence is soon taken for death."""
        card = self._cards[card_id]
        lively = endpoint.station and card.resumes
        pool = Pool(endpoint, LIVELY if lively else self.timeouts, tls)
        spot = Spot(endpoint.name, endpoint.region, limit=limit, slots=limit or SLOTS, price=card.price)
        spot.modalities, spot.digest = frozenset({"text", *card.input}), endpoint.digest
        spot.context, spot.joules = card.context if card.task == "chat" else 0, joules(card)
        self.leave(card_id, endpoint.name)
        self.view.join(card_id, spot)
        self._members[card_id][endpoint.name] = Member(endpoint, pool, spot)
        self._failed.pop(card_id, None)
        self._wake()

    def leave(self, card_id: str, name: str) -> None:
        """Take an endpoint out of service; requests under way on it go on."""
        if (member := self._members.get(card_id, {}).pop(name, None)) is not None:
            member.pool.retire()
            self.view.leave(card_id, name)
            self.memory.forget(name)
            self._watches[card_id].forget(name)

    def fail(self, card_id: str, reason: str) -> None:
        """While this model has no endpoint, refuse its requests with `reason` instead of letting them wait."""
        self._failed[card_id] = reason
        self._wake()

    def _wake(self) -> None:
        """Requests that wait for an endpoint look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def members(self, card_id: str) -> list[Spot]:
        return [member.spot for member in self._members.get(card_id, {}).values()]

    def left(self, request: Request, hoping: bool) -> Left:
        return left(request._replace(overlong=True), self.view, time.time(), hoping)

    def heal(self, card_id: str, name: str) -> None:
        """A probe found that an endpoint lives again."""
        if (member := self._members.get(card_id, {}).get(name)) is not None and member.spot.health.opened:
            self.view.health(card_id, name, Health())
            self._wake()

    def report(self, card_id: str, name: str, running: int, waiting: int) -> None:
        """What a region says of an endpoint: requests worked on and requests that wait, whoever sent them."""
        if name in self._members.get(card_id, {}):
            self.view.report(card_id, name, running, waiting)

    def review(self) -> None:
        """Every few seconds: leave out who fares far worse than its peers, and think better of those left alone."""
        now = time.time()
        for card_id, watch in self._watches.items():
            for name, ejected in watch.eject(now).items():
                if name in self._members.get(card_id, {}):
                    log.warning("%s is left out for a while: %s", name, ejected.reason)
                    self.view.health(card_id, name, Health(1, 1, ejected.until))
        self.view.forgive(now)

    async def open(
        self, card: Card, path: str, body: bytes, content_type: str = "application/json", ask: Ask | None = None
    ) -> Answer:
        """Send to the best endpoint; before the first byte of an answer, failures move on to the next one.

        An engine that is just restarting is waited for, up to `patience` seconds.
        """
        ask = ask or Ask(Request("", card.id))
        search, message = Search(self, card, ask), Message(path, body, content_type)
        while True:
            changed = self._changed
            decision = search.decide()
            for name in decision.order:
                try:
                    return await self._attempt(message, name, ask, decision)
                except (EngineFailed, DeadlineExceeded, Overloaded, QuotaExceeded) as error:
                    search.failed(name, error)
            if search.goes_on:
                continue
            search.give_up()
            try:
                async with asyncio.timeout(min(search.left, 0.5)):
                    await changed.wait()
            except TimeoutError:
                continue

    def decide(self, request: Request, asked: frozenset[str] = frozenset()) -> Decision:
        """Endpoints that a request excludes are used all the same when there are no others, and ones with an open
        circuit when all have: better than nothing. Those that were `asked` just now are not used again, and where
        by the estimate none is long enough, its length is left to the engine, which counts exactly."""
        now = time.time()
        if (overlong := self.overlong(request)) or asked:
            request = request._replace(excluded=request.excluded | asked, overlong=overlong)
        decision = self._decided(request, now)
        if not decision.order and not asked and self._members.get(request.model):
            decision = self._decided(request._replace(excluded=frozenset()), now)
            if not decision.order:
                decision = self._decided(request, now + PANIC)
        if request.id and (decision.order or not asked):
            self.decisions.setdefault(request.id, []).append(Made(now, request, decision))
            if len(self.decisions) > REMEMBERED:
                self.decisions.popitem(last=False)
        return decision

    def overlong(self, request: Request) -> bool:
        needed, places = request.prompt + request.output, request.allowed
        spots = (member.spot for member in self._members.get(request.model, {}).values())
        usable = (s for s in spots if s.place.status == "live" and (places is None or s.region in places))
        return all(0 < spot.context < needed for spot in usable)

    def _decided(self, request: Request, now: float) -> Decision:
        if self.log is None:
            return self.policy(request, self.view, self.memory, self.objective, self._rng, now)
        seed = self._rng.getrandbits(31)
        decision = self.policy(request, self.view, self.memory, self.objective, random.Random(seed), now)
        self.log(record(request, self.view, self.memory, self.objective, seed, now, decision))
        return decision

    async def _attempt(self, message: Message, name: str, ask: Ask, decision: Decision) -> Answer:
        model = decision.model
        member = self._members[model].get(name)
        if member is None:
            raise EngineFailed(f"endpoint '{name}' has just left", code=UNREACHABLE)
        cached = decision.cached if name == decision.chosen else 0
        ticket = self.view.begin(model, member.spot, ask.request.prompt - cached, time.time(), cached=cached)
        extra = _told(ask) if member.endpoint.station else ""
        ok: bool | None = False
        if ask.tried is not None:
            ask.tried(member.endpoint)
        try:
            connection = await member.pool.request(message.path, message.body, message.content_type, extra)
            if connection.status in REFUSALS and member.endpoint.station:
                ok = None
                raise await _refused(connection)
        except (AtollError, asyncio.CancelledError) as error:
            self.view.finish(ticket, time.time(), ok=None if isinstance(error, asyncio.CancelledError) else ok)
            raise
        self.memory.apply(decision, name)
        return Answer(self.view, self._watches[model], ticket, connection, partial(self._elsewhere, ask.request, name))

    def _elsewhere(self, request: Request, name: str) -> bool:
        """Whether another endpoint could take the request now, or go on with its answer, be it one that failed it
        before."""
        if not self.resolve(request.model).resumes:
            return False
        asked, now = request._replace(excluded=frozenset(), overlong=True), time.time()
        others = (spot for spot in self.members(request.model) if spot.name != name)
        return any(not closed(spot, asked) and not unfit(spot, asked, now) for spot in others)

    async def close(self) -> None:
        for members in self._members.values():
            for member in members.values():
                await member.pool.close()


class Search:
    """One request looking for an endpoint that takes it."""

    def __init__(self, fleet: Fleet, card: Card, ask: Ask) -> None:
        self.fleet = fleet
        self.card = card
        self.ask = ask
        self.decision: Decision | None = None
        began = time.monotonic()
        self._until = began + (ask.deadline if ask.waits else min(fleet.patience, ask.deadline))
        self._hopes_until = began + ask.hope
        self._attempts = ATTEMPTS
        self._asked: set[str] = set()
        self._refusals: list[AtollError] = []
        self._failure: AtollError | None = None

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    @property
    def goes_on(self) -> bool:
        """A decision names no more than `ORDER` endpoints: where all of them were asked in vain, others may be free."""
        return self.decision is not None and len(self.decision.order) == ORDER and self.left > 0

    def decide(self) -> Decision:
        self.decision = self.fleet.decide(self.ask.request, frozenset(self._asked))
        return self.decision

    def failed(self, name: str, error: AtollError) -> None:
        self._asked.add(name)
        if isinstance(error, Overloaded | QuotaExceeded):
            self._refusals.append(error)
            return
        self._failure = error
        self._attempts -= error.code != UNREACHABLE
        if (self._attempts <= 0 or isinstance(error, DeadlineExceeded)) and not self.ask.waits:
            raise error

    def give_up(self) -> None:
        """Raises, unless it is worth waiting for a change, after which all may be asked again."""
        assert self.decision is not None
        members = self.fleet.members(self.card.id)
        if not members and self.card.id in self.fleet._failed:
            raise EngineFailed(self.fleet._failed[self.card.id])
        if self._refusals and len(self._refusals) == len(self._asked):
            raise min(self._refusals, key=lambda e: e.retry_after or 1.0)
        if (places := self.ask.request.allowed) is not None:
            members = [spot for spot in members if spot.region in places]
            if not members and not self.ask.waits:
                raise Unplaceable(f"no region that the residency rule allows serves '{self.card.id}' now")
        if members and not self.decision.order and all(spot.full() for spot in members):
            soonest = min(spot.hold / spot.slots for spot in members)
            raise Overloaded(f"'{self.card.id}' is at its limit of waiting requests", retry_after=soonest)
        if self.ask.request.digest:
            hoping = time.monotonic() < self._hopes_until
            if self.fleet.left(self.ask.request, hoping) == "other":
                raise self._failure or EngineFailed(f"only other weights of '{self.card.id}' are left")
        if self.left <= 0:
            if places is not None:
                raise Unplaceable(f"no region that the residency rule allows answers for '{self.card.id}' now")
            message = f"no endpoint serves '{self.card.id}' now; try again, or see 'atoll status'"
            raise self._failure or EngineFailed(message)
        self._asked.clear()
        self._refusals.clear()


def joules(card: Card) -> float:
    """Joules per token: as the card says, or else the estimate; none for what is not counted in tokens."""
    return card.joules or (JOULES if card.unit == "token" else 0.0)


def _told(ask: Ask) -> str:
    """Headers for a station."""
    key = ask.request.key
    return f"x-atoll-key: {key}\r\nx-atoll-priority: {ask.priority}\r\nx-atoll-deadline: {ask.deadline:.1f}\r\n"


async def _refused(connection: Connection) -> AtollError:
    """The error of a station that did not take a request."""
    try:
        body = b""
        while data := await connection.read():
            body += data
        return from_wire(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return EngineFailed("the station refused without saying why")
    finally:
        connection.release()

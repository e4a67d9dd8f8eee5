"""One request to a model, from admission to its ledger row, whatever API it came through."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from atoll.core.cards import Card
from atoll.core.errors import AtollError, QuotaExceeded
from atoll.core.meter import meter
from atoll.core.places import Region
from atoll.core.ports import Ask, Ledger, Models, Reply
from atoll.core.prefix import blocks
from atoll.core.quota import Ask as Need
from atoll.core.quota import Ticket
from atoll.core.recover import Budget, Hedging, earn
from atoll.core.route import BYTES_PER_TOKEN, Request
from atoll.core.types import BY_TEXT, Endpoint, Entry, Key, Price, Status, Usage
from atoll.gateway.accounts import Accounts
from atoll.gateway.http import Http
from atoll.gateway.placing import Place, Placing
from atoll.gateway.tracing import Tracer


class Bound(NamedTuple):
    """The most a request can use, in the card's units."""

    input: int
    output: int = 0

    def ask(self, price: Price) -> Need:
        cost = self.input * max(price.input, price.cached) + self.output * price.output
        return Need(self.input + self.output, cost)


class Needs(NamedTuple):
    """What an answer asks of an endpoint: the media of its input, and the most tokens that it makes of it (0: as many
    as the card allows). `prompt` tokens where they do not follow from the size of the body, as with pictures."""

    modalities: frozenset[str] = frozenset({"text"})
    output: int = 0
    prompt: int = 0


Recount = Callable[[], Awaitable[Bound | None]]


@dataclass(frozen=True, slots=True)
class Wish:
    """Where an answer is to go on: not at `excluded` endpoints, and with these weights; the rest as in `Ask`."""

    excluded: frozenset[str] = frozenset()
    digest: str = ""
    tried: Callable[[Endpoint], None] | None = None
    hope: float = 0.0


ANYWHERE = Wish()
OFF = Hedging()


class Charge:
    """A request under way. Set `usage` as it becomes known; `settle` exactly once.

    `card` is what is charged, `serving` the model that answers: another one where `card` is composed."""

    __slots__ = (
        "_asked", "_delivered", "_exchange", "_pieces", "_ticket", "card", "entry", "first_token_ms", "grade", "key",
        "needs", "place", "region", "serving", "usage",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, card: Card, key: Key, entry: Entry, ticket: Ticket, place: Place
    ) -> None:
        self._exchange = exchange
        self._ticket = ticket
        self._delivered: list[tuple[str, int]] = []
        self._pieces = False
        self._asked: list[str] = []
        self.key = key
        self.place = place
        self.grade = ""
        self.card = self.serving = card
        self.needs = Needs()
        self.entry = entry
        self.region = ""
        self.usage = Usage()
        self.first_token_ms: float | None = None

    def asked(self, endpoint: Endpoint) -> None:
        """The request is sent to an endpoint."""
        self._asked.append(endpoint.region)

    def ask(self, request: Request, wish: Wish = ANYWHERE) -> Ask:
        """`request` with the priority, patience and account of this charge."""
        tried = wish.tried or self.asked
        return Ask(request, self.key.policy.priority, waits=self.place.waits, tried=tried, hope=wish.hope)

    def delivered(self, tokens: int | None, piece: str) -> None:
        """`tokens` more of the answer came from `region`; None, where the engine tells no ids, is one for a `piece`."""
        self._pieces = self._pieces or tokens is None
        tokens = int(bool(piece)) if tokens is None else tokens
        if self._delivered and self._delivered[-1][0] == self.region:
            tokens += self._delivered.pop()[1]
        self._delivered.append((self.region, tokens))

    def recovered(self, grade: str) -> None:
        """A broken answer goes on elsewhere; each way is named once, in the order they were gone."""
        if self.grade.split(">")[-1].removesuffix(BY_TEXT) != grade:
            self.grade = f"{self.grade}>{grade}" if self.grade else grade

    def by_text(self) -> None:
        """What was sent is checked, but as text: the engine tells no token ids."""
        if self.grade and not self.grade.endswith(BY_TEXT):
            self.grade += BY_TEXT

    def restarted(self) -> None:
        """A broken answer begins anew with other weights; what was sent of it is not charged."""
        self._delivered.clear()
        self.grade = "restart"

    def first_token(self) -> None:
        if self.first_token_ms is None:
            self.first_token_ms = (time.time() - self.entry.created_at) * 1000

    def settle(
        self, status: Status = "done", http_status: int = 200, error: str | None = None
    ) -> Awaitable[None]:
        """Charge what was used, never more than was reserved whatever an engine claims, and free the rest.
        The row is durable when the awaitable resolves."""
        opened, usage, reserved = self.entry, self.usage, self._ticket.ask
        cost = min(meter(usage, self.card.price), reserved.cost)
        tokens = min(usage.input + usage.output, reserved.tokens)
        self._exchange.accounts.settle(opened.key_id, self._ticket, tokens, cost)
        self.entry = Entry(
            opened.id,
            opened.key_id,
            opened.model,
            self._delivered[-1][0] if self._delivered else self.region,
            opened.route,
            opened.created_at,
            status,
            usage,
            cost,
            http_status,
            self.first_token_ms,
            (time.time() - opened.created_at) * 1000,
            error,
            self._path(),
            opened.stored_in,
            opened.rule,
            self.grade,
        )
        return self._exchange.finish(self.entry)

    def _path(self) -> str:
        """Who made how many of the sent tokens, in order; before them, with 0, who else was asked. Where pieces were
        counted, these share what the engine counted."""
        made = self._delivered or ([(self.region, self.usage.output)] if self.region else [])
        if self._pieces:
            made = shared_out(made, self.usage.output)
        if len(self._asked) > len(made):
            names = {region for region, _ in made}
            made = [*((region, 0) for region in dict.fromkeys(self._asked) if region not in names), *made]
        return " ".join([f"{region}:{tokens}" for region, tokens in made])

    @property
    def settled(self) -> bool:
        return self.entry.status != "open"


def shared_out(made: list[tuple[str, int]], total: int) -> list[tuple[str, int]]:
    """Each step as many tokens as it has pieces while there are any left of `total`; the last has the rest."""
    steps = []
    for region, pieces in made[:-1]:
        steps.append((region, min(pieces, total)))
        total -= steps[-1][1]
    return [*steps, (made[-1][0], total)]


Observer = Callable[[Entry], None]


class Exchange:
    """What surfaces need to serve a request: models, accounts, the ledger, and who wants to watch."""

    def __init__(
        self, models: Models, accounts: Accounts, ledger: Ledger, placing: Placing | None = None,
        hedging: Hedging = OFF,
    ) -> None:  # fmt: skip
        self.models = models
        self.placing = placing or Placing({"here": Region("here", "", "", 0.0, 0.0, "live")}, "here")
        self.accounts = accounts
        self.ledger = ledger
        self.observers: list[Observer] = []
        self.recent: deque[Entry] = deque(maxlen=200)
        self.running: dict[str, Charge] = {}
        self.retries = Budget(at=time.monotonic())
        self.hedging = hedging
        self.tracer: Tracer | None = None
        self._parents: dict[str, str] = {}

    async def begin(
        self, http: Http, key: Key, card: Card, bound: Bound, recount: Recount | None = None
    ) -> Charge:
        """Reserve the upper bound and open the ledger row. A bound that does not fit is replaced by what `recount`
        tells, where it can. Raises QuotaExceeded (which is a row too)."""
        place = http.place = http.place or self.placing.of(key)
        entry = Entry(
            http.id, key.id, card.id, "", http.path, time.time(), stored_in=place.stored_in, rule=place.rule
        )
        if self.tracer is not None and (parent := http.header(b"traceparent")):
            self._parents[entry.id] = parent
        try:
            ticket = await self._reserve(key, card, bound, recount)
        except AtollError as error:
            refused = entry._replace(status="failed", http_status=error.status, error=error.code)
            self.finish(refused)
            raise
        try:
            self.ledger.record(entry)
        except AtollError:
            self.accounts.settle(key.id, ticket)
            raise
        for observe in self.observers:
            observe(entry)
        self.retries = earn(self.retries, time.monotonic())
        charge = Charge(self, card, key, entry, ticket, place)
        self.running[entry.id] = charge
        return charge

    async def _reserve(self, key: Key, card: Card, bound: Bound, recount: Recount | None) -> Ticket:
        try:
            return await self.accounts.reserve(key, bound.ask(card.price))
        except QuotaExceeded:
            exact = await recount() if recount else None
            if exact is None:
                raise
        return await self.accounts.reserve(key, exact.ask(card.price))

    async def open(
        self, http: Http, charge: Charge, path: str, body: bytes, content_type: str = "application/json",
        wish: Wish = ANYWHERE,
    ) -> Reply:  # fmt: skip
        """Send to the fleet; the engine's slot is freed as soon as the client goes away, answered or not."""
        http.cancel_when_gone()
        reply = await self.reach(charge, path, body, content_type, wish)
        charge.region = reply.endpoint.region
        http.served_by(reply.endpoint.region, reply.endpoint.name)
        http.on_gone(reply.close)
        return reply

    def reach(
        self, charge: Charge, path: str, body: bytes, content_type: str = "application/json", wish: Wish = ANYWHERE
    ) -> Awaitable[Reply]:  # fmt: skip
        """An endpoint's reply, with nobody waiting for it yet."""
        start = max(body.find(b'"messages":'), body.find(b'"prompt":'), 0)
        size, needs = len(body) - start, charge.needs
        request = Request(
            charge.entry.id,
            charge.serving.id,
            charge.key.id,
            needs.modalities,
            prompt=needs.prompt or size // BYTES_PER_TOKEN,
            output=needs.output or charge.card.max_output,
            prompt_bytes=size,
            blocks=blocks(body[start:], charge.serving.id) if size >= 256 else (),
            allowed=charge.place.allowed,
            excluded=wish.excluded,
            digest=wish.digest,
        )
        return self.models.open(charge.serving, path, body, content_type, charge.ask(request, wish))

    async def guard(self, http: Http, charge: Charge, serve: Awaitable[Any]) -> None:
        """Run `serve` and make sure that the charge is settled and the slot freed, however it ends."""
        try:
            await serve
        except AtollError as error:
            if not charge.settled:
                gone = http.gone
                status: Status = "cancelled" if gone else "failed"
                charge.settle(status, 499 if gone else error.status, None if gone else error.code)
            if not http.gone:
                raise
        except asyncio.CancelledError:
            if not charge.settled:
                charge.settle("cancelled", 499)
            raise
        finally:
            http.unwatch()
            if not charge.settled:
                charge.settle("failed", 500, "internal_error")

    def finish(self, entry: Entry) -> Awaitable[None]:
        self.running.pop(entry.id, None)
        self.recent.appendleft(entry)
        for observe in self.observers:
            observe(entry)
        parent = self._parents.pop(entry.id, None) if self._parents else None
        if self.tracer is not None and self.placing.may_trace(entry.rule):
            self.tracer.record(entry, parent)
        return self.ledger.record(entry)

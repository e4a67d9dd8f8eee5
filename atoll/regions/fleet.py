"""The live picture of the fleet, and how a request reaches it: choose, connect, fail over, give up in time."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from atoll.core.cards import Card
from atoll.core.errors import AtollError, DeadlineExceeded, EngineFailed, NotFound, Overloaded
from atoll.core.prefix import Memory
from atoll.core.route import OBJECTIVES, Request, route
from atoll.core.types import Endpoint
from atoll.core.view import Spot, Ticket, View
from atoll.regions.upstream import UNREACHABLE, Connection, Pool, Sink, Timeouts

ATTEMPTS = 3
LIVELY = Timeouts(connect=2.0, head=3.0, idle=2.5)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint in service for one card."""

    endpoint: Endpoint
    pool: Pool
    spot: Spot


class Answer:
    """`core.ports.Reply` over one connection; keeps the view's books."""

    __slots__ = ("_connection", "_ticket", "_view", "endpoint", "headers", "status")

    def __init__(self, member: Member, connection: Connection, view: View, ticket: Ticket) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self.endpoint = member.endpoint
        self._view, self._ticket = view, ticket
        self._connection: Connection | None = connection

    async def read(self) -> bytes:
        return await self._watched(self._open().read())

    async def pipe(self, sink: Sink, drained: Callable[[], Awaitable[None]]) -> None:
        await self._watched(self._open().pipe(sink, drained))

    def _open(self) -> Connection:
        if self._connection is None:
            raise EngineFailed("the answer was closed")
        return self._connection

    async def _watched(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except AtollError:
            if self._connection is not None:
                self._view.finish(self._ticket, time.time(), ok=False)
                self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None
            self._view.finish(self._ticket, time.time())


class Fleet:
    """Cards, tiers and the endpoints behind them. Implements `core.ports.Models`."""

    def __init__(self, timeouts: Timeouts | None = None, patience: float = 20.0) -> None:
        self.timeouts = timeouts or Timeouts()
        self.chance = random.Random()
        self.patience = patience
        self.tiers: dict[str, str] = {}
        self._cards: dict[str, Card] = {}
        self.view, self.memory = View(), Memory()
        self._members: dict[str, list[Member]] = {}
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
        self._members.setdefault(card.id, [])
        self._failed.pop(card.id, None)

    async def retire(self, card_id: str) -> None:
        self._cards.pop(card_id, None)
        members = self._members.pop(card_id, [])
        for member in members:
            self.view.leave(card_id, member.endpoint.name)
        while any(m.spot.outstanding for m in members):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for member in members:
            await member.pool.close()

    def join(
        self, card_id: str, endpoint: Endpoint, limit: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        """Put an endpoint into service; one of the same name is replaced (an engine restarted elsewhere). A station
        that streams says at least twice a second that it lives, so its silence is soon taken for death."""
        members = [m for m in self._members[card_id] if m.endpoint.name != endpoint.name]
        lively = endpoint.station and self._cards[card_id].resumes
        pool = Pool(endpoint, LIVELY if lively else self.timeouts, tls)
        spot = Spot(endpoint.name, endpoint.region, limit=limit, digest=endpoint.digest)
        self._members[card_id] = [*members, Member(endpoint, pool, spot)]
        self.view.join(card_id, spot)
        self._failed.pop(card_id, None)
        self._wake()

    def leave(self, card_id: str, name: str) -> None:
        """Take an endpoint out of service; requests under way on it go on."""
        self._members[card_id] = [m for m in self._members.get(card_id, []) if m.endpoint.name != name]
        self.view.leave(card_id, name)

    def fail(self, card_id: str, reason: str) -> None:
        """While this model has no endpoint, refuse its requests with `reason` instead of letting them wait."""
        self._failed[card_id] = reason
        self._wake()

    def _wake(self) -> None:
        """Requests that wait for an endpoint look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def members(self, card_id: str) -> list[Spot]:
        return [m.spot for m in self._members.get(card_id, [])]

    async def open(self, card: Card, path: str, body: bytes, content_type: str = "application/json") -> Answer:
        """Send to the best endpoint; before the first byte of an answer, failures move on to the next one.

        An engine that is just restarting is waited for, up to `patience` seconds.
        """
        deadline, attempts = time.monotonic() + self.patience, ATTEMPTS
        failure: AtollError = EngineFailed(f"no endpoint serves '{card.id}' now; try again, or see 'atoll status'")
        while True:
            changed = self._changed
            members = {m.endpoint.name: m for m in self._members.get(card.id, ())}
            if not members and card.id in self._failed:
                raise EngineFailed(self._failed[card.id])
            request = Request("", card.id, modalities=frozenset())
            decision = route(request, self.view, self.memory, OBJECTIVES["fastest"], self.chance, time.time())
            for name in decision.order:
                try:
                    return await self._attempt(card.id, members[name], path, body, content_type)
                except (EngineFailed, DeadlineExceeded) as error:
                    failure = error
                    attempts -= error.code != UNREACHABLE
            if decision.lost and all(why.startswith("full") for _, _, why in decision.lost) and not decision.order:
                raise Overloaded(f"'{card.id}' is at its limit of waiting requests", retry_after=1.0)
            left = deadline - time.monotonic()
            if left <= 0 or attempts <= 0 or isinstance(failure, DeadlineExceeded):
                raise failure
            try:
                async with asyncio.timeout(min(left, 0.5)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _attempt(self, card_id: str, member: Member, path: str, body: bytes, content_type: str) -> Answer:
        ticket = self.view.begin(card_id, member.spot, 0, time.time())
        try:
            connection = await member.pool.request(path, body, content_type)
        except AtollError:
            self.view.finish(ticket, time.time(), ok=False)
            raise
        except asyncio.CancelledError:
            self.view.finish(ticket, time.time())
            raise
        if connection.status < 500:
            self.view.judge(ticket, True, time.time())
        return Answer(member, connection, self.view, ticket)

    async def close(self) -> None:
        for members in self._members.values():
            for member in members:
                await member.pool.close()

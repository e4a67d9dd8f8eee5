"""The engines of one machine, as the stations of its regions use them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import EngineFailed, NotFound
from atoll.core.ports import Runner
from atoll.core.types import Endpoint
from atoll.regions.upstream import UNREACHABLE, Connection, Pool, Timeouts

AGAIN = 0.2


@dataclass(slots=True, eq=False)
class Seat:
    """A model of this machine. `limit` requests at once (0: as many as come) on each engine of `pools`, by name, which
    have given `told` pieces of answers, to whomever."""

    card: Card
    runner: Runner | None = None
    limit: int = 0
    failed: str = ""
    told: int = 0
    pools: dict[str, Pool] = field(default_factory=dict)


class Reply:
    """`core.ports.Reply` over a connection to an engine of this machine."""

    __slots__ = ("_connection", "_seat", "endpoint", "headers", "status")
    expected = 0.0

    def __init__(self, connection: Connection, seat: Seat) -> None:
        self._connection = connection
        self._seat = seat
        self.status = connection.status
        self.headers = connection.headers
        self.endpoint = connection.pool.endpoint

    async def read(self) -> bytes:
        """Events count as told: a server may still tokenise and send heads when its model hangs."""
        data = await self._connection.read()
        if data.startswith(b"data:") or b"\ndata:" in data:
            self._seat.told += 1
        return data

    async def pipe(self, sink: Any, drained: Any) -> None:
        await self._connection.pipe(sink, drained)

    def close(self) -> None:
        self._connection.release()

    def fail(self) -> None:
        self._connection.release()


class Site:
    """`core.ports.Roster` for the engines here. An engine that is just restarting is waited for, `patience` seconds: it
    may be found dead before anyone has said so."""

    def __init__(self, timeouts: Timeouts | None = None, patience: float = 20.0) -> None:
        self.tiers: dict[str, str] = {}
        self.seats: dict[str, Seat] = {}
        self._timeouts = timeouts or Timeouts()
        self._patience = patience
        self._changed = asyncio.Event()

    def offer(self, card: Card, runner: Runner | None = None) -> None:
        self.seats[card.id] = Seat(card, runner)

    async def retire(self, card_id: str) -> None:
        seat = self.seats.pop(card_id, None)
        for pool in seat.pools.values() if seat else ():
            await pool.close()

    def join(self, card_id: str, endpoint: Endpoint, limit: int = 0) -> None:
        self.leave(card_id, endpoint.name)
        seat = self.seats[card_id]
        seat.pools[endpoint.name] = Pool(endpoint, self._timeouts)
        seat.limit, seat.failed = limit, ""
        self._wake()

    def leave(self, card_id: str, name: str) -> None:
        if card_id in self.seats and (pool := self.seats[card_id].pools.pop(name, None)) is not None:
            pool.retire()

    def fail(self, card_id: str, reason: str) -> None:
        self.seats[card_id].failed = reason
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def seat(self, card_id: str) -> Seat:
        """Raises NotFound."""
        if card_id not in self.seats:
            raise NotFound(f"model '{card_id}' is not served here", param="model", code="model_not_found")
        return self.seats[card_id]

    async def post(self, card_id: str, path: str, body: bytes, content_type: str = "application/json") -> Reply:
        """Raises EngineFailed or DeadlineExceeded."""
        deadline = time.monotonic() + self._patience
        failure: EngineFailed | None = None
        while True:
            changed, seat = self._changed, self.seat(card_id)
            for pool in seat.pools.values():
                try:
                    return Reply(await pool.request(path, body, content_type), seat)
                except EngineFailed as error:
                    if error.code != UNREACHABLE:
                        raise
                    failure = error
            left = deadline - time.monotonic()
            if seat.failed or left <= 0:
                raise failure or EngineFailed(seat.failed or f"no engine runs '{card_id}' now; see 'atoll status'")
            try:
                async with asyncio.timeout(min(left, AGAIN)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        for seat in self.seats.values():
            for pool in seat.pools.values():
                await pool.close()

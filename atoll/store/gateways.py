"""The gateways that share a database: each holds a claim and says every few seconds that it lives.

Whoever notices that one has died marks the rows it left open as interrupted, and takes back its quotas. A gateway that
was only cut off from the database for a while loses no result by that: the last record of a row wins, so what it still
records replaces the mark.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import Connection, delete, insert, select, update

from atoll.core.errors import AtollError
from atoll.store.backend import Backend
from atoll.store.leases import settle_dead
from atoll.store.months import INTERRUPTED
from atoll.store.schema import entries, gateways
from atoll.store.writer import Writer

BEAT_S = 5.0
SILENT_S = 30.0

log = logging.getLogger(__name__)


class Gateways:
    """This gateway among the others."""

    def __init__(self, backend: Backend, writer: Writer):
        self._backend = backend
        self._writer = writer
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._backend.shared:
            self._beating = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Sign off, so that nobody has to wait for the silence."""
        if self._beating:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
        with suppress(AtollError):
            await self._writer.run(self._sign_off)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                dead = await self._writer.run(self._live)
            except AtollError as error:
                log.warning("no sign of life could be given: %s", error.message)
                continue
            for id in sorted(dead):
                log.warning("gateway %s has died; what it held of quotas is free again", id)

    def _live(self, connection: Connection) -> set[str]:
        register(self._backend, connection)
        return bury(self._backend, connection)

    def _sign_off(self, connection: Connection) -> None:
        me = gateways.c.id == self._backend.gateway
        started = connection.execute(select(gateways.c.started).where(me)).scalar()
        if started is not None:
            settle_dead(self._backend, connection, self._backend.gateway, started)
            connection.execute(delete(gateways).where(me))


def register(backend: Backend, connection: Connection) -> None:
    """Say that this gateway lives, for the first time or again."""
    now, me = backend.now(connection), gateways.c.id == backend.gateway
    if not connection.execute(update(gateways).where(me).values(seen=now)).rowcount:
        connection.execute(insert(gateways).values(id=backend.gateway, started=now, seen=now))


def bury(backend: Backend, connection: Connection, *, also: str | None = None) -> set[str]:
    """Mark what dead gateways left open. `also` counts as dead: this gateway, at its start.

    Dead is who holds no claim, or was not seen for `SILENT_S`; its rows are marked. Who does neither will not come
    back: what it held of quotas is taken back, and its id returned. Suspects are read before the claims, so that a
    gateway which begins in between is not suspected."""
    is_open = entries.c.status == "open"
    suspects = set(connection.execute(select(entries.c.gateway).where(is_open).distinct()).scalars())
    known = {row.id: row for row in connection.execute(select(gateways))}
    since = backend.now(connection) - SILENT_S
    silent = {id for id, row in known.items() if row.seen <= since or not backend.shared}
    claimed = backend.claimed(connection, suspects | known.keys())
    left = suspects - (claimed - silent) - {backend.gateway} | ({also} if also else set())
    if left:
        stop = update(entries).where(is_open, entries.c.gateway.in_(left))
        connection.execute(stop.values(status="interrupted", error=INTERRUPTED))
    gone = silent - claimed - {backend.gateway}
    for id in sorted(gone):
        settle_dead(backend, connection, id, known[id].started)
        connection.execute(delete(gateways).where(gateways.c.id == id))
    return gone

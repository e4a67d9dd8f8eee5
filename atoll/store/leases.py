"""The pool of `core.leases` in SQL: one row a key, changed under its lock, so that gateways on one database stay exact.

`reported` keeps what each gateway has told of its spending by key and month. When one dies, the difference to what its
ledger rows say is what it spent without telling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import orjson
from sqlalchemy import Connection, case, delete, func, select, text, update

from atoll.core.errors import InvalidRequest
from atoll.core.leases import Amount, Lent, Moment, Pool, Recall, Report, Stale, Want, bury, dump, grant, load, record
from atoll.core.quota import WINDOW, Reject
from atoll.core.types import Limits
from atoll.store.backend import Backend
from atoll.store.months import month_end, period
from atoll.store.schema import entries, pools, reported, spend
from atoll.store.writer import Writer

CLOCKS_S = 60.0
NEW = text("INSERT INTO pools (key_id, pool) VALUES (:key_id, :pool) ON CONFLICT (key_id) DO NOTHING")
TOLD = text(
    "INSERT INTO reported (holder, key_id, period, nano) VALUES (:holder, :key_id, :period, :nano)"
    " ON CONFLICT (holder, key_id, period) DO UPDATE SET nano = reported.nano + excluded.nano"
)


class SqlLeases:
    """`holder` is this gateway's name in the pools."""

    def __init__(self, backend: Backend, writer: Writer):
        self._backend = backend
        self._writer = writer
        self.holder = backend.gateway

    async def grant(self, key_id: str, limits: Limits, want: Want) -> Lent | Reject | Recall | Stale:
        return await self._writer.run(partial(self._grant, key_id=key_id, limits=limits, want=want))

    async def record(self, key_id: str, reports: Sequence[Report]) -> None:
        if reports:
            await self._writer.run(partial(self._record, key_id=key_id, reports=reports))

    def _grant(self, connection: Connection, key_id: str, limits: Limits, want: Want) -> Lent | Reject | Recall | Stale:
        pool = take(connection, key_id, when := moment(self._backend, connection))
        pool, answer = grant(pool, limits, want, when)
        _keep(connection, key_id, pool)
        return answer

    def _record(self, connection: Connection, key_id: str, reports: Sequence[Report]) -> None:
        pool = take(connection, key_id, when := moment(self._backend, connection))
        for told in reports:
            before = pool.spent if pool.period >= when.period else 0
            try:
                pool = record(pool, told, when)
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
            if pool.spent != before:
                where = {"holder": told.holder, "key_id": key_id, "period": pool.period}
                connection.execute(TOLD, {**where, "nano": pool.spent - before})
        _keep(connection, key_id, pool)


def moment(backend: Backend, connection: Connection) -> Moment:
    """By the clock that all gateways share."""
    now = backend.now(connection)
    return Moment(now, period(now), month_end(now))


def take(connection: Connection, key_id: str, when: Moment) -> Pool:
    """The pool of a key, locked until the transaction ends. A new one begins with what the ledger says is spent."""
    query = select(pools.c.pool).where(pools.c.key_id == key_id).with_for_update()
    row = connection.execute(query).scalar()
    if row is None:
        spent = select(spend.c.nano).where(spend.c.key_id == key_id, spend.c.period == when.period)
        fresh = Pool(when.period, connection.execute(spent).scalar() or 0)
        connection.execute(NEW, {"key_id": key_id, "pool": _text(fresh)})
        row = connection.execute(query).scalar_one()
    return load(orjson.loads(row))


def settle_dead(backend: Backend, connection: Connection, holder: str, since: float) -> None:
    """Take back what a gateway that died (or ended) held, less what its ledger rows since `since` say it spent.
    Pools are locked in the order of their keys, as everyone does who locks several."""
    when = moment(backend, connection)
    proven = _proven(connection, holder, since - CLOCKS_S, when)
    told = _told(connection, holder, when)
    named = pools.c.pool.contains(f'"{holder}"', autoescape=True)
    holding = select(pools.c.key_id).where(named).order_by(pools.c.key_id)
    for key_id in connection.execute(holding).scalars().all():
        pool = take(connection, key_id, when)
        owed = replace(proven.get(key_id, Amount()), cost=proven.get(key_id, Amount()).cost - told.get(key_id, 0))
        _keep(connection, key_id, _buried(pool, holder, owed, when))
    connection.execute(delete(reported).where(reported.c.holder == holder))


def _buried(pool: Pool, holder: str, owed: Amount, when: Moment) -> Pool:
    """`owed` was spent beyond what is reported; on which lease is all the same. Requests and tokens are those of the
    whole window, reported or not: for the minute until they leave it, that may be too much and never too little."""
    spent: dict[int, Amount] = {}
    left = max(0, owed.cost)
    for loan in pool.loans:
        if loan.holder == holder:
            cost = min(left, loan.open.cost)
            rates = (min(loan.open.requests, owed.requests), min(loan.open.tokens, owed.tokens))
            spent[loan.n] = loan.spent + Amount(*rates, cost)
            left -= cost
    pool = bury(pool, holder, spent, when)
    return replace(pool, spent=pool.spent + left)


def _proven(connection: Connection, holder: str, since: float, when: Moment) -> dict[str, Amount]:
    """By key: money spent this month, requests and tokens of the last window, as the ledger tells of this gateway."""
    c = entries.c
    recent = c.created_at >= when.now - WINDOW - CLOCKS_S
    columns = (
        func.sum(case((recent, 1), else_=0)),
        func.sum(case((recent, c.input + c.output), else_=0)),
        func.sum(case((c.period == when.period, c.cost), else_=0)),
    )
    query = select(c.key_id, *columns).where(c.created_at >= since, c.gateway == holder).group_by(c.key_id)
    return {key_id: Amount(*map(int, sums)) for key_id, *sums in connection.execute(query)}


def _told(connection: Connection, holder: str, when: Moment) -> dict[str, int]:
    c = reported.c
    query = select(c.key_id, c.nano).where(c.holder == holder, c.period == when.period)
    return {key_id: nano for key_id, nano in connection.execute(query)}


def _keep(connection: Connection, key_id: str, pool: Pool) -> None:
    connection.execute(update(pools).where(pools.c.key_id == key_id).values(pool=_text(pool)))


def _text(pool: Pool) -> str:
    return orjson.dumps(dump(pool)).decode()

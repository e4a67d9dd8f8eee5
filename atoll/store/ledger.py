"""The ledger in SQL. One commit writes a whole group: its rows, and what they change in each key's monthly spend.

Spend moves by the difference between the cost a row had and the cost it gets, inside the same transaction, so
recording an entry again changes nothing. A small group goes to the journal first, where there is one, and from there
to the database with the next transaction, at the latest after `MOVE_S`; who reads meanwhile is shown both.

The statements run on the driver's own cursor with many rows each:
compiling and binding through SQLAlchemy cost more than writing, and each statement gives up the interpreter
lock, which a busy event loop hands back late.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import Connection, Integer, Row, Select, case, cast, func, select, tuple_

from atoll.core.errors import AtollError, InvalidRequest, SetupError
from atoll.core.quota import WINDOW, Account, Slot
from atoll.core.types import Entry
from atoll.store import schema
from atoll.store.backend import Backend
from atoll.store.gateways import bury
from atoll.store.groups import Batch, Group, Groups
from atoll.store.journal import Journal, Values
from atoll.store.months import period
from atoll.store.readers import Readers
from atoll.store.schema import entries, spend
from atoll.store.writer import Done, Writer

LIMIT = 50_000
LINGER_S = 0.002
LARGE = 8
CHUNK = 256
MOVE_S = 1.0

FIXED = ("id", "created_at")
ID, KEY, PERIOD, COST = (list(entries.c.keys()).index(name) for name in ("id", "key_id", "period", "cost"))


class SqlLedger:
    def __init__(self, statements: Statements, journal: Journal | None, writer: Writer, readers: Readers):
        self._backend = statements.backend
        self._writer = writer
        self._readers = readers
        self._statements = statements
        self._journal = journal
        self._move_at: asyncio.TimerHandle | None = None
        self._groups = Groups(self._commit, LIMIT, LINGER_S, LARGE)

    def record(self, entry: Entry) -> Group:
        return self._groups.add(entry)

    async def recover(self, now: float) -> dict[str, Account]:
        return await self._writer.run(partial(_recover, backend=self._backend, now=now))

    async def entries(
        self,
        *,
        key_id: str | None = None,
        before: float | None = None,
        before_id: str | None = None,
        limit: int = 100,
    ) -> Sequence[Entry]:
        order = (entries.c.created_at.desc(), entries.c.id.desc())
        query = select(entries).order_by(*order).limit(limit)
        if key_id is not None:
            query = query.where(entries.c.key_id == key_id)
        if before is not None and before_id is not None:
            query = query.where(tuple_(entries.c.created_at, entries.c.id) < (before, before_id))
        elif before is not None:
            query = query.where(entries.c.created_at < before)
        return [schema.to_entry(row) for row in await self._fetch(query)]

    async def entry(self, id: str) -> Entry | None:
        found = await self._fetch(select(entries).where(entries.c.id == id))
        return schema.to_entry(found[0]) if found else None

    async def usage(self, *, since: float, until: float, step: float, key_id: str | None = None) -> Sequence[dict]:
        c = entries.c
        start = (func.floor(c.created_at / step) * step).label("start")
        failed = func.sum(case((c.status.in_(("failed", "interrupted")), 1), else_=0))
        sums = [cast(func.sum(c[name]), c.cost.type).label(name) for name in ("input", "output", "cached", "cost")]
        query = (
            select(start, c.key_id, c.model, func.count().label("requests"), failed.label("failed"), *sums)
            .where(c.created_at >= since, c.created_at < until)
            .group_by(start, c.key_id, c.model)
            .order_by(start, c.key_id, c.model)
        )
        if key_id is not None:
            query = query.where(c.key_id == key_id)
        return [{str(name): n for name, n in row._mapping.items()} for row in await self._fetch(query)]

    async def close(self) -> None:
        lost = await self._groups.close()
        if self._move_at:
            self._move_at.cancel()
        if self._journal and self._journal.rows:
            with suppress(AtollError):  # what cannot be moved now is read at the next start
                await self._writer.run(lambda _: None)
        if lost:
            raise SetupError(f"{lost} ledger rows could not be written before stopping; see the log for the reason")

    async def _fetch(self, query: Select[Any]) -> Sequence[Row]:
        return await self._readers.fetch(query, list(self._journal.rows.values()) if self._journal else [])

    def _commit(self, batch: Batch, done: Done) -> None:
        """Write `batch`; if a value in it cannot be stored, write it again with every value made storable."""

        def written(_: None, error: AtollError | None) -> None:
            if isinstance(error, InvalidRequest):
                mended = {id: schema.storable(entry) for id, entry in batch.items()}
                self._writer.submit(partial(self._statements.write, mended), done)
                return
            if self._journal and self._journal.rows and self._move_at is None:
                self._move_at = asyncio.get_running_loop().call_later(MOVE_S, self._move)
            done(None, error)

        write, journal = self._statements.write, self._journal
        note = (lambda: journal.add(self._statements.rows(batch))) if journal else None
        self._writer.submit(partial(write, batch), written, repeatable=True, instead=note)

    def _move(self) -> None:
        """Have a transaction: it takes the journal along."""

        def moved(_: None, error: AtollError | None) -> None:
            self._move_at = asyncio.get_running_loop().call_later(MOVE_S, self._move) if error else None

        self._writer.submit(lambda _: None, moved, repeatable=True)


class Statements:
    """Multi-row statements in powers of two, so that a handful of texts serves every group size."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self._mark = backend.placeholder
        self._names = list(entries.c.keys())
        self._texts: dict[tuple[str, int], str] = {}

    def write(self, batch: Batch, connection: Connection) -> None:
        self.put(self.rows(batch), connection)

    def rows(self, batch: Batch) -> list[Values]:
        return [schema.to_row(entry, self.backend.gateway) for entry in batch.values()]

    def put(self, rows: Sequence[Values], connection: Connection) -> None:
        """Write rows, each of another entry."""
        cursor = self.backend.driver(connection).cursor()
        change: Counter[tuple[str, int]] = Counter()
        for row in rows:
            if row[COST]:
                change[row[KEY], row[PERIOD]] += row[COST]
        for part in _powers_of_two(rows):
            cursor.execute(self._text("charged", len(part)), [row[ID] for row in part])
            for key_id, month, nano in cursor.fetchall():
                change[key_id, month] -= nano
        for part in _powers_of_two(rows):
            cursor.execute(self._text("upsert", len(part)), [value for row in part for value in row])
        for part in _powers_of_two([(*where, nano) for where, nano in sorted(change.items()) if nano]):
            cursor.execute(self._text("spend", len(part)), [value for row in part for value in row])
        cursor.close()

    def _text(self, kind: str, rows: int) -> str:
        if (kind, rows) not in self._texts:
            self._texts[kind, rows] = getattr(self, f"_{kind}")(rows)
        return self._texts[kind, rows]

    def _charged(self, rows: int) -> str:
        ids = ",".join([self._mark] * rows)
        return f"SELECT key_id, period, cost FROM entries WHERE id IN ({ids}) AND cost <> 0"

    def _upsert(self, rows: int) -> str:
        new = ", ".join(f"{name} = excluded.{name}" for name in self._names if name not in FIXED)
        return (
            f"INSERT INTO entries ({', '.join(self._names)}) VALUES {self._values(len(self._names), rows)}"
            f" ON CONFLICT (id) DO UPDATE SET {new}"
        )

    def _spend(self, rows: int) -> str:
        return (
            f"INSERT INTO spend (key_id, period, nano) VALUES {self._values(3, rows)}"
            " ON CONFLICT (key_id, period) DO UPDATE SET nano = spend.nano + excluded.nano"
        )

    def _values(self, columns: int, rows: int) -> str:
        return ", ".join([f"({', '.join([self._mark] * columns)})"] * rows)


def _powers_of_two(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start, left = 0, len(rows)
    while left:
        size = min(CHUNK, 1 << (left.bit_length() - 1))
        yield rows[start : start + size]
        start, left = start + size, left - size


def _recover(connection: Connection, backend: Backend, now: float) -> dict[str, Account]:
    c = entries.c
    bury(backend, connection, also=backend.gateway)
    month = period(now)
    spent = select(spend.c.key_id, spend.c.nano).where(spend.c.period == month, spend.c.nano != 0)
    second = cast(func.floor(c.created_at), Integer).label("second")
    recent = (
        select(c.key_id, second, func.count(), cast(func.sum(c.input + c.output), c.cost.type))
        .where(c.created_at >= int(now) - WINDOW)
        .group_by(c.key_id, second)
        .order_by(c.key_id, second)
    )
    slots: dict[str, list[Slot]] = {}
    for key_id, *slot in connection.execute(recent):
        slots.setdefault(key_id, []).append(Slot(*slot))
    money = {key_id: nano for key_id, nano in connection.execute(spent)}
    known = money.keys() | slots.keys()
    return {k: Account(month, spent=money.get(k, 0), slots=tuple(slots.get(k, ()))) for k in known}

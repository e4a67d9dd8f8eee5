"""API keys in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.core.errors import Conflict, NotFound
from atoll.core.types import Key
from atoll.store.readers import Readers
from atoll.store.schema import key_values, keys, to_key
from atoll.store.writer import Writer


class SqlKeys:
    def __init__(self, writer: Writer, readers: Readers):
        self._writer = writer
        self._readers = readers

    async def add(self, key: Key) -> None:
        await self._writer.run(partial(_add, key=key))

    async def replace(self, key: Key) -> None:
        await self._writer.run(partial(_replace, key=key))

    async def all(self) -> Sequence[Key]:
        """Oldest first."""
        query = select(keys).order_by(keys.c.created_at, keys.c.id)
        return [to_key(row) for row in await self._readers.fetch(query)]


def _add(connection: Connection, key: Key) -> None:
    try:
        connection.execute(insert(keys).values(key_values(key)))
    except IntegrityError:
        raise Conflict(f"a key with id '{key.id}' or the same secret exists already") from None


def _replace(connection: Connection, key: Key) -> None:
    try:
        changed = connection.execute(update(keys).where(keys.c.id == key.id).values(key_values(key))).rowcount
    except IntegrityError:
        raise Conflict(f"another key has the same secret as '{key.id}'") from None
    if not changed:
        raise NotFound(f"there is no key '{key.id}'")

"""Stored answers of the Responses API in SQL. Of each key the newest are kept, up to a number and a sum of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select, update

from atoll.core.errors import Conflict, NotFound
from atoll.store.readers import Readers
from atoll.store.schema import responses
from atoll.store.writer import Writer

MOST = 1000
MOST_BYTES = 256 * 1024 * 1024


def surplus(kept: Iterable[tuple[str, int]]) -> list[str]:
    """The ids beyond what a key may store; `kept` is (id, bytes), newest first. The newest one always stays."""
    found, total = [], 0
    for n, (id, size) in enumerate(kept):
        total += size
        if n and (n >= MOST or total > MOST_BYTES):
            found.append(id)
    return found


def missing(id: str) -> NotFound:
    return NotFound(f"there is no stored response '{id}'", param="previous_response_id")


class SqlResponses:
    def __init__(self, writer: Writer, readers: Readers):
        self._writer = writer
        self._readers = readers

    async def put(self, id: str, key_id: str, body: dict[str, Any], expires_at: float) -> None:
        """Raises Conflict when another key has stored something under this id."""
        raw = orjson.dumps(body)
        row = {"id": id, "key_id": key_id, "body": raw.decode(), "expires_at": expires_at, "size": len(raw)}
        await self._writer.run(partial(_put, row=row))

    async def get(self, id: str, key_id: str, now: float) -> dict[str, Any]:
        c = responses.c
        found = await self._readers.fetch(select(c.body).where(c.id == id, c.key_id == key_id, c.expires_at > now))
        if not found:
            raise missing(id)
        return orjson.loads(found[0].body)

    async def delete(self, id: str, key_id: str) -> None:
        if not await self._writer.run(partial(_delete, id=id, key_id=key_id)):
            raise missing(id)

    async def purge(self, now: float) -> int:
        """Remove what has expired; the number of responses removed."""
        return await self._writer.run(partial(_purge, now=now))


def _put(connection: Connection, row: dict[str, Any]) -> None:
    c = responses.c
    owner = connection.execute(select(c.key_id).where(c.id == row["id"])).scalar()
    if owner is None:
        connection.execute(insert(responses).values(row))
    elif owner == row["key_id"]:
        connection.execute(update(responses).where(c.id == row["id"]).values(row))
    else:
        raise Conflict(f"the response id '{row['id']}' is taken")
    kept = select(c.id, c.size).where(c.key_id == row["key_id"]).order_by(c.expires_at.desc(), c.id.desc())
    if old := surplus((id, size) for id, size in connection.execute(kept)):
        connection.execute(delete(responses).where(c.id.in_(old)))


def _delete(connection: Connection, id: str, key_id: str) -> int:
    return connection.execute(delete(responses).where(responses.c.id == id, responses.c.key_id == key_id)).rowcount


def _purge(connection: Connection, now: float) -> int:
    return connection.execute(delete(responses).where(responses.c.expires_at <= now)).rowcount

"""Stored answers of the Responses API in SQL."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select, update

from atoll.core.errors import Conflict, NotFound
from atoll.store.readers import Readers
from atoll.store.schema import responses
from atoll.store.writer import Writer


def missing(id: str) -> NotFound:
    return NotFound(f"there is no stored response '{id}'", param="previous_response_id")


class SqlResponses:
    def __init__(self, writer: Writer, readers: Readers):
        self._writer = writer
        self._readers = readers

    async def put(self, id: str, key_id: str, body: dict[str, Any], expires_at: float) -> None:
        """Raises Conflict when another key has stored something under this id."""
        row = {"id": id, "key_id": key_id, "body": orjson.dumps(body).decode(), "expires_at": expires_at}
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


def _delete(connection: Connection, id: str, key_id: str) -> int:
    return connection.execute(delete(responses).where(responses.c.id == id, responses.c.key_id == key_id)).rowcount


def _purge(connection: Connection, now: float) -> int:
    return connection.execute(delete(responses).where(responses.c.expires_at <= now)).rowcount

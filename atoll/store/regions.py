"""What operators decided about regions, and the region that the database stands in, in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from sqlalchemy import Connection, select, text

from atoll.core.places import RegionStatus
from atoll.store.readers import Readers
from atoll.store.schema import facts, places
from atoll.store.writer import Writer

PUT = text(
    "INSERT INTO places (region_id, status, at) VALUES (:region_id, :status, :at) ON CONFLICT (region_id)"
    " DO UPDATE SET status = excluded.status, at = excluded.at WHERE excluded.at >= places.at"
)
TELL = text("INSERT INTO facts (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING")
HOME = "region"
JOINED = "joined "


class SqlPlaces:
    def __init__(self, writer: Writer, readers: Readers):
        self._writer = writer
        self._readers = readers

    async def put(self, region_id: str, status: RegionStatus, at: float) -> None:
        await self._writer.run(partial(_put, row={"region_id": region_id, "status": status, "at": at}))

    async def all(self) -> Mapping[str, tuple[RegionStatus, float]]:
        rows = await self._readers.fetch(select(places).order_by(places.c.region_id))
        return {row.region_id: (row.status, row.at) for row in rows}

    async def stands_in(self, region: str) -> str:
        return await self._writer.run(partial(_tell, name=HOME, value=region))

    async def join(self, region_id: str) -> None:
        await self._writer.run(partial(_tell, name=JOINED + region_id, value=region_id))

    async def joined(self) -> frozenset[str]:
        rows = await self._readers.fetch(select(facts.c.value).where(facts.c.name.startswith(JOINED)))
        return frozenset(row.value for row in rows)


def _put(connection: Connection, row: dict[str, object]) -> None:
    connection.execute(PUT, row)


def _tell(connection: Connection, name: str, value: str) -> str:
    """What was told first of `name`."""
    connection.execute(TELL, {"name": name, "value": value})
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one()

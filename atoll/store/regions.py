"""What operators decided about regions, the machines that joined as one, and where the database stands, in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import orjson
from sqlalchemy import Connection, delete, select, text

from atoll.core.places import INTRODUCED_S, Machine, RegionStatus
from atoll.store.readers import Readers
from atoll.store.schema import facts, places
from atoll.store.writer import Writer

PUT = text(
    "INSERT INTO places (region_id, status, at) VALUES (:region_id, :status, :at) ON CONFLICT (region_id)"
    " DO UPDATE SET status = excluded.status, at = excluded.at WHERE excluded.at >= places.at"
)
TELL = text("INSERT INTO facts (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING")
SET = text(
    "INSERT INTO facts (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
HOME = "region"
JOINED = "joined "
AUTHORITY = "authority "


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

    async def join(self, region_id: str, machine: Machine) -> None:
        await self._writer.run(partial(_set, name=JOINED + region_id, value=machine._asdict()))

    async def part(self, region_id: str) -> None:
        await self._writer.run(partial(_forget, name=JOINED + region_id))

    async def joined(self) -> Mapping[str, Machine]:
        return {id: Machine(**told) for id, told in (await self._told(JOINED)).items()}

    async def introduce(self, authority: str, at: float) -> None:
        for name, told in (await self._told(AUTHORITY)).items():
            if at - told["at"] >= INTRODUCED_S:
                await self._writer.run(partial(_forget, name=AUTHORITY + name))
        name = AUTHORITY + sha256(authority.encode()).hexdigest()
        await self._writer.run(partial(_set, name=name, value={"pem": authority, "at": at}))

    async def introduced(self) -> Mapping[str, float]:
        return {told["pem"]: told["at"] for told in (await self._told(AUTHORITY)).values()}

    async def _told(self, kind: str) -> dict[str, dict[str, Any]]:
        rows = await self._readers.fetch(select(facts).where(facts.c.name.startswith(kind)).order_by(facts.c.name))
        return {row.name.removeprefix(kind): orjson.loads(row.value) for row in rows}


def _put(connection: Connection, row: dict[str, object]) -> None:
    connection.execute(PUT, row)


def _set(connection: Connection, name: str, value: dict[str, Any]) -> None:
    connection.execute(SET, {"name": name, "value": orjson.dumps(value).decode()})


def _forget(connection: Connection, name: str) -> None:
    connection.execute(delete(facts).where(facts.c.name == name))


def _tell(connection: Connection, name: str, value: str) -> str:
    """What was told first of `name`."""
    connection.execute(TELL, {"name": name, "value": value})
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one()

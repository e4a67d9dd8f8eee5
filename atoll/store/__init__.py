"""Where the ledger, the keys and the stored responses live: memory, one SQLite file, or PostgreSQL.

    store = await open_store("sqlite:////var/lib/atoll/atoll.db")
    accounts = await store.ledger.recover(time.time())
    await store.ledger.record(entry)
    await store.close()
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from atoll.core.errors import SetupError
from atoll.core.ports import Keys, Leases, Ledger, Places, Responses


@dataclass(frozen=True, slots=True)
class Store:
    ledger: Ledger
    keys: Keys
    responses: Responses
    places: Places
    leases: Leases
    _close: Callable[[], Awaitable[None]]

    async def close(self) -> None:
        """Write what is pending and let go of the database. Raises SetupError when rows could not be written."""
        await self._close()


async def _memory(_url: str) -> Store:
    from atoll.store.memory import MemoryKeys, MemoryLeases, MemoryLedger, MemoryPlaces, MemoryResponses

    async def close() -> None: ...

    return Store(MemoryLedger(), MemoryKeys(), MemoryResponses(), MemoryPlaces(), MemoryLeases(), close)


async def _sqlite(url: str) -> Store:
    from atoll.store.sql import open_sql
    from atoll.store.sqlite import SqliteBackend

    return await open_sql(url, SqliteBackend)


async def _postgres(url: str) -> Store:
    from atoll.store.postgres import PostgresBackend
    from atoll.store.sql import open_sql

    return await open_sql(url, PostgresBackend)


STORES: dict[str, Callable[[str], Awaitable[Store]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
}


async def open_store(url: str) -> Store:
    """Open, migrate and claim the database at `url`: `sqlite:////absolute/path.db`,
    `postgresql://user:password@host/name` or `memory://`.

    Raises SetupError when the URL, the file, the server or the schema is not usable, and when another
    gateway writes to the same SQLite file; the message says what to do. Gateways may share one PostgreSQL.
    """
    scheme = url.split("://", 1)[0]
    if "://" not in url or scheme not in STORES:
        raise SetupError(f"the database URL must start with one of {', '.join(f'{s}://' for s in STORES)}")
    return await STORES[scheme](url)

"""Opens a SQL database: the ports over one writer and a few readers."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from atoll.core.errors import Overloaded, SetupError
from atoll.store import Store
from atoll.store.backend import Backend
from atoll.store.gateways import Gateways, register
from atoll.store.journal import Carrier
from atoll.store.keys import SqlKeys
from atoll.store.leases import SqlLeases
from atoll.store.ledger import SqlLedger, Statements
from atoll.store.migrate import migrate
from atoll.store.readers import Readers
from atoll.store.regions import SqlPlaces
from atoll.store.responses import SqlResponses
from atoll.store.writer import Writer


async def open_sql(url: str, backend_for: Callable[[URL], Backend]) -> Store:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SetupError("the database URL cannot be read; it looks like sqlite:////absolute/path/atoll.db") from None
    backend = backend_for(parsed)
    statements = Statements(backend)
    carrier = Carrier(backend, statements.put)
    writer = Writer(backend, carrier)

    def prepare(connection: Connection) -> None:
        backend.check(connection)
        migrate(connection)
        carrier.open(connection)
        register(backend, connection)

    try:
        await writer.start(prepare)
    except Overloaded as error:
        raise SetupError(error.message) from error
    readers = Readers(backend)
    ledger = SqlLedger(statements, carrier.journal, writer, readers)

    leases = SqlLeases(backend, writer)
    gateways = Gateways(backend, writer)
    gateways.start()

    async def close() -> None:
        try:
            await ledger.close()
        finally:
            await gateways.close()
            await readers.close()
            await writer.stop()

    responses, places = SqlResponses(writer, readers), SqlPlaces(writer, readers)
    return Store(ledger, SqlKeys(writer, readers), responses, places, leases, close)

"""Opens a SQL database: the three ports over one writer and a few readers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from atoll.core.errors import Overloaded, SetupError
from atoll.store.backend import Backend
from atoll.store.keys import SqlKeys
from atoll.store.ledger import SqlLedger
from atoll.store.migrate import migrate
from atoll.store.readers import Readers
from atoll.store.responses import SqlResponses
from atoll.store.writer import Writer


async def open_sql(
    url: str, backend_for: Callable[[URL], Backend]
) -> tuple[SqlLedger, SqlKeys, SqlResponses, Callable[[], Awaitable[None]]]:
    """The ledger, the keys, the responses, and what closes them."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SetupError("the database URL cannot be read; it looks like sqlite:////absolute/path/atoll.db") from None
    backend = backend_for(parsed)
    writer = Writer(backend)

    def prepare(connection: Connection) -> None:
        backend.check(connection)
        migrate(connection)

    try:
        await writer.start(prepare)
    except Overloaded as error:
        raise SetupError(error.message) from error
    readers = Readers(backend)
    ledger = SqlLedger(backend, writer, readers)

    async def close() -> None:
        try:
            await ledger.close()
        finally:
            await readers.close()
            await writer.stop()

    return ledger, SqlKeys(writer, readers), SqlResponses(writer, readers), close

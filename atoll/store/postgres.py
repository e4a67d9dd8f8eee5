"""PostgreSQL through psycopg: the writing connection holds an advisory lock, so losing one is losing the other."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from atoll.core.errors import AtollError, Overloaded, SetupError

LOCK = 0x41746F6C6C
CONNECT_S = 5
STATEMENT_MS = 30_000
CLAIM_MS = 2_000
LOCK_NOT_AVAILABLE = "55P03"
DISK_FULL = "53100"

HOLDER = text(
    "SELECT a.application_name, a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
    " AND l.granted AND l.objsubid = 1 AND l.classid::bigint << 32 | l.objid::bigint = :lock"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class PostgresBackend:
    placeholder = "%s"

    def __init__(self, url: URL):
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise SetupError("PostgreSQL needs its driver: pip install 'atoll[postgres]'") from None
        self.gateway = secrets.token_hex(8)
        self.place = url.render_as_string(hide_password=True)
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=4,
            pool_pre_ping=True,
            pool_timeout=CONNECT_S,
            connect_args={
                "connect_timeout": CONNECT_S,
                "application_name": f"atoll pid {os.getpid()} on {socket.gethostname()}",
                "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": STATEMENT_MS,
            },
        )

    def claim(self, connection: Connection) -> None:
        """Waits a moment: the server may still be ending the session of a gateway that was killed just now."""
        try:
            with connection.begin():
                connection.execute(text(f"SET LOCAL lock_timeout = {CLAIM_MS}"))
                connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            return
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
        with connection.begin():
            holder = connection.execute(HOLDER, {"lock": LOCK}).first()
        who = f"{holder[0]}, server process {holder[1]}" if holder else "one that is just leaving"
        raise SetupError(
            f"the database {self.place} is in use by another Atoll ({who}); stop it, or give this one another database"
        )

    def begin(self, connection: Connection) -> None:
        """psycopg begins by itself."""

    def release(self) -> None:
        self.engine.dispose()

    def check(self, connection: Connection) -> None:
        """The server verifies its own pages."""

    def explain(self, error: BaseException, doing: str) -> AtollError:
        cause = getattr(error, "orig", None) or error
        if getattr(cause, "sqlstate", None) == DISK_FULL:
            why = "disk full"
        else:
            why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return Overloaded(f"the database cannot be {doing}: {why} at {self.place}", retry_after=1.0)

    def driver(self, connection: Connection) -> Any:
        return connection.connection.driver_connection

"""PostgreSQL through psycopg, for any number of gateways. The connection through which one writes holds an advisory
lock under the gateway's number, so that the others see at once when it is gone."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text

from atoll.core.errors import AtollError, Overloaded, SetupError

LOCK = 0x41746F6C6C
SPACE = 0x41746F6C
CONNECT_S = 5
STATEMENT_MS = 30_000
DISK_FULL = "53100"

CLAIM = text("SELECT pg_advisory_lock_shared(:space, :number)")
CLAIMED = text(
    "SELECT DISTINCT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND classid::bigint = :space AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
PREPARE = text("SELECT pg_advisory_xact_lock(:lock)")
NOW = text("SELECT extract(epoch FROM clock_timestamp())::float8")


class PostgresBackend:
    placeholder = "%s"
    shared = True
    journal = None

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
        """A lock of this gateway's own. It is shared, so that a connection made again need not wait for the server to
        notice that the old one is gone."""
        with connection.begin():
            connection.execute(CLAIM, {"space": SPACE, "number": _number(self.gateway)})

    def claimed(self, connection: Connection, gateways: Iterable[str]) -> set[str]:
        held = set(connection.execute(CLAIMED, {"space": SPACE}).scalars())
        return {gateway for gateway in gateways if _number(gateway) in held}

    def now(self, connection: Connection) -> float:
        return connection.execute(NOW).scalar_one()

    def begin(self, connection: Connection) -> None:
        """psycopg begins by itself."""

    def release(self) -> None:
        self.engine.dispose()

    def check(self, connection: Connection) -> None:
        """The server verifies its own pages. Gateways that start at once migrate one after the other."""
        connection.execute(PREPARE, {"lock": LOCK})

    def explain(self, error: BaseException, doing: str) -> AtollError:
        cause = getattr(error, "orig", None) or error
        if getattr(cause, "sqlstate", None) == DISK_FULL:
            why = "disk full"
        else:
            why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return Overloaded(f"the database cannot be {doing}: {why} at {self.place}", retry_after=1.0)

    def driver(self, connection: Connection) -> Any:
        return connection.connection.driver_connection


def _number(gateway: str) -> int:
    """A gateway's lock: 28 bits of its identity."""
    return int(gateway[:7], 16)

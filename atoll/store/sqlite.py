"""SQLite: one file in WAL mode, every commit synced, one writing process guarded by a lock file beside it."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.pool import QueuePool

from atoll.core.errors import AtollError, Overloaded, SetupError

BUSY_MS = 5_000
CHECKED_BYTES = 64 << 20
PRAGMAS = (
    "temp_store = MEMORY",
    "journal_mode=WAL",
    "synchronous=FULL",
    f"busy_timeout={BUSY_MS}",
    "foreign_keys=ON",
    "secure_delete=OFF",
    "cache_size=-16384",
    "wal_autocheckpoint=4000",
)
CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
WHY = {
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_BUSY: "locked by another program",
    sqlite3.SQLITE_LOCKED: "locked by another program",
}


def damaged(path: Path, detail: str) -> SetupError:
    return SetupError(
        f"the database {path} is damaged ({detail}). Move it and its -wal and -shm files away, then restore a "
        "backup or start with an empty one; `atoll doctor` shows what was found."
    )


class SqliteBackend:
    placeholder = "?"
    shared = False

    def __init__(self, url: URL):
        if not url.database or url.database == ":memory:":
            raise SetupError("a sqlite URL needs a file: sqlite:////path/atoll.db (memory:// keeps nothing)")
        self.gateway = secrets.token_hex(8)
        self.path = Path(url.database).absolute()
        self.journal = self.path.with_name(self.path.name + ".journal")
        self._lock: IO[str] | None = None
        self._require_directory()
        self.engine = create_engine(
            URL.create("sqlite+pysqlite", database=str(self.path)),
            poolclass=QueuePool,
            pool_size=4,
            connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000, "isolation_level": None},
        )
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)

    def _require_directory(self) -> None:
        parent = self.path.parent
        if not parent.is_dir():
            raise SetupError(f"the directory {parent} of the database does not exist; create it or choose another")
        if not os.access(parent, os.W_OK):
            raise SetupError(f"the directory {parent} of the database is not writable; change its owner or mode")

    def claim(self, connection: Connection) -> None:
        """The lock lives as long as the process: a connection that is opened again keeps it."""
        if self._lock:
            return
        place = self.path.with_name(self.path.name + ".lock")
        try:
            lock = place.open("a+")
        except OSError as error:
            raise SetupError(f"the lock file {place} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise SetupError(
                f"the database {self.path} is in use by another Atoll (pid {holder}); stop it with `atoll down`, "
                "or give this one a data directory of its own"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def claimed(self, connection: Connection, gateways: Iterable[str]) -> set[str]:
        return {self.gateway}.intersection(gateways)

    def now(self, connection: Connection) -> float:
        return time.time()

    def begin(self, connection: Connection) -> None:
        """Asks for the write lock at once, so that it never has to be upgraded."""
        self.driver(connection).execute("BEGIN IMMEDIATE").close()

    def release(self) -> None:
        self.engine.dispose()
        if self._lock:
            self._lock.close()
            self._lock = None

    def check(self, connection: Connection) -> None:
        """Every page of a small file; of a large one only the schema, so that opening stays quick."""
        small = self.path.stat().st_size <= CHECKED_BYTES
        found = connection.exec_driver_sql("PRAGMA quick_check(1)" if small else "PRAGMA schema_version").scalar()
        if small and found != "ok":
            raise damaged(self.path, str(found).splitlines()[-1])

    def explain(self, error: BaseException, doing: str) -> AtollError:
        cause = getattr(error, "orig", None) or error
        code = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF
        if code in CORRUPT:
            return damaged(self.path, str(cause))
        why = WHY.get(code, str(cause))
        return Overloaded(f"the database cannot be {doing}: {why} at {self.path}", retry_after=1.0)

    def driver(self, connection: Connection) -> Any:
        return connection.connection.driver_connection


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """A reader takes a snapshot; the writer's transaction has begun already."""
    if not connection.connection.driver_connection.in_transaction:
        connection.exec_driver_sql("BEGIN")

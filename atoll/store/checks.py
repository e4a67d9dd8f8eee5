"""Whether the database can be used, looked at without changing it."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from atoll.core.findings import Finding

CONNECT_S = 5


def check_store(url: str) -> Finding:
    """SQLite: every page. PostgreSQL: the driver is installed and the server lets us in."""
    try:
        kind = make_url(url).get_backend_name() if not url.startswith("memory:") else "memory"
    except ArgumentError:
        return Finding("database", "broken", "the address is malformed", "Use sqlite:////path or postgresql://...")
    if kind == "sqlite":
        return _sqlite(Path(make_url(url).database or ""))
    if kind == "postgresql":
        return _postgres(url)
    return Finding("database", "ok", "in memory only: nothing is kept")


def _sqlite(path: Path) -> Finding:
    if not path.exists():
        return Finding("database", "missing", f"{path} is not there yet", "It is created at the first 'atoll up'.")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        advice = f"Move {path} and its -wal and -shm files away; restore a backup, or start with an empty one."
        return Finding("database", "broken", f"{path}: {found}", advice)
    return Finding("database", "ok", f"{path}, every page is sound")


def _postgres(url: str) -> Finding:
    if importlib.util.find_spec("psycopg") is None:
        return Finding("database", "broken", "the PostgreSQL driver is missing", "pip install 'atoll[postgres]'")
    import psycopg

    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        psycopg.connect(plain, connect_timeout=CONNECT_S).close()
    except psycopg.Error as error:
        why = (str(error).strip().splitlines() or ["no connection"])[0]
        return Finding("database", "broken", f"PostgreSQL: {why}", "Check that it runs, and the address and password.")
    return Finding("database", "ok", "PostgreSQL answers")

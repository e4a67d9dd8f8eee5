"""Databases that fill up, go away, are damaged, taken or too new."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, create_engine, event, text

from atoll.core.errors import Overloaded, SetupError
from atoll.core.types import Entry
from atoll.store import open_store
from atoll.store.sql import open_sql
from atoll.store.sqlite import SqliteBackend

NOW = 1_795_000_000.0
ENTRY = Entry("e", "key-1", "max", "eu", "/v1/chat", NOW, "done", cost=1, error="x" * 900)
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^atoll'"
HOLD = """
import asyncio, sys, time
from atoll.store import open_store
async def main():
    await open_store(sys.argv[1])
    print("open", flush=True)
    time.sleep(60)
asyncio.run(main())
"""
Make = Callable[[str], str]


class SmallDisk(SqliteBackend):
    """SQLite's own page limit stands in for the size of the disk; None is a disk with room."""

    pages: int | None = 40

    def __init__(self, url: URL):
        super().__init__(url)
        event.listen(self.engine, "connect", self._limit)

    def _limit(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {self.pages or 1 << 30}").close()


async def eventually(record: Callable[[], object]) -> None:
    """Wait for a record that the ledger refuses for now, as a client that tries again would."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Overloaded):
                return await record()
            await asyncio.sleep(0.05)


async def test_a_full_disk_keeps_rows_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = await open_sql(f"sqlite:///{tmp_path}/atoll.db", SmallDisk)
    for n in range(60):
        await store.ledger.record(ENTRY._replace(id=f"early-{n}"))
    with pytest.raises(Overloaded, match=f"disk full at {tmp_path}/atoll.db") as caught:
        for n in range(400):
            await store.ledger.record(ENTRY._replace(id=f"late-{n:03}"))
    assert caught.value.retryable
    refused = {f"late-{n:03}" for n in range(500, 510)}
    waiting = [asyncio.ensure_future(store.ledger.record(ENTRY._replace(id=id))) for id in refused]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(o, Overloaded) for o in outcomes)

    monkeypatch.setattr(SmallDisk, "pages", None)
    await eventually(lambda: store.ledger.record(ENTRY._replace(id="after")))
    stored = {e.id for e in await store.ledger.entries(limit=1000)}
    assert refused | {"after", "early-59"} <= stored
    assert (await store.ledger.recover(NOW))["key-1"].spent == len(stored)
    await store.close()


async def test_closing_over_a_full_disk_says_what_was_lost(tmp_path: Path):
    store = await open_sql(f"sqlite:///{tmp_path}/atoll.db", SmallDisk)
    for n in range(1000):
        store.ledger.record(ENTRY._replace(id=str(n)))
    with pytest.raises(SetupError, match="1000 ledger rows could not be written"):
        await store.close()


async def test_a_lost_connection_is_made_again_and_nothing_is_doubled(new_url: Make):
    url = new_url("postgresql")
    store = await open_store(url)
    lost = 0
    for n in range(60):
        if n % 20 == 10:
            with psycopg.connect(url, autocommit=True) as admin:
                lost += admin.execute(CUT).rowcount
        await asyncio.gather(*(store.ledger.record(ENTRY._replace(id=f"{n}-{i}")) for i in range(5)))
    assert lost >= 3
    rows = await store.ledger.entries(limit=1000)
    assert len(rows) == 60 * 5
    assert (await store.ledger.recover(NOW))["key-1"].spent == len(rows)
    await store.close()


async def test_one_gateway_at_a_time_on_a_file(new_url: Make):
    url = new_url("sqlite")
    store = await open_store(url)
    with pytest.raises(SetupError, match=rf"in use by another Atoll \(.*pid {os.getpid()}"):
        await open_store(url)
    await store.close()
    await (await open_store(url)).close()


async def test_a_stopped_process_leaves_no_claim(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/atoll.db"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, url, stdout=asyncio.subprocess.PIPE)
    await asyncio.wait_for(child.stdout.readline(), 30)
    with pytest.raises(SetupError, match=rf"pid {child.pid}\)"):
        await open_store(url)
    child.kill()
    await child.communicate()
    await (await open_store(url)).close()


async def test_a_newer_schema_is_refused(durable_url: str):
    await (await open_store(durable_url)).close()
    engine = create_engine(durable_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SetupError, match=r"schema 9999, which is newer.*upgrade Atoll"):
        await open_store(durable_url)


async def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    place = tmp_path / "atoll.db"
    place.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(SetupError, match=rf"{place} is damaged .*Move it .*restore.*atoll doctor"):
        await open_store(f"sqlite:///{place}")


async def test_a_damaged_page_is_found_on_opening(tmp_path: Path):
    place = tmp_path / "atoll.db"
    store = await open_store(f"sqlite:///{place}")
    for n in range(300):
        store.ledger.record(ENTRY._replace(id=f"{n:03}"))
    await store.close()
    with place.open("r+b") as file:
        file.seek(place.stat().st_size - 8 * 4096)
        file.write(os.urandom(6 * 4096))
    with pytest.raises(SetupError, match=rf"{place} is damaged"):
        await open_store(f"sqlite:///{place}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/atoll.db", "/nowhere of the database does not exist; create it"),
        ("sqlite:////proc/atoll.db", "/proc"),
        ("sqlite://", "sqlite:////path/atoll.db"),
        ("mysql://localhost/atoll", "must start with one of memory://, sqlite://, postgresql://"),
        ("atoll.db", "must start with one of"),
        ("postgresql://host:port/atoll", "cannot be read"),
    ],
)
async def test_a_url_that_cannot_work_says_why(url: str, message: str):
    with pytest.raises(SetupError, match=message):
        await open_store(url)


async def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path):
    with pytest.raises(SetupError, match=r"postgresql://me:\*\*\*@/atoll") as caught:
        await open_store(f"postgresql://me:secret@/atoll?host={tmp_path}")
    assert "secret" not in str(caught.value)


async def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SetupError, match=r"pip install 'atoll\[postgres\]'"):
        await open_store("postgresql:///atoll")


async def test_sqlite_syncs_every_commit(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/atoll.db"
    await (await open_store(url)).close()
    backend = SqliteBackend(URL.create("sqlite", database=f"{tmp_path}/atoll.db"))
    with backend.engine.connect() as connection:
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    backend.release()
    assert values == ["wal", 2, 5000, 1]


async def test_reads_do_not_wait_for_the_writer(tmp_path: Path):
    place = tmp_path / "atoll.db"
    store = await open_store(f"sqlite:///{place}")
    await store.ledger.record(ENTRY)
    with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        written = asyncio.ensure_future(store.ledger.record(ENTRY._replace(id="waits")))
        assert [e.id for e in await store.ledger.entries()] == ["e"]
        assert time.monotonic() - began < 2
        other.execute("COMMIT")
    await written
    await store.close()

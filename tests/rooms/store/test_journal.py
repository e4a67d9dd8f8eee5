"""The journal in front of SQLite: what it holds survives, once, whatever moment a process ends at."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from atoll.core.types import Entry, Usage
from atoll.store import open_store
from atoll.store.journal import ROWS, Journal

NOW = 1_795_000_000.0
OPEN = Entry("a", "key-1", "max", "eu", "/v1/chat", NOW)
COLUMNS = ("id", "created_at", "cost")


def journal_at(path: Path, moved: int = 0, columns: tuple[str, ...] = COLUMNS) -> Journal:
    journal = Journal(path, columns)
    journal.open(moved)
    return journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_rows_come_back_the_last_of_an_id_created_when_the_first_was(path: Path):
    first = journal_at(path)
    assert first.add([("a", 1.0, 0), ("b", 2.0, 0)])
    assert first.add([("a", 9.0, 5)])
    first.close()
    again = journal_at(path)
    assert again.rows == first.rows == {"a": ("a", 1.0, 5), "b": ("b", 2.0, 0)}
    again.close()


def test_rows_that_were_moved_do_not_come_back_and_the_file_is_used_again(path: Path):
    journal = journal_at(path)
    for n in range(20):
        journal.add([(f"old-{n}", 1.0, n)])
    number = journal.leave()
    journal.left()
    size = path.stat().st_size
    assert journal_at(path, number).rows == {}
    journal.add([("new", 2.0, 1)])
    assert path.stat().st_size == size
    assert journal_at(path, number).rows == {"new": ("new", 2.0, 1)}


def test_a_line_cut_short_and_what_follows_is_not_read(path: Path):
    journal = journal_at(path)
    journal.add([("a", 1.0, 1)])
    whole = path.stat().st_size
    journal.add([("b", 1.0, 1)])
    for size in range(whole, path.stat().st_size):
        copy = path.with_name(f"cut-{size}")
        copy.write_bytes(path.read_bytes()[:size])
        assert journal_at(copy).rows.keys() == {"a"}


def test_nothing_is_added_to_a_full_journal_or_while_it_is_unknown_whether_it_was_moved(path: Path):
    journal = journal_at(path)
    assert journal.add([(str(n), 1.0, 0) for n in range(ROWS)])
    assert not journal.add([("more", 1.0, 0)])
    journal.leave()
    assert not journal.add([("0", 1.0, 0)])
    journal.left()
    assert journal.add([("0", 1.0, 0)])


@pytest.mark.parametrize("value", [1 << 60, "\ud800", object()])
def test_what_json_does_not_hold_is_refused(path: Path, value: object):
    journal = journal_at(path)
    with pytest.raises(ValueError, match=r"Integer|UTF-8|not JSON"):
        journal.add([("a", 1.0, value)])
    assert journal.rows == {}


def test_a_journal_of_an_older_release_has_its_columns_by_name(path: Path):
    journal_at(path).add([("a", 1.0, 7)])
    assert journal_at(path, columns=("id", "cost", "created_at", "late")).rows == {"a": ("a", 7, 1.0, "")}


def left_by(folder: Path, number: int) -> str:
    """The URL of a copy of what a process that is killed now would leave."""
    copy = folder / f"left-{number}"
    copy.mkdir()
    for file in folder.glob("atoll.db*"):
        shutil.copy(file, copy)
    return f"sqlite:///{copy}/atoll.db"


@pytest.mark.parametrize("seed", range(3))
async def test_a_store_killed_at_any_moment_has_every_row_and_charges_it_once(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    store = await open_store(f"sqlite:///{tmp_path}/atoll.db")
    told: dict[str, Entry] = {}
    for number in range(12):
        for _ in range(rng.randrange(90)):
            entry = OPEN._replace(id=f"e{rng.randrange(60)}", key_id=f"key-{rng.randrange(2)}")
            known = told.get(entry.id)
            if known or rng.random() < 0.5:
                cost = rng.randrange(1, 1000)
                entry = (known or entry)._replace(status="done", cost=cost, usage=Usage(3, cost), http_status=200)
            told[entry.id] = entry
            written = store.ledger.record(entry)
            if rng.random() < 0.5:
                await written
        await written
        if rng.random() < 0.4:
            await store.ledger.recover(NOW)
            told = {id: e if e.status == "done" else e._replace(status="interrupted") for id, e in told.items()}
        left = await open_store(left_by(tmp_path, number))
        spent = {key: account.spent for key, account in (await left.ledger.recover(NOW)).items() if account.spent}
        rows = {e.id: e.cost for e in await left.ledger.entries(limit=1000)}
        await left.close()
        assert rows == {id: e.cost for id, e in told.items()}
        assert spent == dict(sum((Counter({e.key_id: e.cost}) for e in told.values()), Counter()))
    await store.close()


async def test_readers_see_rows_on_their_way_as_if_they_had_arrived(tmp_path: Path):
    store = await open_store(f"sqlite:///{tmp_path}/atoll.db")
    await store.ledger.record(OPEN)
    await store.ledger.record(OPEN._replace(id="old", created_at=NOW - 5, status="done", cost=3))
    await store.ledger.recover(NOW)
    await store.ledger.record(OPEN._replace(created_at=NOW + 9, status="done", cost=40, usage=Usage(1, 2)))
    await store.ledger.record(OPEN._replace(id="new", created_at=NOW + 5, status="failed"))
    found = await store.ledger.entries()
    assert [(e.id, e.status, e.created_at, e.cost) for e in found] == [
        ("new", "failed", NOW + 5, 0),
        ("a", "done", NOW, 40),
        ("old", "done", NOW - 5, 3),
    ]
    (row,) = await store.ledger.usage(since=NOW - 60, until=NOW + 60, step=1e7)
    assert (row["requests"], row["failed"], row["cost"], row["output"]) == (3, 1, 43, 2)
    before = found
    await store.ledger.recover(NOW)
    assert await store.ledger.entries() == before
    await store.close()


async def test_rows_move_on_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("atoll.store.ledger.MOVE_S", 0.01)
    store = await open_store(f"sqlite:///{tmp_path}/atoll.db")
    await store.ledger.record(OPEN)
    journal = store.ledger._journal
    async with asyncio.timeout(10):
        while journal.rows:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (found,) = await store.ledger.entries()
    assert found == OPEN
    await store.close()

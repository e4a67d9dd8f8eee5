"""Several gateways over one PostgreSQL: what a dead one leaves is cleared away, what a living one has is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import psycopg
import pytest

from atoll.core.types import Entry
from atoll.store import Store, gateways, open_store

NOW = 1_795_000_000.0
OPEN = Entry("mine", "key-1", "max", "eu", "/v1/chat", NOW)
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^atoll'"
WORK = """
import asyncio, sys
from atoll.core.types import Entry
from atoll.store import open_store
async def main():
    store = await open_store(sys.argv[1])
    await store.ledger.record(Entry("theirs", "key-2", "max", "us", "/v1/chat", float(sys.argv[2])))
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("postgresql")


async def statuses(store: Store) -> dict[str, str]:
    return {e.id: e.status for e in await store.ledger.entries(limit=10_000)}


def rows(url: str, query: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


async def child(url: str) -> asyncio.subprocess.Process:
    """Another gateway, with one request under way."""
    command = (sys.executable, "-c", WORK, url, str(NOW))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"open\n"
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.communicate()


async def test_what_a_living_gateway_has_open_stays_open(url: str):
    other = await child(url)
    mine = await open_store(url)
    await mine.ledger.record(OPEN)
    third = await open_store(url)
    await third.ledger.recover(NOW)
    assert await statuses(third) == {"mine": "open", "theirs": "open"}
    await mine.ledger.recover(NOW)
    assert await statuses(third) == {"mine": "interrupted", "theirs": "open"}
    await kill(other)
    await third.close()
    await mine.close()


async def test_a_killed_gateway_is_noticed_by_one_that_runs(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gateways, "BEAT_S", 0.1)
    mine = await open_store(url)
    await mine.ledger.record(OPEN)
    other = await child(url)
    await asyncio.sleep(0.5)
    assert await statuses(mine) == {"mine": "open", "theirs": "open"}
    await kill(other)
    async with asyncio.timeout(5):
        while (await statuses(mine))["theirs"] != "interrupted":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await statuses(mine) == {"mine": "open", "theirs": "interrupted"}
    assert len(rows(url, "SELECT id FROM gateways")) == 2, "it may be back in a moment"
    rows(url, f"UPDATE gateways SET seen = seen - {gateways.SILENT_S} RETURNING id")
    await asyncio.sleep(0.5)
    assert len(rows(url, "SELECT id FROM gateways")) == 1
    await mine.close()
    assert rows(url, "SELECT id FROM gateways") == []


async def test_a_silent_gateway_counts_as_dead_though_its_claim_is_held(url: str):
    mine = await open_store(url)
    other = await child(url)
    rows(url, f"UPDATE gateways SET seen = seen - {gateways.SILENT_S} RETURNING id")
    await mine.ledger.recover(NOW)
    assert await statuses(mine) == {"theirs": "interrupted"}
    await kill(other)
    await mine.close()


async def test_a_gateway_that_was_cut_off_keeps_its_results(url: str, monkeypatch: pytest.MonkeyPatch):
    first = await open_store(url)
    await first.ledger.record(OPEN)
    await asyncio.sleep(0)
    rows(url, CUT)
    monkeypatch.setattr(gateways, "BEAT_S", 0.1)  # of the second only: the first waits for its first beat by now
    second = await open_store(url)
    await second.ledger.recover(NOW)
    assert await statuses(second) == {"mine": "interrupted"}
    await first.ledger.record(OPEN._replace(status="done", cost=7))
    await first.ledger.record(OPEN._replace(id="next"))
    await asyncio.sleep(0.5)
    assert await statuses(second) == {"mine": "done", "next": "open"}
    assert (await second.ledger.recover(NOW))["key-1"].spent == 7
    await second.close()
    await first.close()


async def test_gateways_that_start_at_once_share_an_empty_database(url: str):
    stores = await asyncio.gather(*(open_store(url) for _ in range(4)))
    assert len(rows(url, "SELECT id FROM gateways")) == 4
    assert rows(url, "SELECT count(*) FROM alembic_version") == [(1,)]
    for store in stores:
        await store.close()


async def test_money_that_many_gateways_charge_to_the_same_keys_adds_up(url: str):
    stores = await asyncio.gather(*(open_store(url) for _ in range(3)))

    async def spend(number: int, store: Store) -> None:
        for n in range(60):
            group = [
                OPEN._replace(id=f"{number}-{n}-{key}", key_id=f"key-{key}", status="done", cost=key + 1)
                for key in (range(8) if number % 2 else reversed(range(8)))
            ]
            await asyncio.gather(*(store.ledger.record(entry) for entry in group))

    await asyncio.gather(*(spend(number, store) for number, store in enumerate(stores)))
    accounts = await stores[0].ledger.recover(NOW)
    assert {key: account.spent for key, account in accounts.items()} == {f"key-{k}": 180 * (k + 1) for k in range(8)}
    for store in stores:
        await store.close()

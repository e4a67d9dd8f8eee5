"""`kill -9` at random moments loses nothing that was acknowledged and charges nothing twice."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from atoll.store import open_store

CHILD = Path(__file__).with_name("store_child.py")
ROUNDS = 5


async def run_and_kill(url: str, round: int, after: float) -> list[list[str]]:
    """The lines that the child printed in full before it was killed, `after` seconds into its work."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILD),
        url,
        str(round),
        stdout=asyncio.subprocess.PIPE,
    )
    first = await asyncio.wait_for(child.stdout.readline(), 30)
    reading = asyncio.create_task(child.stdout.read())
    await asyncio.sleep(after)
    child.kill()
    printed = (first + await asyncio.wait_for(reading, 30)).decode()
    await child.wait()
    return [line.split() for line in printed.split("\n")[:-1]]


@pytest.mark.timeout(120)
async def test_kill_loses_no_charge_and_leaves_nothing_open(durable_url: str):
    rng = random.Random(2)
    acknowledged = []
    for round in range(ROUNDS):
        acknowledged += await run_and_kill(durable_url, round, after=rng.uniform(0.02, 0.5))
    store = await open_store(durable_url)
    accounts = await store.ledger.recover(time.time())
    rows = {e.id: e for e in await store.ledger.entries(limit=1_000_000)}
    await store.close()

    charged = {line[1]: int(line[2]) for line in acknowledged if line[0] == "done"}
    assert len(charged) > 50
    assert {id for _, id, *_ in acknowledged} <= rows.keys()
    assert {id: rows[id].cost for id in charged} == charged
    assert {e.status for e in rows.values()} <= {"done", "interrupted"}
    sums: Counter[str] = Counter()
    for entry in rows.values():
        sums[entry.key_id] += entry.cost
    assert {key: account.spent for key, account in accounts.items() if account.spent} == dict(sums)

"""Records requests until it is killed; prints a line for each row once the ledger says that it is on disk.

usage: python store_child.py URL ROUND; lines: `open ID` and `done ID COST`
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from atoll.core.types import Entry, Usage
from atoll.store import Store, open_store

CLIENTS = 24


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def client(store: Store, name: str, rng: random.Random) -> None:
    number = 0
    while True:
        number += 1
        entry = Entry(f"{name}-{number}", f"key-{rng.randrange(3)}", "max", "eu-west", "/v1/chat", time.time())
        written = store.ledger.record(entry)
        if rng.random() < 0.5:
            await written
            say(f"open {entry.id}")
        await asyncio.sleep(rng.random() * 0.004)
        cost = rng.randrange(1, 1_000_000)
        final = entry._replace(status="done", usage=Usage(3, 4), cost=cost, http_status=200, duration_ms=1.0)
        await store.ledger.record(final)
        say(f"done {entry.id} {cost}")


async def main(url: str, round: str) -> None:
    store = await open_store(url)
    await store.ledger.recover(time.time())
    await asyncio.gather(*(client(store, f"{round}-{n}", random.Random(n)) for n in range(CLIENTS)))


asyncio.run(main(sys.argv[1], sys.argv[2]))

"""The fleet changes under load: France opens, Virginia is drained and closed, and no request fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import known_cloud as known
import pytest
from conftest import start
from mischief import Load, process_of

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(300)]

FRANCE, VIRGINIA = "x-fr-1", "us-east-1"
SERVED = ("eu-central-1", VIRGINIA, "ap-southeast-1")
SECONDS = 20


async def test_regions_open_drain_and_close_under_load_without_a_failed_request(tmp_path: Path) -> None:
    flags, environment = known.options((*SERVED, FRANCE))
    with known.engine(tmp_path, 0.03):
        cloud = await asyncio.to_thread(start, tmp_path, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                await change_under_load(http, cloud.process.pid)
        finally:
            cloud.close()


async def change_under_load(http: httpx.AsyncClient, cloud: int) -> None:
    """France was opened for its process to be made; it is closed, and the load begins without it."""
    await change(http, FRANCE, "draining")
    await change(http, FRANCE, "retired")
    assert process_of(cloud, FRANCE) is None
    await known.all_serve(http, SERVED)
    streams = asyncio.create_task(Load(http, clients=20, tokens=(20, 80)).run(SECONDS))
    answers = asyncio.create_task(ask_whole(http, SECONDS))
    await asyncio.sleep(2)
    await change(http, FRANCE, "live")
    assert process_of(cloud, FRANCE)
    await known.all_serve(http, (FRANCE,))
    await asyncio.sleep(3)
    await change(http, VIRGINIA, "draining")
    drained = time.time()
    await change(http, VIRGINIA, "retired")
    assert process_of(cloud, VIRGINIA) is None and not (await known.regions(http))[VIRGINIA]["endpoints"]
    seen = [told for told, _ in await streams] + await answers
    wrong = [told for told in seen if not told.right]
    assert not wrong, (len(wrong), len(seen), wrong[0])
    ledger = await known.rows(http)
    known.check_books(seen, ledger)
    check_where(ledger, drained)


async def change(http: httpx.AsyncClient, region: str, status: str) -> None:
    reply = await http.patch(f"/atoll/v1/regions/{region}", json={"status": status})
    assert reply.status_code == 200 and reply.json()["status"] == status, reply.text


def check_where(ledger: list[dict[str, Any]], drained: float) -> None:
    """Both regions took part while they were open, nothing began in Virginia later, and nothing was moved."""
    began = {row["id"]: row["created_at"] for row in ledger}
    at = {id: {row["id"] for row in ledger if id in row["path"]} for id in (FRANCE, VIRGINIA)}
    assert at[FRANCE] and at[VIRGINIA]
    assert all(began[id] <= drained for id in at[VIRGINIA])
    assert not any(row["grade"] for row in ledger)


async def ask_whole(http: httpx.AsyncClient, seconds: float) -> list[known.Told]:
    """Requests that are not streamed, four at a time."""
    until, seen = time.monotonic() + seconds, []

    async def one(first: int) -> None:
        number = first
        while time.monotonic() < until:
            number += 1
            seen.append(await known.whole(http, known.asked(number, 30)))

    await asyncio.gather(*(one(10**6 * n) for n in range(1, 5)))
    return seen

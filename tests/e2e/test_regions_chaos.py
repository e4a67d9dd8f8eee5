"""Ten regions, a process each, that are killed, stopped and cut off at random while fifty clients stream: every client
gets every token once, pays once, and rules of residency hold whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import known_cloud as known
import pytest
from conftest import Live, start
from known_cloud import Told
from mischief import EU, OTHERS, TEN, Load, Mischief, failing, stalls

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(300)]

SECONDS = 25
"""In CI; `python bench/resume.py --chaos 300` goes on for five minutes."""
WAIT = 0.05


@dataclass
class World:
    cloud: Live
    http: httpx.AsyncClient

    @property
    def pid(self) -> int:
        return self.cloud.process.pid

    async def key(self, **policy: Any) -> dict[str, str]:
        """Headers of a new key."""
        reply = await self.http.post("/atoll/v1/keys", json={"name": "chaos", **policy})
        return {"authorization": f"Bearer {reply.raise_for_status().json()['secret']}"}

    async def audit(self) -> dict[str, Any]:
        return (await self.http.get("/atoll/v1/audit")).raise_for_status().json()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    flags, environment = known.options(TEN)
    with known.engine(tmp_path, WAIT):
        cloud = await asyncio.to_thread(start, tmp_path, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                await known.all_serve(http, TEN)
                yield World(cloud, http)
        finally:
            cloud.close()


async def test_fifty_streams_survive_regions_that_die_at_random(world: World, capsys: Any) -> None:
    mischief = Mischief(world.http, world.pid, TEN, seed=11)
    seen, _ = await asyncio.gather(Load(world.http).run(SECONDS), mischief.run(SECONDS))
    tolds = [told for told, _ in seen]
    ledger = await known.rows(world.http)
    check(tolds)
    known.check_books(tolds, ledger)
    found = stalls(tolds, ledger)
    assert found["broken"] >= 5, (found, mischief.done)
    with capsys.disabled():
        print(f"\n{mischief.done} {found}")


def check(tolds: list[Told]) -> None:
    wrong = [told for told in tolds if not told.right]
    assert not wrong, (len(wrong), len(tolds), wrong[0])


async def test_a_rule_holds_while_all_regions_but_one_that_it_allows_fail(world: World) -> None:
    european = await world.key(residency={"process_in": ["eu"]})
    mischief = Mischief(world.http, world.pid, OTHERS, seed=5, most=3)
    load = Load(world.http, headers=(european, await world.key()))
    running = asyncio.create_task(load.run(SECONDS))
    await asyncio.sleep(2)
    async with failing(world.pid, crashing=EU[:1], frozen=EU[1:2]):
        seen, _ = await asyncio.gather(running, mischief.run(SECONDS - 5))
    check([told for told, _ in seen])
    ledger = await known.rows(world.http)
    known.check_books([told for told, _ in seen], ledger)
    found = check_places(seen, ledger)
    assert found["bound"] >= {EU[2]} and found["free"] - set(EU)
    told = await world.audit()
    assert (told["violations"], told["judged"]) == (0, len(ledger)), told["data"][:3]


def check_places(seen: list[tuple[Told, dict[str, str]]], ledger: list[dict[str, Any]]) -> dict[str, set[str]]:
    """No region outside the EU was even asked for an answer that is bound to it. Who made any, by kind of key."""
    paths = {row["id"]: row for row in ledger}
    found: dict[str, set[str]] = {"bound": set(), "free": set()}
    for told, _ in seen:
        row = paths[told.id]
        bound = row["rule"] == "process_in=eu"
        assert not bound or {region for region, _ in known.steps(row)} <= set(EU), row
        found["bound" if bound else "free"] |= {region for region, tokens in known.steps(row) if tokens}
    return found


async def test_with_no_allowed_region_left_requests_are_refused_and_served_nowhere_else(world: World) -> None:
    european, anyone = await world.key(residency={"process_in": ["eu"]}), await world.key()
    async with failing(world.pid, crashing=EU[:1], frozen=EU[1:]):
        await asyncio.sleep(1)
        seen = await Load(world.http, clients=20, headers=(european, anyone)).run(10)
        late = (known.stream(world.http, known.asked(10**6 + n, 20), european) for n in range(10))
        refused = [(told, european) for told in await asyncio.gather(*late)]
    seen += refused
    for told, headers in seen:
        if headers is anyone:
            assert told.right, told
        else:
            assert told.status in {503, 504} and not told.text and told.error, told
    told = {told.error["code"] for told, _ in refused if told.error}
    assert told == {"residency_unavailable"}, told
    ledger = await known.rows(world.http)
    known.check_books([told for told, _ in seen], ledger)
    assert not check_places(seen, ledger)["bound"]
    assert (await world.audit())["violations"] == 0

"""A region that refuses: the request goes on to the next allowed one, and is refused only when all have refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import orjson
import pytest
from support import CHAT_CARD, SECRET
from test_resume import World, world
from wire import OK, Caller, wire

from atoll.core.errors import AtollError, Overloaded, QuotaExceeded, to_wire
from atoll.core.places import Region
from atoll.core.ports import Ask
from atoll.core.route import ORDER, Request
from atoll.core.types import Endpoint
from atoll.gateway.placing import Placing
from atoll.regions.fleet import Fleet
from atoll.regions.queue import Queue

PATH = "/v1/chat/completions"
FULL = Overloaded("all places to wait are taken", retry_after=7.0)


class Station:
    """Refuses with `error` as a station does; answers where there is none."""

    def __init__(self, error: AtollError | None = None, wait: float = 0.0) -> None:
        self.error = error
        self.wait = wait
        self.asked = 0

    async def __call__(self, caller: Caller) -> None:
        while True:
            await caller.request()
            self.asked += 1
            await asyncio.sleep(self.wait)
            if self.error is None:
                await caller.send(OK)
                continue
            body = orjson.dumps({"error": to_wire(self.error)})
            head = b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n" % (self.error.status, len(body))
            await caller.send(head + body)


@asynccontextmanager
async def fleet_of(*stations: Station, patience: float = 5.0) -> AsyncIterator[Fleet]:
    """Regions r0, r1, ... from near to far."""
    async with AsyncExitStack() as stack:
        fleet = Fleet(patience=patience)
        stack.push_async_callback(fleet.close)
        fleet.offer(CHAT_CARD)
        for i, station in enumerate(stations):
            server = await stack.enter_async_context(wire(station))
            fleet.view.region(f"r{i}", "live", rtt=i)
            fleet.join(CHAT_CARD.id, Endpoint(f"talker@r{i}", server.url, f"r{i}", station=True))
        yield fleet


async def ask(fleet: Fleet, allowed: frozenset[str] | None = None) -> str:
    """One whole request; the region that answered."""
    reply = await fleet.open(CHAT_CARD, PATH, b"{}", ask=Ask(Request("q", CHAT_CARD.id, allowed=allowed)))
    while await reply.read():
        pass
    reply.close()
    return reply.endpoint.region


@pytest.mark.parametrize("error", [FULL, QuotaExceeded("too many at once here", retry_after=2.0)])
async def test_a_refusal_spills_to_the_next_region(error: AtollError) -> None:
    near, far = Station(error), Station()
    async with fleet_of(near, far) as fleet:
        for _ in range(4):
            assert await ask(fleet) == "r1"
        assert near.asked == 4, "a region that refuses is not broken"
        assert not any(spot.health.opened or spot.outstanding for spot in fleet.members(CHAT_CARD.id))


async def test_a_refusal_does_not_spill_to_a_region_that_is_not_allowed() -> None:
    near, far = Station(FULL), Station()
    async with fleet_of(near, far) as fleet:
        with pytest.raises(Overloaded) as caught:
            await ask(fleet, frozenset({"r0"}))
        assert (caught.value.retry_after, near.asked, far.asked) == (7.0, 1, 0)


async def test_the_search_goes_on_beyond_the_first_nominees() -> None:
    refusing, free = [Station(FULL) for _ in range(ORDER)], Station()
    async with fleet_of(*refusing, free) as fleet:
        assert await ask(fleet) == f"r{ORDER}"
        assert [station.asked for station in refusing] == [1] * ORDER
        first, second = fleet.decisions["q"]
        assert (len(first.decision.order), second.decision.order) == (ORDER, (f"talker@r{ORDER}",))
        assert "refused this request" in {c.name: c.reason for c in second.decision.candidates()}["talker@r0"]


@pytest.mark.parametrize("regions", [1, ORDER, 2 * ORDER + 1])
async def test_when_all_refuse_each_was_asked_once_and_the_soonest_is_told(regions: int) -> None:
    soonest = Overloaded("all places to wait are taken", retry_after=3.0)
    stations = [Station(FULL) for _ in range(regions - 1)] + [Station(soonest)]
    async with fleet_of(*stations) as fleet:
        with pytest.raises(Overloaded) as caught:
            await ask(fleet)
        assert caught.value.retry_after == 3.0
        assert [station.asked for station in stations] == [1] * regions
        assert all(made.decision.order for made in fleet.decisions["q"])


async def test_the_deadline_ends_the_search() -> None:
    stations = [Station(FULL, wait=0.05) for _ in range(2 * ORDER)] + [Station()]
    async with fleet_of(*stations, patience=0.3) as fleet:
        began = time.monotonic()
        with pytest.raises(Overloaded):
            await ask(fleet)
        assert time.monotonic() - began < 2
        assert sum(station.asked for station in stations) == ORDER


def full(w: World) -> None:
    """Each region runs one request, and none may wait."""
    for region, station in w.home.stations.items():
        station.queues["known"] = Queue(f"'known' in {region}", 1, capacity=0)
    placed = {id: Region(id, id, "DE", 0.0, 0.0, "live") for id in w.home.stations}
    w.house.gateway.exchange.placing = Placing(placed, "a")


async def post(w: World, *places: str) -> httpx.Response:
    body = w.asked(residency={"process_in": places}) if places else w.asked()
    async with httpx.AsyncClient(timeout=30) as client:
        headers = {"authorization": f"Bearer {SECRET}"}
        return await client.post(f"{w.house.url}{PATH}", json=body, headers=headers)


async def test_full_regions_spill_and_then_refuse_with_the_time_after_which_they_serve() -> None:
    async with world(wait=0.02, regions=("a", "b")) as w:
        full(w)
        assert [(await post(w, id)).headers["x-atoll-region"] for id in ("a", "b")] == ["a", "b"]
        busy = asyncio.create_task(post(w, "a"))
        await asyncio.sleep(0.1)
        refused = await post(w, "a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        spilled = asyncio.create_task(post(w))
        await asyncio.sleep(0.1)
        refused = await post(w)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1", "a request takes half a second"
        decided = w.house.fleet.decisions[refused.headers["x-request-id"]]
        assert len(decided) == 1, "once all have refused, they are not asked again"
        assert (await busy).headers["x-atoll-region"] == "a"
        assert (await spilled).headers["x-atoll-region"] == "b"
        await asyncio.sleep(1)
        assert (await post(w)).status_code == 200

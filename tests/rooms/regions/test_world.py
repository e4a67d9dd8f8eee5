"""Regions opened, drained, closed and broken while requests flow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from known_engine import KnownEngine
from support import serving
from test_resume import CARD

from atoll.core.errors import Conflict, InvalidRequest, NotFound
from atoll.core.places import Client, Region
from atoll.core.ports import Ask
from atoll.core.route import Request
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteRunner
from atoll.regions.fleet import Fleet
from atoll.regions.home import Home
from atoll.regions.site import Site
from atoll.regions.station import Station
from atoll.regions.world import Plan, World

BODY = b'{"model":"known","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}'


def place(id: str, status: str = "live") -> Region:
    return Region(id, id, "DE", 0.0, 0.0, status)  # type: ignore[arg-type]


class Elsewhere:
    """A region in a process of its own, as `World` knows it: here a station of this process."""

    def __init__(self, region: str, site: Site, up) -> None:
        self.station = Station(region, site, 4, "token")
        self.up = up
        self.killed = 0
        self.pid = 1

    async def start(self) -> str:
        await self.station.listen()
        return self.station.url

    async def stop(self) -> None:
        await self.station.close()

    def kill(self) -> None:
        self.killed += 1


@asynccontextmanager
async def world(*regions: Region, isolate: str = "") -> AsyncIterator[World]:
    async with serving(KnownEngine()) as url:
        fleet, site = Fleet(patience=0.5), Site()
        home = Home(fleet, site, "a", slots=4)

        def spawn(region, up):
            return Elsewhere(region, site, up), "token"

        made = World(regions, home, fleet, Plan(frozenset(isolate.split())), spawn)
        fleet.offer(CARD)
        site.offer(CARD, RemoteRunner(CARD))
        site.join("known", Endpoint("engine", url, "a"))
        home._stations = lambda card_id: list(home.stations.values())  # type: ignore[method-assign]
        await made.start({r.id: 0.01 for r in regions}, {})
        yield made
        await made.close()
        await home.close()
        await fleet.close()


async def answers(made: World, region: str) -> str:
    ask = Ask(Request("", "known", allowed=frozenset({region})))
    reply = await made.fleet.open(CARD, "/v1/chat/completions", BODY, ask=ask)
    while await reply.read():
        pass
    reply.close()
    return reply.endpoint.region


def row(made: World, id: str) -> dict:
    return next(r for r in made.rows() if r["id"] == id)


async def test_an_announced_region_opens_and_serves_and_its_state_is_remembered() -> None:
    told = []

    async def remember(id: str, status: str, at: float) -> None:
        told.append((id, status))

    async with world(place("a"), place("b", "announced")) as made:
        made.remember = remember
        with pytest.raises(Exception, match="residency"):
            await answers(made, "b")
        await made.change("b", "live")
        assert await answers(made, "b") == "b"
        assert (row(made, "b")["status"], row(made, "b")["served_by"]) == ("live", "shared")
        assert told == [("b", "live")]


async def test_a_draining_region_gets_nothing_new_and_closes() -> None:
    async with world(place("a"), place("b")) as made:
        await made.change("b", "draining")
        with pytest.raises(Exception, match="residency"):
            await answers(made, "b")
        await made.change("b", "retired")
        assert row(made, "b")["served_by"] == "" and "b" not in made.home.stations
        await made.change("b", "live")
        assert await answers(made, "b") == "b"


async def test_steps_that_are_not_allowed_and_names_that_are_not_known_are_said() -> None:
    async with world(place("a")) as made:
        with pytest.raises(Conflict, match="'a' is live; from there it can become: draining"):
            await made.change("a", "retired")
        with pytest.raises(NotFound, match="no region 'x'"):
            await made.change("x", "live")
        with pytest.raises(InvalidRequest, match="a drill is one of"):
            await made.drill("a", "flood", 1)
        with pytest.raises(InvalidRequest, match="up to 600"):
            await made.drill("a", "kill", 6000)


@pytest.mark.parametrize("kind", ["kill", "stall", "partition"])
async def test_a_region_that_is_drilled_does_not_answer_and_then_does_again(kind: str) -> None:
    async with world(place("a"), place("b")) as made:
        assert await answers(made, "b") == "b"
        await made.drill("b", kind, 0.3)
        assert row(made, "b")["drill"]["kind"] == kind and not row(made, "b")["alive"]
        with pytest.raises(Conflict, match="drilled already"):
            await made.drill("b", kind, 1)
        await asyncio.sleep(0.5)
        assert row(made, "b")["drill"] is None and row(made, "b")["alive"]
        assert await answers(made, "b") == "b"


async def test_what_routing_weighs_is_explained_also_from_where_a_client_is() -> None:
    paris, virginia = replace(place("a"), lat=48.9, lon=2.4), replace(place("b"), lat=38.9, lon=-77.4)
    async with world(replace(paris, electricity=0.1), replace(virginia, electricity=0.2)) as made:
        asked = Request("", "known", prompt=1000, output=800)
        told = made.weigh(asked)
        assert (told["joules_per_token"], told["joules_estimated"]) == (1.0, True)
        parts = {c["region"]: c["parts"] for c in told["candidates"]}
        assert parts["a"]["rtt"] == parts["b"]["rtt"] == 0.01
        assert parts["b"]["energy"] == pytest.approx(2 * parts["a"]["energy"])
        assert parts["a"]["energy"] == pytest.approx(200 * 1800 / 3.6e6 * 0.1)
        assert made.weigh(asked, Client(40.7, -74.0, "US"))["region"] == "b"
        assert made.weigh(asked, Client(50.1, 8.7))["region"] == "a"


async def test_a_region_elsewhere_is_linked_and_told_to_fail() -> None:
    async with world(place("a"), place("b"), isolate="b") as made:
        assert await answers(made, "b") == "b"
        assert row(made, "b")["served_by"] == "process" and row(made, "b")["alive"]
        await made.drill("b", "kill", 0.2)
        assert made._processes["b"].killed == 1  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        await made.drill("b", "slow", 0.2)
        assert await answers(made, "b") == "b"


async def test_a_region_elsewhere_that_is_far_away_takes_a_drill_too() -> None:
    async with world(place("a"), place("b"), isolate="b") as made:
        await made.links["b"].fault("delay", 0.05)
        await made.drill("b", "partition", 0.3)
        await asyncio.sleep(0.5)
        assert await answers(made, "b") == "b" and row(made, "b")["drill"] is None

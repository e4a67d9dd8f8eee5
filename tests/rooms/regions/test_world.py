"""Regions opened, drained, closed and broken while requests flow."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from known_engine import KnownEngine
from support import serving
from test_resume import CARD

from atoll.core.admission import Ticket
from atoll.core.errors import Conflict, EngineFailed, InvalidRequest, NotFound, Overloaded
from atoll.core.places import Client, Region, RegionStatus
from atoll.core.ports import Ask, Places
from atoll.core.route import Request
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteRunner
from atoll.regions import link
from atoll.regions import world as places
from atoll.regions.fleet import Fleet
from atoll.regions.home import Home
from atoll.regions.join import Asking, Joined, Token, _public, _text
from atoll.regions.queue import Queue
from atoll.regions.site import Site
from atoll.regions.station import Station
from atoll.regions.trust import Trust, key_pem, new_key, request_certificate
from atoll.regions.world import Plan, World
from atoll.store import open_store
from atoll.store.memory import MemoryPlaces

BODY = b'{"model":"known","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}'


def place(id: str, status: str = "live") -> Region:
    return Region(id, id, "DE", 0.0, 0.0, status)  # type: ignore[arg-type]


class Away(MemoryPlaces):
    """A database that can be gone."""

    away = False

    async def put(self, region_id: str, status: RegionStatus, at: float) -> None:
        self._look()
        await super().put(region_id, status, at)

    async def all(self) -> Mapping[str, tuple[RegionStatus, float]]:
        self._look()
        return await super().all()

    def _look(self) -> None:
        if self.away:
            raise Overloaded("the database cannot be read", retry_after=1.0)


class Elsewhere:
    """A region in a process of its own, as `World` knows it: here a station of this process. The next `fails` starts
    do not succeed."""

    fails = 0

    def __init__(self, region: str, site: Site, up) -> None:
        self.station = Station(region, site, 4, "token")
        self.up = up
        self.killed = 0
        self.pid = 1

    async def start(self) -> str:
        if Elsewhere.fails:
            Elsewhere.fails -= 1
            raise EngineFailed("it ended at once")
        await self.station.listen()
        return self.station.url

    async def stop(self) -> None:
        await self.station.close()

    def kill(self) -> None:
        self.killed += 1


@asynccontextmanager
async def world(
    *regions: Region, isolate: str = "", decisions: Places | None = None, members: Joined | None = None
) -> AsyncIterator[World]:
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
        made.decisions, made.members = decisions, members
        await made.start({r.id: 0.01 for r in regions})
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
    decisions = MemoryPlaces()
    async with world(place("a"), place("b", "announced"), decisions=decisions) as made:
        with pytest.raises(Exception, match="residency"):
            await answers(made, "b")
        await made.change("b", "live")
        assert await answers(made, "b") == "b"
        assert (row(made, "b")["status"], row(made, "b")["served_by"]) == ("live", "shared")
        assert [(id, status) for id, (status, _) in (await decisions.all()).items()] == [("b", "live")]
    async with world(place("a"), place("b", "announced"), decisions=decisions) as made:
        assert await answers(made, "b") == "b"


async def test_a_region_may_be_built_before_it_opens() -> None:
    async with world(place("a"), place("b", "announced")) as made:
        assert (await made.change("b", "building")).status == "building"
        assert row(made, "b")["served_by"] == ""
        await made.change("b", "live")
        assert await answers(made, "b") == "b"
        with pytest.raises(Conflict, match="'b' is live; from there it can become: draining"):
            await made.change("b", "building")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def change(gateway: World, id: str, status: RegionStatus) -> None:
    """Once what was decided elsewhere has been done here."""
    async with asyncio.timeout(10):
        while True:
            try:
                await gateway.change(id, status)
                return
            except Conflict as error:
                if "being changed" not in error.message:
                    raise
                await asyncio.sleep(0.02)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/atoll.db"
    return request.getfixturevalue("postgres_server").new_database()


async def test_what_is_decided_at_one_gateway_holds_at_the_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REVIEW_EVERY", 0.05)
    one = await open_store(url)
    two = await open_store(url) if "postgresql" in url else one
    all_of = (place("a"), place("b"), place("c", "announced"))
    async with world(*all_of, decisions=one.places) as here, world(*all_of, decisions=two.places) as there:
        await change(here, "b", "draining")
        await until(lambda: there.regions["b"].status == "draining")
        with pytest.raises(Exception, match="residency"):
            await answers(there, "b")
        await change(there, "b", "retired")
        await change(there, "c", "live")
        await until(lambda: here.regions["b"].status == "retired" and "b" not in here.home.stations)
        await until(lambda: here.regions["c"].status == "live")
        assert await answers(here, "c") == await answers(there, "c") == "c"
        await change(here, "b", "live")
        await until(lambda: there.regions["b"].status == "live")
        assert await answers(there, "b") == "b"
    await one.close()
    if two is not one:
        await two.close()


async def test_what_joined_at_one_gateway_serves_all(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None answers in its place; it lets the others in as soon as the first has told it of them."""
    monkeypatch.setattr(places, "REVIEW_EVERY", 0.05)
    monkeypatch.setattr(link, "EVERY", 0.05)
    store, all_of = await open_store(url), (place("a"), place("b"), place("c", "announced"))

    def gateway(name: str, isolate: str = ""):
        members = Joined(tmp_path / name, store.places)
        return world(*all_of, isolate=isolate, decisions=store.places, members=members)

    async with AsyncExitStack() as machines, gateway("one") as here, gateway("two", "b") as there:
        assert await answers(there, "b") == "b"
        for id in ("b", "c"):
            machine = await joined(here, id, tmp_path / id)
            machines.push_async_callback(machine.close)
            for each in (here, there):
                await until(lambda id=id, each=each: row(each, id)["served_by"] == "joined" and row(each, id)["alive"])  # type: ignore[misc]
                await until(lambda id=id, each=each: row(each, id)["endpoints"] == 1)  # type: ignore[misc]
                assert await answers(each, id) == id
            assert id not in here.home.stations | there.home.stations and not there._processes
        async with gateway("later") as later:
            assert set(later.home.stations) == {"a"}
            await until(lambda: row(later, "b")["endpoints"] == 1)
            assert await answers(later, "b") == "b"
        await parted(here, there, "b")
    await store.close()


async def joined(gateway: World, id: str, place: Path) -> Station:
    """A machine of its own that joined at `gateway`, with this process's engine."""
    assert isinstance(gateway.members, Joined)
    gateway.members.admit = gateway.admit
    token, key = Token.parse((await gateway.members.invite(id))["token"]), new_key()
    asking = Asking(id, request_certificate(key, id), f"https://127.0.0.1:{free_port()}", _public(token.seed))
    signature = _text(Ed25519PrivateKey.from_private_bytes(token.seed).sign(asking.message()))
    answer = await gateway.members.join(id, asdict(replace(asking, signature=signature)))
    told = {"region.key": key_pem(key), "region.pem": answer["certificate"], "ca.pem": answer["ca"]}
    machine = Station(id, gateway.home.site, 4, trust=trust(place, told))
    await machine.listen(port=int(asking.url.rpartition(":")[2]))
    return machine


async def parted(here: World, there: World, id: str) -> None:
    """Its machine has left for good; opened again, each gateway serves it by itself."""
    with pytest.raises(Conflict, match="no machine joined as region 'a'"):
        await there.part("a")
    assert (await there.part(id)).status == "retired"
    await until(lambda: here.regions[id].status == "retired" and not row(here, id)["served_by"])
    with pytest.raises(Exception, match="residency"):
        await answers(here, id)
    await change(here, id, "live")
    await until(lambda: row(there, id)["status"] == "live")
    assert (row(here, id)["served_by"], row(there, id)["served_by"]) == ("shared", "process")
    assert await answers(here, id) == await answers(there, id) == id


async def test_what_other_gateways_sent_to_a_machine_that_joined_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "EVERY", 0.02)
    known = MemoryPlaces()
    async with world(place("a"), place("b"), decisions=known, members=Joined(tmp_path / "one", known)) as made:
        machine = await joined(made, "b", tmp_path / "b")
        await until(lambda: row(made, "b")["endpoints"] == 1)
        queue = machine.queues["known"] = Queue("'known' in b", 1)
        turns = [queue.enter(Ticket(f"key {n}", 5, deadline=1e12)) for n in range(3)]
        spot = made.fleet.view.spot("known", "known@b")
        assert spot is not None
        await until(lambda: (spot.load, spot.queued) == (3, 2))
        for turn in turns:
            queue.leave(turn)
        await until(lambda: (spot.load, spot.queued) == (0, 0))
        await machine.close()


def trust(place: Path, told: dict[str, str]) -> Trust:
    place.mkdir()
    for name, text in told.items():
        (place / name).write_text(text)
    return Trust(place)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def test_a_decision_holds_though_the_clock_of_the_one_before_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REVIEW_EVERY", 0.05)
    decisions = MemoryPlaces()
    async with world(place("a"), place("b"), decisions=decisions) as made:
        await decisions.put("b", "draining", time.time() + 100)
        await until(lambda: made.regions["b"].status == "draining")
        await made.change("b", "live")
        await asyncio.sleep(0.2)
        assert made.regions["b"].status == "live" and (await decisions.all())["b"][0] == "live"


async def test_a_database_that_cannot_be_asked_for_a_while_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REVIEW_EVERY", 0.05)
    decisions = Away()
    async with world(place("a"), place("b"), decisions=decisions) as made:
        decisions.away = True
        with pytest.raises(Overloaded):
            await made.change("b", "draining")
        await asyncio.sleep(0.2)
        assert await answers(made, "b") == "b"
        decisions.away = False
        await decisions.put("b", "draining", time.time())
        await until(lambda: made.regions["b"].status == "draining")


async def test_a_region_that_does_not_start_here_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REVIEW_EVERY", 0.05)
    monkeypatch.setattr(Elsewhere, "fails", 2)
    decisions = MemoryPlaces()
    async with world(place("a"), place("b", "announced"), isolate="b", decisions=decisions) as made:
        await decisions.put("b", "live", time.time())
        await until(lambda: made.regions["b"].status == "live")
        assert Elsewhere.fails == 0 and await answers(made, "b") == "b"


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

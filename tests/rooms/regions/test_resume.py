"""Streams that are cut, token by token: what the client gets is what it would have got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import orjson
import pytest
from known_engine import KnownEngine, answer, word
from support import CHAT_CARD, SECRET, USER, House, running, serving

from atoll.core.cards import Remote, Weights
from atoll.core.types import Endpoint, Policy
from atoll.engines.remote import RemoteRunner
from atoll.regions.home import Home
from atoll.regions.site import Site
from atoll.regions.station import Station

CARD = replace(
    CHAT_CARD, id="known", context=8192, remote=Remote("", "known", token_ids=True), weights=Weights(sha256="ab" * 32)
)
TOKENS = 24


@dataclass(slots=True)
class World:
    house: House
    home: Home
    engine: KnownEngine
    first: str = ""

    def asked(self, **more) -> dict:
        messages = [{"role": "user", "content": "hello there"}]
        return {"model": "known", "messages": messages, "max_tokens": TOKENS, **more}

    def policy(self, **policy) -> None:
        self.house.gateway.exchange.accounts.put(replace(USER, policy=Policy(**policy)))

    def serving(self) -> list[Station]:
        return [s for s in self.home.stations.values() if any(q.running for q in s.queues.values())]

    async def kill_at_work(self, attempt: int) -> Station:
        """Kill the region that has asked the engine for the `attempt`-th time in all."""
        async with asyncio.timeout(20):
            while len(self.engine.asked) < attempt or not self.serving():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        (station,) = self.serving()
        await station.kill()
        return station

    async def events(self, body: dict) -> AsyncIterator[dict]:
        headers = {"authorization": f"Bearer {SECRET}"}
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream("POST", f"{self.house.url}/v1/chat/completions", json=body, headers=headers) as reply,
        ):
            assert reply.status_code == 200, await reply.aread()
            self.first = reply.headers["x-atoll-region"]
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    yield orjson.loads(line[6:])

    async def cut(self, body: dict, at: int, how: str = "kill") -> list[dict]:
        """All events of a stream whose region fails when the client has `at` tokens."""
        events, got = [], 0
        async for event in self.events(body):
            events.append(event)
            got += sum(bool(c["delta"].get("content")) for c in event.get("choices", ()))
            if got >= at and how:
                await self.fail(self.home.stations[self.first], how)
                how = ""
        return events

    async def fail(self, station: Station, how: str) -> None:
        if how == "kill":
            await station.kill()
        elif how == "silence":
            station.faults.silent = True


@asynccontextmanager
async def world(wait: float = 0.004, regions: tuple[str, ...] = ("a", "b", "c")) -> AsyncIterator[World]:
    engine = KnownEngine(wait)
    async with serving(engine) as url, running(CHAT_CARD) as house:
        home = Home(house.fleet, Site(), "a", slots=64)
        await home.open(regions)
        home.offer(CARD, RemoteRunner(CARD))
        home.site.join("known", Endpoint("engine", url, "a"))
        for station in home.stations.values():
            house.fleet.join("known", station.endpoint("known"))
        yield World(house, home, engine)
        await home.close()


def text(events: list[dict]) -> str:
    return "".join(c["delta"].get("content") or "" for e in events for c in e.get("choices", ()))


def expected(body: dict) -> str:
    return "".join(word(token) for token in answer(body))


@pytest.mark.parametrize("sampling", [{"seed": 3}, {"seed": 9, "temperature": 0.9}])
@pytest.mark.parametrize("grade", ["exact", "fast", "hot"])
async def test_a_stream_cut_at_any_token_is_the_unbroken_one(grade: str, sampling: dict) -> None:
    async with world() as w:
        w.policy(recovery=grade)
        body = w.asked(stream=True, stream_options={"include_usage": True}, **sampling)
        whole = await w.cut(body, 0, how="")
        for at in range(1, TOKENS + 1, 2):
            events = await w.cut(body, at)
            assert text(events) == text(whole) == expected(body), at
            assert len({e["id"] for e in events}) == 1
            assert [c["delta"] for e in events for c in e["choices"]].count({"role": "assistant", "content": ""}) == 1
            assert events[-1]["usage"] == whole[-1]["usage"]
            row = await w.house.settled()
            assert (row.status, row.usage.output) == ("done", TOKENS)
            assert sum(int(part.partition(":")[2]) for part in row.path.split()) == TOKENS
            await w.home.revive(w.first)


async def test_a_standby_is_asked_in_the_same_moment() -> None:
    async with world(wait=0.3) as w:
        w.policy(recovery="hot")
        events = w.events(w.asked(stream=True, seed=1))
        while not text([await anext(events)]):
            pass
        assert (len(w.engine.asked), len(w.serving())) == (2, 2)
        await events.aclose()


async def test_the_row_tells_where_an_answer_was_made_and_how_it_went_on() -> None:
    async with world() as w:
        await w.cut(w.asked(stream=True, seed=1), 8)
        row = await w.house.settled()
        first, second = row.path.split()
        assert int(first.partition(":")[2]) >= 8 and first.partition(":")[0] != second.partition(":")[0]
        assert row.grade == "exact" and row.region == second.partition(":")[0]


async def test_a_region_that_falls_silent_is_left_within_three_seconds() -> None:
    async with world() as w:
        body = w.asked(stream=True, seed=5)
        began = asyncio.get_running_loop().time()
        assert text(await w.cut(body, 8, how="silence")) == expected(body)
        assert asyncio.get_running_loop().time() - began < 6
        for station in w.home.stations.values():
            station.faults.silent = False


async def test_an_answer_that_is_not_streamed_survives_too() -> None:
    async with world(wait=0.02) as w:
        async with httpx.AsyncClient(timeout=30) as client:
            headers = {"authorization": f"Bearer {SECRET}"}
            body = w.asked(seed=2)
            asking = asyncio.create_task(
                client.post(f"{w.house.url}/v1/chat/completions", json=body, headers=headers)
            )
            while not w.serving():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await w.serving()[0].kill()
            reply = (await asking).json()
        assert reply["choices"][0]["message"]["content"] == expected(body)
        assert reply["usage"]["completion_tokens"] == TOKENS


async def test_an_answer_made_again_differently_goes_on_from_its_tokens() -> None:
    """The engine changes its mind for the same seed: what was sent stands, and the rest follows from it."""
    async with world() as w:
        body = w.asked(stream=True, seed=4)
        stream = w.events(body)
        events = [await anext(stream) for _ in range(9)]
        for asked in w.engine.asked:
            assert asked["seed"] == 4
        station = w.home.stations[w.first]
        told = w.engine.tell

        async def other(body: dict, chat: bool, send) -> None:
            await told({**body, "seed": 5} if chat else body, chat, send)

        w.engine.tell = other  # type: ignore[method-assign]
        await station.kill()
        events += [event async for event in stream]
        assert text(events) == expected(body)
        assert (await w.house.settled()).grade == "exact>fast"


async def test_thirty_two_streams_at_once_lose_nothing_when_regions_die() -> None:
    async with world(wait=0.02) as w:
        bodies = [w.asked(stream=True, seed=seed) for seed in range(32)]
        streams = [asyncio.create_task(w.cut(body, 0, how="")) for body in bodies]
        for name in ("a", "b", "c"):
            await asyncio.sleep(0.12)
            await w.home.stations[name].kill()
            await asyncio.sleep(0.03)
            await w.home.revive(name)
        for body, events in zip(bodies, await asyncio.gather(*streams), strict=True):
            assert text(events) == expected(body)


async def test_a_stream_outlives_seven_regions_in_a_row_that_die_while_they_make_it_again() -> None:
    async with world(wait=0.03) as w:
        body = w.asked(stream=True, seed=6)
        stream = w.events(body)
        events = [await anext(stream) for _ in range(9)]
        following = asyncio.ensure_future(anext(stream))
        for attempt in range(1, 8):
            await w.home.revive((await w.kill_at_work(attempt)).region)
        assert not following.done(), "no region lived long enough to bring anything new"
        events += [await following, *[event async for event in stream]]
        assert text(events) == expected(body)
        assert (await w.house.settled()).status == "done"


async def test_the_row_of_a_stream_that_is_lost_names_who_made_the_last_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.gateway.resume.DEADLINE", 1.0)
    async with world(wait=0.03) as w:
        stream = w.events(w.asked(stream=True, seed=6))
        for _ in range(9):
            await anext(stream)
        following = asyncio.ensure_future(anext(stream))
        for attempt in range(1, 1 + len(w.home.stations)):
            await w.kill_at_work(attempt)
        assert "error" in [await following, *[event async for event in stream]][-1]
        row = await w.house.settled()
        assert (row.status, row.region) == ("failed", w.first)
        assert row.path.split()[-1].startswith(f"{w.first}:")


async def test_a_key_without_recovery_gets_an_error_event() -> None:
    async with world() as w:
        w.policy(recovery="none")
        events = await w.cut(w.asked(stream=True, seed=1), 5)
        assert "error" in events[-1]
        assert (await w.house.settled()).status == "failed"

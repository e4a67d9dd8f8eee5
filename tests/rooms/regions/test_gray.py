"""Regions that answer, but badly, and what is done before the first token."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from known_engine import event
from support import SECRET, serving
from test_resume import CARD, TOKENS, World, expected, text, world

from atoll.core.admission import Ticket
from atoll.core.errors import Overloaded
from atoll.core.recover import Hedging
from atoll.core.replay import replay
from atoll.core.residency import violations
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteRunner
from atoll.regions import faults as ways
from atoll.regions import fleet, vitals
from atoll.regions.home import Home
from atoll.regions.queue import Queue
from atoll.regions.site import Site

HEADERS = {"authorization": f"Bearer {SECRET}"}


async def whole(w: World, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        body = w.asked(seed=2, **more)
        return await client.post(f"{w.house.url}/v1/chat/completions", json=body, headers=HEADERS)


def faults(w: World) -> dict[str, int]:
    return {s.name: s.health.failures for s in w.house.fleet.members("known") if s.health.failures}


def spoil(w: World, chunk: dict[str, Any], after: int) -> None:
    """The engine's next answer goes wrong after some tokens; those after it are right."""
    told = w.engine.tell

    async def tell(body: dict, chat: bool, send: Any) -> None:
        w.engine.tell = told  # type: ignore[method-assign]
        sent = 0

        async def some(message: dict[str, Any]) -> None:
            nonlocal sent
            sent += b"content" in message.get("body", b"")
            if sent > after:
                await event(send, chunk)
                await asyncio.sleep(30)
            await send(message)

        await told(body, chat, some)

    w.engine.tell = tell  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": "out of memory"}},
        {"choices": [{"delta": {"content": " w1"}}]},
        {"choices": [{"index": 0, "delta": "text"}]},
        {"choices": [{"index": 0, "delta": {"content": 5}}]},
        {"choices": [{"index": 0, "delta": {"content": " w1"}, "token_ids": "seven"}]},
        {"choices": 7},
    ],
    ids=["error", "no index", "text", "number", "ids", "no list"],
)
@pytest.mark.parametrize("after", [1, 9])
async def test_garbage_is_a_failure_of_the_region_and_the_stream_goes_on(chunk: dict, after: int) -> None:
    async with world() as w:
        spoil(w, chunk, after)
        body = w.asked(stream=True, seed=3)
        events = [event async for event in w.events(body)]
        assert text(events) == expected(body)
        assert faults(w) == {f"known@{w.first}": 1}
        assert all(not s.outstanding for s in w.house.fleet.members("known"))


async def test_what_is_wrong_with_the_request_is_no_fault_of_the_region() -> None:
    async with world() as w:
        reply = await whole(w, continue_token_ids=[1], n=2)
        assert reply.status_code == 400, reply.text
        assert not faults(w)


async def test_an_engine_that_stops_in_the_middle_behind_a_region_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "LIMITS", replace(vitals.LIMITS, stall_least=1.2))
    async with world() as w:
        told = w.engine.tell

        async def stops(body: dict, chat: bool, send: Any) -> None:
            w.engine.tell = told  # type: ignore[method-assign]
            await told({**body, "max_tokens": 9}, chat, lambda m: quiet(m, send))

        async def quiet(message: dict[str, Any], send: Any) -> None:
            if b'"finish_reason": "length"' in message.get("body", b""):
                await asyncio.sleep(30)
            await send(message)

        w.engine.tell = stops  # type: ignore[method-assign]
        body = w.asked(stream=True, seed=5)
        began = time.monotonic()
        events = [event async for event in w.events(body)]
        assert text(events) == expected(body)
        assert time.monotonic() - began < 6
        assert faults(w) == {f"known@{w.first}": 1}


async def test_a_stream_leaves_a_region_that_has_become_slow_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LAG_S", 0.3)
    monkeypatch.setattr(ways, "SLOW_SECONDS", 0.15)
    async with world(wait=0.02) as w:
        stations = w.home.stations
        for _ in range(5):
            await asyncio.gather(*(made(w, 20) for _ in stations))
        for slow_ones in (set(stations), {"a"}):
            begun = len(await w.house.rows())
            streams = [asyncio.create_task(made(w, 60)) for _ in stations]
            while {s.region for s in w.serving()} != set(stations):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            for name in slow_ones:
                stations[name].fault("slow", 30)
            await asyncio.gather(*streams)
            for station in stations.values():
                station.faults.relent()
            await w.house.settled()
            paths = [row.path.split() for row in (await w.house.rows())[:-begun]]
            left = {path[0].partition(":")[0] for path in paths if len(path) > 1}
            assert left == (slow_ones if len(slow_ones) == 1 else set()), "where all are slow, none is to blame"


async def made(w: World, tokens: int) -> None:
    """A right answer to a prompt that no other has asked."""
    said = [{"role": "user", "content": f"request {uuid4()}"}]
    body = w.asked(stream=True, seed=1, max_tokens=tokens, messages=said)
    assert text([event async for event in w.events(body)]) == expected(body)


async def test_a_reply_names_only_the_region_that_it_came_from_and_the_row_all_that_were_asked() -> None:
    async with world() as w:
        spoil(w, {"error": {"message": "out of memory"}}, 0)
        reply = await whole(w)
        row = await w.house.settled()
        assert reply.headers.get_list("x-atoll-region") == [row.region]
        assert reply.headers.get_list("x-atoll-decision") == [f"known@{row.region}"]
        failed, made = row.path.split()
        assert failed.endswith(":0") and made == f"{row.region}:{TOKENS}" and not failed.startswith(row.region)
        regions = w.house.gateway.exchange.placing.regions
        strict = row._replace(rule=f"process_in={row.region}", stored_in="here")
        everywhere = {**regions, **{name: replace(regions["here"], id=name) for name in "abc"}}
        assert [(v.axis, v.region) for v in violations([strict], everywhere)] == [("process_in", failed[0])]


async def test_a_second_region_is_asked_when_the_first_token_is_late() -> None:
    async with world() as w:
        w.house.gateway.exchange.hedging = Hedging(enabled=True, factor=3.0, least=0.1)
        slow(w, 3.0)
        began = time.monotonic()
        body = w.asked(stream=True, seed=6)
        events = [event async for event in w.events(body)]
        assert text(events) == expected(body) and time.monotonic() - began < 2
        row = await w.house.settled()
        late, made = row.path.split()
        assert made == f"{w.first}:{TOKENS}" and late.endswith(":0"), "the reply names the one that was first"
        assert (row.grade, row.usage.output) == ("", TOKENS)
        await idle(w)


async def test_the_first_region_may_still_be_first_and_its_failure_is_made_good() -> None:
    async with world() as w:
        w.house.gateway.exchange.hedging = Hedging(enabled=True, factor=0.0, least=0.02)
        slow(w, 0.1, later=0.6)
        body = w.asked(stream=True, seed=7)
        assert text([event async for event in w.events(body)]) == expected(body)
        assert len(w.engine.asked) == 2
        await idle(w)
        slow(w, 0.1, later=0.3, broken=True)
        assert text([event async for event in w.events(body)]) == expected(body)
        await idle(w)


async def test_hedging_is_off_unless_asked_for_and_stops_with_the_budget() -> None:
    async with world() as w:
        exchange = w.house.gateway.exchange
        slow(w, 0.4)
        assert (await whole(w)).status_code == 200
        assert len(w.engine.asked) == 1
        exchange.hedging = Hedging(enabled=True, factor=0.0, least=0.02)
        exchange.retries = exchange.retries._replace(ratio=0.0, per_second=0.0, balance=0.0)
        slow(w, 0.4)
        assert (await whole(w)).status_code == 200
        assert len(w.engine.asked) == 2


def slow(w: World, first: float, later: float = 0.0, broken: bool = False) -> None:
    """The next request waits `first` seconds for its first token (and fails then), those after it `later`."""
    told, waits = w.engine.tell, [first]

    async def tell(body: dict, chat: bool, send: Any) -> None:
        is_first = bool(waits)
        await asyncio.sleep(waits.pop() if waits else later)
        if is_first and broken:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await told(body, chat, send)

    w.engine.tell = tell  # type: ignore[method-assign]


async def idle(w: World) -> None:
    """No request is left anywhere."""
    async with asyncio.timeout(5):
        while w.serving() or any(s.outstanding for s in w.house.fleet.members("known")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("rule", ["fail", "continue", "restart"])
async def test_where_only_other_weights_are_left_the_rule_of_the_key_decides(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Region `a` has the weights that began the answer, `z` has others."""
    monkeypatch.setattr("atoll.gateway.resume.HOPE", 1.0)
    async with world(regions=("a",)) as w:
        card = replace(CARD, weights=replace(CARD.weights, sha256="cd" * 32))
        other = Home(w.house.fleet, Site(), "z", slots=64)
        await other.open(("z",))
        async with serving(w.engine) as url:
            other.site.offer(card, RemoteRunner(card))
            other.site.join("known", Endpoint("engine", url, "z"))
            w.policy(on_mismatch=rule)
            body, got = w.asked(stream=True, seed=8), []
            async for each in w.events(body):
                got.append(each)
                if len(got) == 9:
                    w.house.fleet.join("known", other.stations["z"].endpoint("known"))
                    w.house.fleet.leave("known", "known@a")
                    await w.home.stations["a"].kill()
            row = await w.house.settled()
            if rule == "fail":
                assert "error" in got[-1] and row.status == "failed"
            elif rule == "continue":
                assert text(got) == expected(body) and row.grade == "exact>fast"
            else:
                begun, _, again = text(got).partition("It begins anew.]\n\n")
                assert expected(body).startswith(begun.split("\n\n[")[0]) and again == expected(body)
                assert (row.grade, row.usage.output) == ("restart", TOKENS)
        await other.close()


async def test_who_loses_a_place_is_told_how_long_the_queue_is() -> None:
    queue = Queue("here", limit=1, capacity=2)
    running = queue.enter(Ticket("a"))
    await asyncio.sleep(0.2)
    queue.leave(running)
    queue.enter(Ticket("a"))
    greedy = [queue.enter(Ticket("a")) for _ in range(2)]
    queue.enter(Ticket("b"))
    with pytest.raises(Overloaded) as caught:
        await greedy[1]
    assert caught.value.retry_after == pytest.approx(0.6, abs=0.2)


async def test_every_decision_of_a_request_is_recorded_and_replays() -> None:
    async with world() as w:
        lines: list[bytes] = []
        w.house.fleet.log = lines.append
        for station in w.home.stations.values():
            await station.kill()
        asking = asyncio.create_task(whole(w))
        await asyncio.sleep(0.3)
        for name in w.home.stations:
            await w.home.revive(name)
        assert (await asking).status_code == 200
        made = w.house.fleet.decisions
        assert len(lines) >= sum(map(len, made.values()))
        assert all(expected == got for _, expected, got in replay(lines, Random))
        assert {orjson.loads(line)["decision"]["policy"] for line in lines} == {"atoll"}

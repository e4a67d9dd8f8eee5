"""Engines that accept a request and give nothing, behind regions that live; and those that are merely busy."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from test_gray import faults, idle, slow, whole
from test_resume import TOKENS, World, expected, text, world

from atoll.regions import vitals
from atoll.regions.beats import beat, silence


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang is one after 1.2 seconds."""
    monkeypatch.setattr(vitals, "LIMITS", replace(vitals.LIMITS, first_least=1.2))


def hang(w: World, heads: bool = False) -> None:
    """The next request gets no answer, at most its head."""
    told = w.engine.tell

    async def tell(body: dict, chat: bool, send: Any) -> None:
        w.engine.tell = told  # type: ignore[method-assign]
        if heads:
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            await send(start)
        await asyncio.sleep(60)

    w.engine.tell = tell  # type: ignore[method-assign]


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_engine_that_gives_nothing_is_left_for_another_region(streamed: bool, heads: bool) -> None:
    async with world() as w:
        hang(w, heads)
        began, body = time.monotonic(), w.asked(stream=True, seed=2)
        if streamed:
            assert text([event async for event in w.events(body)]) == expected(body)
        else:
            assert (await whole(w)).json()["choices"][0]["message"]["content"] == expected(body)
        assert 1.2 < time.monotonic() - began < 6
        failed, made = (await w.house.settled()).path.split()
        assert failed.endswith(":0") and made.endswith(f":{TOKENS}")
        assert faults(w) == {f"known@{failed[0]}": 1}
        await idle(w)


async def test_so_it_is_where_no_region_looks_long_enough_for_the_prompt() -> None:
    async with world() as w:
        for spot in w.house.fleet.members("known"):
            spot.context = 8
        hang(w)
        assert (await whole(w)).status_code == 200
        assert len(w.engine.asked) == 2


async def test_a_recovery_that_hangs_is_left_too() -> None:
    async with world(wait=0.02) as w:
        body, events = w.asked(stream=True, seed=3), []
        async for event in w.events(body):
            events.append(event)
            if len(events) == 9:
                hang(w)
                await w.home.stations[w.first].kill()
        assert text(events) == expected(body)
        assert len(w.engine.asked) == 3
        assert len((await w.house.settled()).path.split()) == 3


async def test_the_budget_of_retries_bounds_it() -> None:
    async with world() as w:
        exchange = w.house.gateway.exchange
        exchange.retries = exchange.retries._replace(ratio=0.0, per_second=0.0, balance=0.0)
        hang(w)
        assert (await whole(w)).status_code >= 500
        assert len(w.engine.asked) == 1


async def test_an_engine_that_works_for_others_is_not_given_up() -> None:
    async with world(wait=0.05) as w:
        busy = w.events(w.asked(stream=True, seed=1, max_tokens=80))
        await anext(busy)
        slow(w, 3.0)
        body = w.asked(seed=2)
        reply, _ = await asyncio.gather(whole(w), collected(busy))
        assert reply.json()["choices"][0]["message"]["content"] == expected(body)
        assert len(w.engine.asked) == 2 and not faults(w)


async def test_a_long_prompt_may_take_its_time() -> None:
    async with world() as w:
        slow(w, 2.5)
        messages = [{"role": "user", "content": "stone " * 400}]
        assert (await whole(w, messages=messages)).status_code == 200
        assert len(w.engine.asked) == 1 and not faults(w)


async def test_an_engine_known_to_be_slow_may_take_its_time() -> None:
    async with world() as w:
        for spot in w.house.fleet.members("known"):
            spot.base = 0.5
        slow(w, 2.5)
        assert (await whole(w)).status_code == 200
        assert len(w.engine.asked) == 1 and not faults(w)


async def test_the_only_region_is_waited_for() -> None:
    async with world(regions=("a",)) as w:
        slow(w, 2.5)
        assert (await whole(w)).status_code == 200
        assert len(w.engine.asked) == 1 and not faults(w)


async def test_waiting_for_a_turn_is_no_silence() -> None:
    async with world(regions=("a",)) as w:
        station = w.home.stations["a"]
        station.slots = 1
        hang(w)
        runs = asyncio.create_task(beats(w, 1.8))
        while not w.serving():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waits = await beats(w, 1.8)
        assert silence(await runs) >= 1.0
        assert beat(0.0) in waits and b"silent" not in waits


async def collected(events: Any) -> list[dict]:
    return [event async for event in events]


async def beats(w: World, seconds: float) -> bytes:
    """What region `a` says in so many seconds."""
    endpoint, heard = w.home.stations["a"].endpoint("known"), b""
    headers = {"authorization": f"Bearer {endpoint.token}"}
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{endpoint.url}/v1/chat/completions", json=w.asked(), headers=headers) as reply,
    ):
        try:
            async with asyncio.timeout(seconds):
                async for data in reply.aiter_raw():
                    heard += data
        except TimeoutError:
            pass
    return heard


def test_a_beat_tells_the_silence_and_nothing_else_does() -> None:
    assert silence(beat(0.0)) == 0.0
    assert silence(beat(2.5)) == 2.5
    assert silence(beat(2.5) + beat(3.0)) == 3.0
    assert silence(b": silent for long\n\n: silent 1e9\n\n: silent -5\n\n") == 0.0

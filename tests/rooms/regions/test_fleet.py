"""Which endpoint answers when some do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support import CHAT_CARD
from wire import OK, Caller, Wire, wire

from atoll.core.errors import DeadlineExceeded, EngineFailed, Overloaded
from atoll.core.types import Endpoint
from atoll.regions.fleet import Fleet
from atoll.regions.upstream import Timeouts

PATH = "/v1/chat/completions"


class Switch:
    """An endpoint that can be broken: it then takes the request and closes."""

    def __init__(self) -> None:
        self.broken = False
        self.asked = 0

    async def __call__(self, caller: Caller) -> None:
        while True:
            await caller.request()
            self.asked += 1
            if self.broken:
                return
            await caller.send(OK)


@asynccontextmanager
async def two(patience: float = 1.0) -> AsyncIterator[tuple[Fleet, Switch, Switch]]:
    first, second = Switch(), Switch()
    async with wire(first) as a, wire(second) as b:
        fleet = Fleet(patience=patience)
        fleet.offer(CHAT_CARD)
        join(fleet, "a", a)
        join(fleet, "b", b)
        yield fleet, first, second
        await fleet.close()


def join(fleet: Fleet, name: str, server: Wire, limit: int = 0) -> None:
    fleet.join(CHAT_CARD.id, Endpoint(name, server.url, name), limit)


async def ask(fleet: Fleet) -> str:
    """One whole request; the endpoint that answered."""
    reply = await fleet.open(CHAT_CARD, PATH, b"{}")
    while await reply.read():
        pass
    reply.close()
    return reply.endpoint.name


async def test_before_the_first_byte_the_next_endpoint_takes_over() -> None:
    async with two() as (fleet, first, second):
        first.broken = True
        assert await ask(fleet) == "b"
        assert (first.asked, second.asked) == (1, 1)
        assert [m.outstanding for m in fleet.members(CHAT_CARD.id)] == [0, 0]


async def test_after_three_failures_an_endpoint_is_left_alone_until_its_time_comes() -> None:
    async with two() as (fleet, first, second):
        first.broken = True
        for _ in range(10):
            assert await ask(fleet) == "b"
        assert first.asked == 3
        first.broken = False
        await asyncio.sleep(1.05)
        second.broken = True
        assert await ask(fleet) == "a", "half-open: one attempt is let through, and closes the circuit"
        assert await ask(fleet) == "a"


async def test_all_broken_is_an_error_in_time_and_waits_for_a_restart() -> None:
    async with two() as (fleet, first, second):
        first.broken = second.broken = True
        began = time.monotonic()
        with pytest.raises(EngineFailed):
            await ask(fleet)
        assert time.monotonic() - began < 2
        assert first.asked + second.asked <= 6


async def test_an_engine_that_is_just_starting_is_waited_for() -> None:
    fleet = Fleet(patience=5)
    fleet.offer(CHAT_CARD)
    async with wire(Switch()) as late:
        asking = asyncio.create_task(ask(fleet))
        await asyncio.sleep(0.2)
        assert not asking.done()
        join(fleet, "late", late)
        async with asyncio.timeout(1):
            assert await asking == "late"
        await fleet.close()


async def test_an_engine_that_does_not_come_back_is_said() -> None:
    fleet = Fleet(patience=0.2)
    fleet.offer(CHAT_CARD)
    with pytest.raises(EngineFailed, match="no endpoint serves 'talker'"):
        await ask(fleet)


async def test_an_engine_that_will_not_come_is_said_at_once() -> None:
    fleet = Fleet(patience=20)
    fleet.offer(CHAT_CARD)
    async with wire(Switch()) as late:
        asking = asyncio.create_task(ask(fleet))
        await asyncio.sleep(0.05)
        fleet.fail(CHAT_CARD.id, "its weights are damaged")
        for request in (asking, ask(fleet)):
            with pytest.raises(EngineFailed, match="damaged"):
                async with asyncio.timeout(1):
                    await request
        join(fleet, "late", late)
        assert await ask(fleet) == "late"
        await fleet.close()


async def test_the_least_busy_endpoint_is_asked() -> None:
    async with two() as (fleet, _, _):
        held = [await fleet.open(CHAT_CARD, PATH, b"{}") for _ in range(4)]
        assert sorted(reply.endpoint.name for reply in held) == ["a", "a", "b", "b"]
        for reply in held:
            reply.close()
            reply.close()
        assert [m.outstanding for m in fleet.members(CHAT_CARD.id)] == [0, 0]


async def test_full_endpoints_are_overloaded_and_free_again() -> None:
    fleet = Fleet(patience=0.3)
    fleet.offer(CHAT_CARD)
    async with wire(Switch()) as only:
        join(fleet, "only", only, limit=1)
        held = await fleet.open(CHAT_CARD, PATH, b"{}")
        with pytest.raises(Overloaded) as caught:
            await ask(fleet)
        assert caught.value.retry_after
        held.close()
        assert await ask(fleet) == "only"
        await fleet.close()


async def test_a_silent_engine_is_not_asked_again_by_the_same_request() -> None:
    async def silent(caller: Caller) -> None:
        await caller.request()
        await asyncio.sleep(60)

    fleet = Fleet(Timeouts(connect=1, head=0.3, idle=0.3), patience=10)
    fleet.offer(CHAT_CARD)
    async with wire(silent) as server:
        join(fleet, "silent", server)
        with pytest.raises(DeadlineExceeded):
            await ask(fleet)
        assert len(server.callers) == 1
        await fleet.close()

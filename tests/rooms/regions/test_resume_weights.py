"""A stream whose weights are elsewhere, or dead, or out of reach: what its key says then. No endpoint leaves the fleet
here: region `a` begins, `z` has other weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from support import serving
from test_resume import CARD, TOKENS, World, expected, text, world

from atoll.core.places import Residency
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteRunner
from atoll.gateway.placing import Placing
from atoll.regions.home import Home
from atoll.regions.site import Site

RULES = ("fail", "continue", "restart")


@asynccontextmanager
async def with_others(*regions: str) -> AsyncIterator[World]:
    """`regions` with the weights of the card, and `z` with others."""
    async with world(wait=0.01, regions=regions) as w, serving(w.engine) as url:
        card = replace(CARD, weights=replace(CARD.weights, sha256="cd" * 32))
        other = Home(w.house.fleet, Site(), "z", slots=64)
        await other.open(("z",))
        other.site.offer(card, RemoteRunner(card))
        other.site.join("known", Endpoint("engine", url, "z"))
        w.house.fleet.join("known", other.stations["z"].endpoint("known"))
        exchange = w.house.gateway.exchange
        here = exchange.placing.regions["here"]
        exchange.placing = Placing({name: replace(here, id=name) for name in ("here", "z", *regions)}, "here")
        yield w
        await other.close()


async def broken(
    w: World, body: dict[str, Any], back_after: float | None = None, drained: bool = False, at: int = 9
) -> list[dict[str, Any]]:
    """All events of a stream whose region is killed on the way, while it is drained, and listens again later."""
    events: list[dict[str, Any]] = []
    async for each in w.events(body):
        events.append(each)
        if len(events) == at:
            assert w.first == "a"
            w.house.fleet.view.region("a", "draining" if drained else "live")
            await w.home.stations["a"].kill()
            if back_after is not None:
                await asyncio.sleep(back_after)
                await w.home.stations["a"].revive()
    return events


async def check(w: World, rule: str, body: dict[str, Any], got: list[dict[str, Any]]) -> None:
    """The rule of the key has decided, and only regions `a` and `z` were asked."""
    row = await w.house.settled()
    assert {step.partition(":")[0] for step in row.path.split()} == ({"a"} if rule == "fail" else {"a", "z"})
    if rule == "fail":
        assert "error" in got[-1] and row.status == "failed"
    elif rule == "continue":
        assert text(got) == expected(body) and row.grade.endswith("fast")
    else:
        begun, _, again = text(got).partition("It begins anew.]\n\n")
        assert expected(body).startswith(begun.split("\n\n[")[0]) and again == expected(body)
        assert (row.grade, row.usage.output) == ("restart", TOKENS)


@pytest.mark.parametrize("rule", RULES)
async def test_a_dead_region_that_never_leaves_is_hoped_for_only_so_long(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.gateway.resume.HOPE", 1.0)
    async with with_others("a") as w:
        w.policy(on_mismatch=rule)
        body, began = w.asked(stream=True, seed=8), time.monotonic()
        await check(w, rule, body, await broken(w, body))
        assert 1.0 < time.monotonic() - began < 5


@pytest.mark.parametrize("rule", RULES)
async def test_a_region_that_comes_back_in_time_goes_on_with_its_own_weights(rule: str) -> None:
    async with with_others("a") as w:
        w.policy(on_mismatch=rule)
        body = w.asked(stream=True, seed=8)
        assert text(await broken(w, body, back_after=1.2)) == expected(body)
        row = await w.house.settled()
        assert (row.status, row.grade, row.region) == ("done", "exact", "a")


@pytest.mark.parametrize("rule", RULES)
async def test_the_same_weights_in_a_forbidden_region_are_none(rule: str) -> None:
    """`b` and `c` have them; the rule of the key allows neither, and `a` is drained when it dies."""
    async with with_others("a", "b", "c") as w:
        w.policy(on_mismatch=rule, residency=Residency(("a", "z")))
        body, began = w.asked(stream=True, seed=8), time.monotonic()
        await check(w, rule, body, await broken(w, body, drained=True))
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("rule", RULES)
async def test_where_no_allowed_region_is_left_the_stream_ends(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.gateway.resume.HOPE", 0.5)
    async with with_others("a", "b") as w:
        w.house.fleet.patience = 1.0
        w.policy(on_mismatch=rule, residency=Residency(("a",)))
        began = time.monotonic()
        events = await broken(w, w.asked(stream=True, seed=8), drained=True)
        row = await w.house.settled()
        assert "error" in events[-1] and events[-1]["error"]["code"] == "residency_unavailable"
        assert (row.status, {step.partition(":")[0] for step in row.path.split()}) == ("failed", {"a"})
        assert time.monotonic() - began < 5


async def test_an_answer_of_which_nothing_was_told_begins_on_any_weights() -> None:
    async with with_others("a") as w:
        body, began = w.asked(stream=True, seed=8), time.monotonic()
        w.engine.wait = 0.2
        assert text(await broken(w, body, at=1)) == expected(body)
        assert time.monotonic() - began < 0.2 * TOKENS + 2
        assert (await w.house.settled()).path.split() == ["a:0", f"z:{TOKENS}"]

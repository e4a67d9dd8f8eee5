"""Residency over the API: where requests go, what is refused, and what the ledger says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support import CHAT_CARD, SECRET, USER, House, chunk, event_stream, json_answer, running, serving, usage

from atoll.core.places import Region, Residency
from atoll.core.types import Endpoint, Policy
from atoll.gateway.placing import Placing

CHAT = "/v1/chat/completions"
REGIONS = {
    r.id: r
    for r in (
        Region("eu-one", "Frankfurt", "DE", 50.1, 8.7, "live", jurisdiction="DE", zones=("eu",)),
        Region("eu-two", "Paris", "FR", 48.9, 2.4, "live", jurisdiction="FR", zones=("eu",)),
        Region("us-one", "Virginia", "US", 38.9, -77.4, "live", jurisdiction="US", zones=("us",)),
    )
}
ANSWER = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
WHOLE = ANSWER | {"usage": usage(3, 2)["usage"]}


@asynccontextmanager
async def house(*served: str, home: str = "eu-one") -> AsyncIterator[House]:
    async with running(CHAT_CARD) as made, serving(made.upstream) as url:
        made.fleet.leave("talker", "talker-1")
        made.gateway.exchange.placing = Placing(REGIONS, home)
        for region in served:
            made.fleet.view.region(region, "live", rtt=0.1 if region.startswith("eu") else 0.0)
            made.fleet.join("talker", Endpoint(f"talker@{region}", url, region))
        made.upstream.on(CHAT, json_answer(WHOLE))
        yield made


def policy(made: House, **rule: Any) -> None:
    made.gateway.exchange.accounts.put(replace(USER, policy=Policy(residency=Residency(**rule))))


async def ask(made: House, **body: Any) -> httpx.Response:
    asked = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], **body}
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(f"{made.url}{CHAT}", json=asked, headers={"authorization": f"Bearer {SECRET}"})


async def test_a_key_without_a_rule_goes_where_it_is_best() -> None:
    async with house("eu-one", "us-one") as made:
        reply = await ask(made)
        assert reply.headers["x-atoll-region"] == "us-one" and reply.headers["x-atoll-decision"] == "talker@us-one"
        row = await made.settled()
        assert (row.rule, row.stored_in, row.path) == ("anywhere", "eu-one", "us-one:2")


@pytest.mark.parametrize(
    "wish",
    [
        {"residency": {"process_in": ["eu"]}},
        {"data_residency": "eu"},
        {"model": "eu.talker"},
        {"residency": {"process_in": "DE"}},
    ],
)
async def test_a_request_may_ask_for_a_place_in_four_ways(wish: dict[str, Any]) -> None:
    async with house("eu-one", "us-one") as made:
        reply = await ask(made, **wish)
        assert (reply.status_code, reply.headers["x-atoll-region"]) == (200, "eu-one")
        assert "process_in" in (await made.settled()).rule
        assert not {"residency", "data_residency"} & made.upstream.asked[-1].json.keys()


async def test_a_request_narrows_the_rule_of_its_key_and_never_widens_it() -> None:
    async with house("eu-one", "eu-two", "us-one") as made:
        policy(made, process_in=("eu",))
        assert (await ask(made)).headers["x-atoll-region"] in {"eu-one", "eu-two"}
        assert (await ask(made, residency={"process_in": "eu-two"})).headers["x-atoll-region"] == "eu-two"
        refused = await ask(made, residency={"process_in": ["us"]})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "residency.process_in"
        assert "never widen" in refused.json()["error"]["message"]


async def test_nothing_is_served_elsewhere_when_no_allowed_region_can() -> None:
    async with house("us-one") as made:
        policy(made, process_in=("eu",))
        asked = len(made.upstream.asked)
        reply = await ask(made)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "residency_unavailable")
        assert len(made.upstream.asked) == asked


async def test_a_rule_that_waits_is_served_when_an_allowed_region_opens() -> None:
    async with house("us-one") as made, serving(made.upstream) as url:
        policy(made, process_in=("eu",), on_unavailable="queue")
        asking = asyncio.create_task(ask(made))
        await asyncio.sleep(0.3)
        assert not asking.done()
        made.fleet.join("talker", Endpoint("talker@eu-two", url, "eu-two"))
        assert (await asking).headers["x-atoll-region"] == "eu-two"


async def test_what_may_not_be_stored_here_is_refused_and_leaves_no_row() -> None:
    async with house("eu-one", "us-one", home="us-one") as made:
        policy(made, process_in=("eu",), store_in=("eu",))
        reply = await ask(made)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "data_residency_mismatch")
        assert await made.rows() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"residency": {"process_in": "atlantis"}}, "residency.process_in"),
        ({"residency": {"where": "eu"}}, "residency"),
        ({"residency": 7}, "residency"),
        ({"data_residency": []}, "data_residency"),
        ({"residency": {"on_unavailable": "hope"}}, "residency.on_unavailable"),
        ({"recovery": "maybe"}, "recovery"),
    ],
)
async def test_a_bad_wish_is_named(body: dict[str, Any], param: str) -> None:
    async with house("eu-one") as made:
        reply = await ask(made, **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_a_stream_that_fails_goes_on_only_where_it_may() -> None:
    async with house("eu-one", "us-one") as made:
        policy(made, process_in=("eu",))
        made.upstream.on(CHAT, event_stream(chunk({"content": "a"}), torn=True, done=False))
        reply = await ask(made, stream=True)
        assert reply.headers["x-atoll-region"] == "eu-one" and "error" in reply.text
        assert (await made.settled()).path.startswith("eu-one:")

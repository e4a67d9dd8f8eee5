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
from test_senses import PICTURE, READ, composed, perceive

from atoll.core.errors import NotFound
from atoll.core.places import Region, Residency
from atoll.core.types import Endpoint, Policy
from atoll.gateway.placing import Placing
from atoll.gateway.tracing import Tracer

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
async def house(*served: str, home: str = "eu-one", traces: str = "") -> AsyncIterator[House]:
    async with running(CHAT_CARD) as made, serving(made.upstream) as url:
        made.fleet.leave("talker", "talker-1")
        made.gateway.exchange.placing = Placing(REGIONS, home, traces)
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


async def test_the_parts_of_a_composed_model_are_asked_where_the_rule_allows() -> None:
    async with composed() as made, serving(made.upstream) as url:
        perceive(made)
        made.gateway.exchange.placing = Placing(REGIONS, "eu-one")
        for part in ("talker", "eyes"):
            made.fleet.leave(part, f"{part}-1")
        for part, region in (("talker", "eu-one"), ("eyes", "us-one")):
            made.fleet.join(part, Endpoint(f"{part}@{region}", url, region))
        policy(made, process_in=("eu",))
        content = [{"type": "text", "text": "What is this?"}, PICTURE]
        said = {"model": "omni", "messages": [{"role": "user", "content": content}]}
        refused = await ask(made, **said)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "residency_unavailable")
        assert not [a for a in made.upstream.asked if a.path == READ], "no picture leaves the EU"
        made.fleet.join("eyes", Endpoint("eyes@eu-two", url, "eu-two"))
        assert (await ask(made, **said)).status_code == 200
        assert (await made.settled()).path == "eu-two:0 eu-one:4"


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


def tale(of: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Once upon a time there was a {of}. " * 300}]


async def read_in(made: House, messages: list[dict[str, str]], **body: Any) -> str:
    """Where the prompt is read. Every region reads a token in a millisecond, so that reading it anew is slow."""
    for spot in made.fleet.members("talker"):
        spot.base, spot.per_token = 0.0, 0.001
    return (await ask(made, messages=messages, **body)).headers["x-atoll-region"]


async def test_a_prompt_goes_back_to_the_region_that_read_it_only_where_it_may() -> None:
    async with house("eu-one", "us-one") as made:
        assert await read_in(made, tale("lagoon"), residency={"process_in": "eu"}) == "eu-one"
        assert await read_in(made, tale("reef")) == "us-one"
        assert await read_in(made, tale("lagoon")) == "eu-one"
        policy(made, process_in=("us",))
        assert await read_in(made, tale("lagoon")) == "us-one"
        policy(made, process_in=("eu",))
        assert await read_in(made, tale("reef")) == "eu-one"
        made.fleet.leave("talker", "talker@eu-one")
        assert (await ask(made, messages=tale("lagoon"))).json()["error"]["code"] == "residency_unavailable"


async def respond(made: House, **body: Any) -> httpx.Response:
    made.upstream.on(CHAT, event_stream(chunk({"content": "Hello."}), chunk({}, "stop"), usage(7, 2)))
    async with httpx.AsyncClient(timeout=10, headers={"authorization": f"Bearer {SECRET}"}) as client:
        return await client.post(f"{made.url}/v1/responses", json={"model": "talker", "input": "hi", **body})


@pytest.mark.parametrize("store", [True, False])
async def test_a_response_is_stored_only_where_it_may_be(store: bool) -> None:
    async with house("eu-one", "us-one") as made:
        refused = await respond(made, store=store, residency={"store_in": ["us"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "data_residency_mismatch")
        assert made.upstream.asked == [] and await made.rows() == []
        policy(made, store_in=("us",))
        assert (await respond(made, store=store)).status_code == 403
        assert made.upstream.asked == [] and made.store.responses._bodies == {}  # type: ignore[attr-defined]
        policy(made, process_in=("us",), store_in=("eu",))
        answer = (await respond(made, store=store)).json()
        row = await made.settled()
        assert (row.region, row.stored_in, row.rule) == ("us-one", "eu-one", "process_in=us store_in=eu")
        if store:
            assert (await made.store.responses.get(answer["id"], USER.id, 0.0))["response"]["id"] == answer["id"]
        else:
            with pytest.raises(NotFound):
                await made.store.responses.get(answer["id"], USER.id, 0.0)


class Collector:
    """What is sent to an OTLP endpoint."""

    def __init__(self) -> None:
        self.told = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.told, more = self.told + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("traces", "rule", "exported"),
    [
        ("", {}, True),
        ("us-one", {"process_in": ("eu",)}, True),
        ("eu-two", {"store_in": ("eu",)}, True),
        ("us-one", {"store_in": ("eu",)}, False),
        ("nowhere", {"store_in": ("eu",)}, False),
        ("", {"store_in": ("global",)}, False),
    ],
)
async def test_a_span_goes_only_where_it_may_be_stored(traces: str, rule: dict[str, Any], exported: bool) -> None:
    collector = Collector()
    async with house("eu-one", "us-one", traces=traces) as made, serving(collector) as endpoint:
        tracer = made.gateway.exchange.tracer = Tracer(endpoint, "0")
        policy(made, **rule)
        reply = await ask(made)
        assert reply.status_code == 200
        await made.settled()
        await asyncio.to_thread(tracer.close)
        assert ((await made.settled()).id.encode() in collector.told) == exported
        assert bool(collector.told) == exported

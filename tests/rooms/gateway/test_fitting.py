"""What routing is told of a request and of a card, and that an endpoint which cannot take it is not asked."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support import CHAT_CARD, SECRET, House, json_answer, running, serving, usage
from test_senses import PICTURE, composed, perceive, request

from atoll.core.cards import Card, parse_card
from atoll.core.errors import SetupError
from atoll.core.route import Request
from atoll.core.types import Endpoint

CHAT = "/v1/chat/completions"
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [], **usage(3, 2)}
TOO_LONG = {
    "error": {
        "message": "This model's context is 4096 tokens, but the request needs 9000.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}


async def ask(house: House, content: Any, **more: Any) -> httpx.Response:
    asked = {"model": "talker", "messages": [{"role": "user", "content": content}], **more}
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(f"{house.url}{CHAT}", json=asked, headers={"authorization": f"Bearer {SECRET}"})


def weighed(house: House, model: str = "talker") -> Request:
    """What the last decision about a model was made from."""
    return [made.request for all in house.fleet.decisions.values() for made in all if made.request.model == model][-1]


async def test_the_media_the_estimate_and_the_limit_of_a_request_are_weighed() -> None:
    async with running(CHAT_CARD) as house:
        house.upstream.on(CHAT, json_answer(WHOLE))
        assert (await ask(house, "x" * 4000, max_tokens=7)).status_code == 200
        asked = weighed(house)
        assert (asked.modalities, asked.output) == ({"text"}, 7) and 1000 <= asked.prompt < 1100
        assert (await ask(house, "hi")).status_code == 200
        assert weighed(house).output == CHAT_CARD.max_output
        picture = f"data:image/png;base64,{base64.b64encode(bytes(100_000)).decode()}"
        parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": picture}}]
        assert (await ask(house, parts)).status_code == 200
        asked = weighed(house)
        assert asked.modalities == {"text", "image"} and not asked.overlong
        assert 256 <= asked.prompt < 300, "a picture's tokens do not follow from its bytes"


async def test_the_chat_part_of_a_composed_model_is_asked_for_text() -> None:
    async with composed() as house:
        perceive(house)
        reply = await ask(house, request(PICTURE)["messages"][0]["content"], model="omni")
        assert reply.status_code == 200
        assert weighed(house).modalities == {"text"}


async def test_a_long_request_goes_where_the_context_is_long_enough() -> None:
    async with running(CHAT_CARD) as house, serving(house.upstream) as url:
        house.fleet.offer(replace(CHAT_CARD, context=500))
        house.fleet.join("talker", Endpoint("short", url, "near"))
        house.fleet.view.region("here", rtt=1.0)
        house.fleet.offer(CHAT_CARD)
        house.upstream.on(CHAT, json_answer(WHOLE))
        assert (await ask(house, "hi", max_tokens=9)).headers["x-atoll-region"] == "near"
        assert (await ask(house, "x" * 4000, max_tokens=9)).headers["x-atoll-region"] == "here"
        assert (await ask(house, "hi", max_tokens=900)).headers["x-atoll-region"] == "here"


@pytest.mark.parametrize("excluded", [frozenset(), frozenset({"talker-1"})])
async def test_where_no_context_is_known_to_be_long_enough_the_engine_decides(excluded: frozenset[str]) -> None:
    async with running(CHAT_CARD) as house, serving(house.upstream) as url:
        house.fleet.join("talker", Endpoint("talker-2", url, "there"))
        asked = Request("", "talker", prompt=9000, output=9, excluded=excluded)
        decision = house.fleet.decide(asked)
        assert set(decision.order) == {"talker-1", "talker-2"} - excluded
        house.upstream.on(CHAT, json_answer(TOO_LONG, 400), json_answer(WHOLE))
        refused = await ask(house, "x" * 40_000)
        assert (refused.status_code, refused.json()) == (400, TOO_LONG)
        assert (await ask(house, "a " * 20_000)).status_code == 200, "an estimate refuses nothing"


async def test_what_an_endpoint_is_weighed_by_comes_from_its_card() -> None:
    ears = Card(
        id="ears", title="Ears", task="transcription", engine="media", unit="second", input=("audio",), context=9
    )
    async with running(replace(CHAT_CARD, joules=0.4), replace(CHAT_CARD, id="other"), ears) as house:
        told = {id: house.fleet.members(id)[0] for id in house.fleet.cards()}
        assert [(s.context, s.joules) for s in told.values()] == [(4096, 0.4), (4096, 1.0), (0, 0.0)]
        assert (told["talker"].modalities, told["ears"].modalities) == ({"text", "image"}, {"text", "audio"})


@pytest.mark.parametrize("joules", ["much", True, -1, float("nan"), float("inf")])
def test_a_card_tells_its_joules_as_a_number(joules: Any) -> None:
    table = {"id": "x", "title": "X", "task": "vad", "engine": "media"}
    assert parse_card({**table, "joules": 2}, "card").joules == 2
    with pytest.raises(SetupError, match="card: 'joules' must be a number"):
        parse_card({**table, "joules": joules}, "card")

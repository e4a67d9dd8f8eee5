"""Engines that do not tell what they used: nothing is free, and what is estimated is said to be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from support import CHAT_CARD, SECRET, chunk, event_stream, json_answer, running, usage

from atoll.core.types import Usage
from atoll.gateway.estimate import MEDIUM_TOKENS, answer_tokens, prompt_tokens

CHAT = "/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {SECRET}"}
PROMPT = "word " * 40
ASK: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": PROMPT}]}
INPUT = (len(PROMPT) + len("user")) // 4
SAID = [chunk({"role": "assistant", "content": "Hello"}), chunk({"content": " there"}), chunk({}, "stop")]
SILENT = usage(0, 0)


def test_text_is_a_token_for_four_bytes_and_media_are_not_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 392}, picture]}], "stop": "y" * 99}
    assert prompt_tokens(body) == MEDIUM_TOKENS + 100
    assert prompt_tokens({"prompt": [1, 2, 3]}) == 3
    call = {"function": {"name": "f", "arguments": "z" * 8}}
    assert answer_tokens({"choices": [{"message": {"content": "ab", "tool_calls": [call]}}, {"text": "cd"}]}) == 3


@pytest.mark.parametrize("silence", [[], [SILENT]], ids=["none", "zeros"])
async def test_a_stream_without_usage_is_charged_and_tells_the_estimate(silence: list[dict[str, Any]]) -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        house.upstream.on(CHAT, event_stream(*SAID, *silence))
        asked = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
        events = (await client.post(CHAT, json=asked)).text.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        told = orjson.loads(events[-2].removeprefix("data: "))
        output = 3 + len(silence)
        assert (told["choices"], told["object"]) == ([], "chat.completion.chunk")
        assert told["usage"] == {
            "prompt_tokens": INPUT, "completion_tokens": output, "total_tokens": INPUT + output, "estimated": True
        }  # fmt: skip
        row = await house.settled()
        assert row.usage == Usage(INPUT, output) and row.cost == INPUT * 100 + output * 200
        plain = await client.post(CHAT, json={**ASK, "stream": True})
        assert b"estimated" not in plain.content and plain.text.endswith("data: [DONE]\n\n")


async def test_an_answer_without_usage_is_charged_and_tells_the_estimate() -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x" * 40}, "finish_reason": "stop"}
        house.upstream.on(CHAT, json_answer({"id": "c", "object": "chat.completion", "choices": [choice]}))
        told = (await client.post(CHAT, json=ASK)).json()
        assert told["usage"]["estimated"] and told["choices"] == [choice]
        assert (await house.settled()).usage == Usage(INPUT, 10)


async def test_other_apis_tell_the_estimate_too() -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        house.upstream.on(CHAT, event_stream(*SAID))
        message = (await client.post("/v1/messages", json={**ASK, "max_tokens": 9})).json()
        assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (INPUT, 3)
        assert (await house.settled()).usage == Usage(INPUT, 3)


@pytest.mark.parametrize("read", [[80, 8], None], ids=["told", "estimated"])
async def test_a_stream_that_the_client_leaves_is_charged_for_its_prompt(read: list[int] | None) -> None:
    card = replace(CHAT_CARD, engine="llamacpp")
    first = {**SAID[0], **({"prompt_read": read} if read else {})}
    async with running(card) as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        house.upstream.on(CHAT, event_stream(first, *[chunk({"content": "x"})] * 200, usage(80, 200), wait=0.02))
        async with client.stream("POST", CHAT, json={**ASK, "stream": True}) as reply:
            lines = reply.aiter_lines()
            seen = [await anext(lines) for _ in range(4)]
            assert "prompt_read" not in "".join(seen)
        async with asyncio.timeout(5):
            row = await house.settled()
        assert (row.usage.input, row.usage.cached) == ((80, 8) if read else (INPUT, 0))
        assert (row.status, 1 <= row.usage.output < 100) == ("cancelled", True)


async def test_a_relayed_stream_that_the_client_leaves_is_charged_for_its_prompt() -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        house.upstream.on(CHAT, event_stream(*[chunk({"content": "x"})] * 200, usage(80, 200), wait=0.02))
        async with client.stream("POST", CHAT, json={**ASK, "stream": True}) as reply:
            await anext(reply.aiter_lines())
        row = await house.settled()
        assert row.usage.input == INPUT and 1 <= row.usage.output < 100

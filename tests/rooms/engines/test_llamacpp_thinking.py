"""What a model thinks, from llama.cpp's stream through a region's station to the client of the public API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
from support import SECRET, Upstream, event_stream, running, serving

from atoll.core.types import Endpoint
from atoll.engines.cardfiles import CATALOGUE, read_cards
from atoll.engines.llamacpp.runner import LlamaRunner
from atoll.regions.home import Home
from atoll.regions.site import Site

CARD = read_cards(CATALOGUE)["qwen3-0.6b"]
USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 0}}
HELLO: dict[str, Any] = {"model": CARD.id, "messages": [{"role": "user", "content": "hi"}]}


def said(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk as llama.cpp writes it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    about = {"created": 1, "id": "chatcmpl-x", "model": "file.gguf", "system_fingerprint": "b1"}
    return {"choices": [choice], **about, "object": "chat.completion.chunk", **more}


THOUGHT = event_stream(
    said({"role": "assistant", "content": None}, prompt_progress={"total": 9, "cache": 0, "processed": 9}),
    said({"role": "assistant", "content": None}),
    said({"reasoning_content": "They greet"}),
    said({"reasoning_content": " me."}),
    said({"content": "Hello"}),
    said({"content": "!"}),
    said({}, "stop"),
    {**said({}), "choices": [], "usage": USAGE, "timings": {"prompt_n": 9, "prompt_ms": 1.0}},
)


@asynccontextmanager
async def thinker() -> AsyncIterator[tuple[openai.AsyncOpenAI, Upstream]]:
    """A cloud with one region, whose only engine is llama.cpp's answers played from above."""
    upstream = Upstream()
    upstream.on("/v1/chat/completions", THOUGHT)
    async with serving(upstream) as engine, running() as house:
        home = Home(house.fleet, Site(), "here", 1)
        await home.open(["here"])
        home.offer(CARD, LlamaRunner(CARD))
        home.join(CARD.id, Endpoint("llama", engine, "here"), 1)
        async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=SECRET, max_retries=0) as client:
            yield client, upstream
        await home.close()


async def test_thoughts_are_streamed_as_reasoning_content_before_the_answer() -> None:
    async with thinker() as (client, upstream):
        stream = await client.chat.completions.create(**HELLO, stream=True, reasoning_effort="high")
        deltas = [c.choices[0].delta.to_dict() async for c in stream if c.choices]
        told = [(name, d[name]) for d in deltas for name in ("reasoning_content", "content") if d.get(name)]
        thoughts, words = ("They greet", " me."), ("Hello", "!")
        assert told == [*(("reasoning_content", t) for t in thoughts), *(("content", t) for t in words)]
        assert upstream.asked[0].json["chat_template_kwargs"] == {"enable_thinking": True}


async def test_a_whole_answer_holds_its_thoughts_apart() -> None:
    async with thinker() as (client, _):
        result = await client.chat.completions.create(**HELLO)
        message = result.choices[0].message.to_dict()
        assert (message["reasoning_content"], message["content"]) == ("They greet me.", "Hello!")
        assert (result.choices[0].finish_reason, result.usage.completion_tokens) == ("stop", 6)

"""Embeddings: what the engine is asked, what the official SDK reads back, what is charged and refused."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from support import CHAT_CARD, SECRET, json_answer, running

from atoll.core.cards import Card, Remote
from atoll.core.types import Limits, Price

PATH = "/v1/embeddings"
CARD = Card(
    id="minilm",
    title="MiniLM",
    task="embedding",
    engine="media",
    context=256,
    output=(),
    parameters=("encoding_format",),
    price=Price(10),
)


def vectors(*rows: list[float], tokens: int = 5) -> Any:
    data = [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(struct.pack(f"<{len(r)}f", *r)).decode()}
        for i, r in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer({"object": "list", "data": data, "model": "minilm", "usage": usage})


def sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0)


async def test_sdk_reads_vectors_and_tokens_are_charged() -> None:
    async with running(CARD) as house, sdk(house.url) as client:
        house.upstream.on(PATH, vectors([0.5, 1.0], [0.25, 0.0]))
        result = await client.embeddings.create(model="minilm", input=["a", "b"])
        assert [d.embedding for d in result.data] == [[0.5, 1.0], [0.25, 0.0]]
        assert house.upstream.asked[0].json == {"model": "minilm", "input": ["a", "b"], "encoding_format": "base64"}
        row = await house.settled()
        assert (row.route, row.status, row.usage.input, row.cost) == (PATH, "done", 5, 50)
        assert house.held() == (0, 0)


async def test_a_remote_engine_is_asked_for_its_own_model() -> None:
    card = replace(CARD, engine="remote", remote=Remote("http://x", "their-name"), parameters=())
    async with running(card) as house, sdk(house.url) as client:
        house.upstream.on(PATH, vectors([1.0]))
        result = await client.embeddings.create(model="minilm", input=[[1, 2]], encoding_format="float")
        assert len(result.data) == 1
        assert house.upstream.asked[0].json["model"] == "their-name"


async def test_bad_input_is_refused_by_name() -> None:
    table = [
        ({}, 400, "model", "model: Field required"),
        ({"model": "minilm"}, 400, "input", "input: Field required"),
        ({"model": "minilm", "input": ""}, 400, "input", "input: String should have at least 1 character"),
        ({"model": "minilm", "input": ["a", ""]}, 400, "input[1]", "input[1]: "),
        ({"model": "minilm", "input": []}, 400, "input", "input: "),
        ({"model": "minilm", "input": "a", "dimensions": 3}, 400, "dimensions", "'dimensions' is not supported by"),
        ({"model": "minilm", "input": "a", "colour": "red"}, 400, "colour", "'colour' is not supported by"),
        ({"model": "minilm", "input": "a", "encoding_format": "x"}, 400, "encoding_format", "encoding_format: "),
        ({"model": "talker", "input": "a"}, 400, "model", "model 'talker' is for chat, not for embedding"),
        (
            {"model": "text-embedding-3-small", "input": "a"},
            404,
            "model",
            "model 'text-embedding-3-small' does not exist here; for embedding there are: minilm",
        ),
    ]
    headers = {"authorization": f"Bearer {SECRET}"}
    async with running(CARD, CHAT_CARD) as house, httpx.AsyncClient(headers=headers) as client:
        for body, status, param, message in table:
            reply = await client.post(house.url + PATH, json=body)
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["message"][: len(message)]) == (status, param, message)
        assert house.upstream.asked == []


async def test_refusals_and_faults_of_the_engine() -> None:
    async with running(CARD) as house, sdk(house.url) as client:
        refusal = {"error": {"message": "input[0] has 300 tokens", "param": "input", "code": "invalid_request"}}
        house.upstream.on(PATH, json_answer(refusal, 400), json_answer([1]))
        with pytest.raises(openai.BadRequestError, match="300 tokens"):
            await client.embeddings.create(model="minilm", input="a")
        with pytest.raises(openai.InternalServerError, match="not a JSON object"):
            await client.embeddings.create(model="minilm", input="a")
        assert [(r.status, r.cost) for r in await house.rows()] == [("failed", 0), ("failed", 0)]
        assert house.held() == (0, 0)


async def test_the_reservation_is_bounded_by_bytes_and_context() -> None:
    async with running(CARD) as house, sdk(house.url) as client:
        house.limit(Limits(tokens_per_minute=200))
        house.upstream.on(PATH, vectors([1.0]))
        await client.embeddings.create(model="minilm", input="x" * 100)
        with pytest.raises(openai.RateLimitError, match="may use 256 tokens"):
            await client.embeddings.create(model="minilm", input="x" * 5000)

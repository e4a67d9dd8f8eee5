"""Answers whose region is killed on the way: a long one of the embedded model, asked for with OpenAI's SDK, and one of
known tokens among others."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any

import httpx
import known_cloud as known
import openai

from atoll.core.errors import InvalidRequest
from atoll.gateway.receipts import verify

TOKENS = 200
REGIONS = "eu-central-1,us-east-1,ap-southeast-1"
ASK: dict[str, Any] = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Tell a long story about a lighthouse keeper and the sea."}],
    "max_tokens": TOKENS,
    "logit_bias": {"2": -100},
}
AMONG = ("eu-central-1", "us-east-1", "ap-southeast-1", "ap-northeast-1")
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "seed": 1},
    "sampled": {"temperature": 0.9, "top_p": 0.95, "seed": 7},
}


@dataclass(frozen=True)
class Cut:
    """What the client got: text, tokens billed, the request's id."""

    text: str
    tokens: int
    id: str


def told(sdk: openai.OpenAI, api: httpx.Client, how: str, at: int | None) -> Cut:
    """A streamed answer. The region that serves it is killed as soon as `at` pieces of text have arrived."""
    text, pieces, used = "", 0, 0
    asked = {**ASK, **SAMPLINGS[how], "stream": True, "stream_options": {"include_usage": True}}
    with sdk.chat.completions.with_streaming_response.create(**asked) as raw:
        region, id = raw.headers["x-atoll-region"], raw.headers["x-request-id"]
        for chunk in raw.parse():
            if at is not None and pieces >= at:
                at = None
                struck = api.post(f"/atoll/v1/regions/{region}/drill", json={"kind": "kill", "seconds": 0.3})
                assert struck.status_code == 202, struck.text
            said = "".join(c.delta.content or "" for c in chunk.choices)
            text, pieces = text + said, pieces + bool(said)
            used = chunk.usage.completion_tokens if chunk.usage else used
    return Cut(text, used, id)


def check_cut(api: httpx.Client, cut: Cut, unbroken: str, at: int) -> None:
    """The text is that of the unbroken answer; one row and a signed receipt tell how it was made."""
    assert cut.text.encode() == unbroken.encode()
    assert cut.tokens == TOKENS
    rows = api.get("/atoll/v1/requests", params={"limit": 1000}).json()["data"]
    mine = [row for row in rows if row["id"] == cut.id]
    assert [(row["status"], row["output"]) for row in mine] == [("done", TOKENS)]
    assert sum(tokens for _, tokens in known.steps(mine[0])) == TOKENS
    if 0 < at < TOKENS - 20:
        assert mine[0]["grade"] == "exact" and len(known.steps(mine[0])) == 2
    check_receipt(api, mine[0])


def check_receipt(api: httpx.Client, row: dict[str, Any]) -> None:
    """It is signed, says what the row says, and cannot be altered."""
    receipt = api.get(f"/atoll/v1/requests/{row['id']}/receipt").raise_for_status().json()
    public = urlsafe_b64decode(api.get("/atoll/v1/receipts/key").json()["public_key"] + "=")
    verify(receipt, public)
    assert [(step["region"], step["tokens"]) for step in receipt["processed"]] == known.steps(row)
    assert receipt["recovery"] == {"grade": row["grade"] or None, "verified": True if row["grade"] else None}
    assert receipt["usage"]["output"] == TOKENS and receipt["weights"]
    try:
        verify({**receipt, "processed": receipt["processed"][:-1]}, public)
    except InvalidRequest:
        return
    raise AssertionError("a receipt that was altered still verifies")


async def cut_among_others(http: httpx.AsyncClient, at: int, others: int = 32, tokens: int = 60) -> list[known.Told]:
    """The region of one stream is killed when it has `at` tokens; all streams, that one first."""
    first = at * 1000
    running = [asyncio.create_task(known.stream(http, known.asked(first + n, tokens))) for n in range(1, others + 1)]
    watched, cut = known.Told(known.asked(first, tokens)), False
    async for _ in known.events(http, watched):
        if watched.tokens >= at and not cut:
            cut = await known.drill(http, watched.region, "kill", 0.3) == 202
    assert cut
    return [watched, *await asyncio.gather(*running)]

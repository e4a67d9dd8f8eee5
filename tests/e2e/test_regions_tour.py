"""A region dies in the middle of a sentence, at one token after the other: the answer is the unbroken one."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import httpx
import known_cloud as known
import openai
import pytest
from conftest import start

from atoll.core.errors import InvalidRequest
from atoll.gateway.receipts import verify

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(300)]

TOKENS = 200
ASK: dict[str, Any] = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Tell a long story about a lighthouse keeper and the sea."}],
    "max_tokens": TOKENS,
    "logit_bias": {"2": -100},
}
GREEDY = {"temperature": 0, "seed": 1}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
POSITIONS = {"greedy": (0, 1, 2, 17, 60, 133, 199, 200), "sampled": (0, 40, 120, 198)}
"""Where CI cuts; `python bench/resume.py --sweep` cuts at every token."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    served = "eu-central-1,us-east-1,ap-southeast-1"
    running = start(tmp_path_factory.mktemp("tour"), "--models", "smollm2-135m", "--regions", served)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def sdk(cloud: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=cloud.key, max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def api(cloud: Any) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {cloud.key}"}
    with httpx.Client(base_url=cloud.url, headers=headers, timeout=60) as made:
        yield made


def told(sdk: openai.OpenAI, api: httpx.Client, sampling: dict[str, Any], at: int | None) -> tuple[str, int, str]:
    """The text of a streamed answer, its tokens, and the request's id. The region that serves it is killed as soon as
    `at` pieces of text have arrived."""
    text, pieces, used = "", 0, 0
    asked = {**ASK, **sampling, "stream": True, "stream_options": {"include_usage": True}}
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
    return text, used, id


@pytest.fixture(scope="module")
def unbroken(sdk: openai.OpenAI, api: httpx.Client) -> dict[str, str]:
    texts = {}
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        texts[name], used, _ = told(sdk, api, sampling, None)
        assert used == TOKENS and len(texts[name]) > TOKENS
    assert texts["greedy"] != texts["sampled"]
    return texts


@pytest.mark.parametrize("how, at", [(how, at) for how, places in POSITIONS.items() for at in places])
def test_the_region_is_killed_and_the_answer_is_the_unbroken_one(
    how: str, at: int, sdk: openai.OpenAI, api: httpx.Client, unbroken: dict[str, str]
) -> None:
    text, used, id = told(sdk, api, GREEDY if how == "greedy" else SAMPLED, at)
    assert text.encode() == unbroken[how].encode()
    assert used == TOKENS
    found = [row for row in api.get("/atoll/v1/requests", params={"limit": 1000}).json()["data"] if row["id"] == id]
    assert [(row["status"], row["output"]) for row in found] == [("done", TOKENS)]
    assert sum(tokens for _, tokens in known.steps(found[0])) == TOKENS
    if 0 < at < TOKENS - 20:
        assert found[0]["grade"] == "exact" and len(known.steps(found[0])) == 2
    check_receipt(api, id, found[0])


def check_receipt(api: httpx.Client, id: str, row: dict[str, Any]) -> None:
    """It is signed, says what the row says, and cannot be altered."""
    receipt = api.get(f"/atoll/v1/requests/{id}/receipt").raise_for_status().json()
    public = urlsafe_b64decode(api.get("/atoll/v1/receipts/key").json()["public_key"] + "=")
    verify(receipt, public)
    assert [(step["region"], step["tokens"]) for step in receipt["processed"]] == known.steps(row)
    assert receipt["recovery"] == {"grade": row["grade"] or None, "verified": True if row["grade"] else None}
    assert receipt["usage"]["output"] == TOKENS and receipt["weights"]
    with pytest.raises(InvalidRequest):
        verify({**receipt, "processed": receipt["processed"][:-1]}, public)


async def test_no_token_is_lost_doubled_or_changed_among_thirty_two_other_streams(tmp_path: Any) -> None:
    regions = ("eu-central-1", "us-east-1", "ap-southeast-1", "ap-northeast-1")
    flags, environment = known.options(regions)
    with known.engine(tmp_path, 0.03):
        cloud = await asyncio.to_thread(start, tmp_path, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                await known.all_serve(http, regions)
                seen = [told for at in (1, 20, 59) for told in await cut_among_others(http, at)]
                wrong = [told for told in seen if not told.right]
                assert not wrong, wrong[0]
                ledger = await known.rows(http)
                known.check_books(seen, ledger)
                assert sum(bool(row["grade"]) for row in ledger) >= 3
        finally:
            cloud.close()


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

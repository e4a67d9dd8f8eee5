"""What a key may ask a minute, as its clients see it."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
from support import SECRET, House, json_answer, running, usage

from atoll.core.types import Limits

CHAT = "/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {SECRET}"}
ASK = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {"id": "c", "object": "chat.completion", "choices": [], "usage": usage(3, 4)["usage"]}


def allow(house: House, requests: int) -> None:
    house.limit(Limits(requests_per_minute=requests))
    house.upstream.on(CHAT, json_answer(ANSWER))


async def test_the_third_request_of_two_a_minute_is_refused_and_told_when_to_come_back() -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        allow(house, 2)
        first, second, third = [await client.post(CHAT, json=ASK) for _ in range(3)]
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
        assert 58 <= int(third.headers["retry-after"]) <= 61
        assert third.json() == {"error": {
            "message": "limit of 2 requests per minute reached",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }}  # fmt: skip
        assert len(house.upstream.asked) == 2
        assert house.held() == (0, 0)


async def test_of_many_at_once_exactly_the_limit_passes() -> None:
    async with running() as house, httpx.AsyncClient(base_url=house.url, headers=HEADERS) as client:
        allow(house, 7)
        replies = await asyncio.gather(*(client.post(CHAT, json=ASK) for _ in range(40)))
        assert Counter(r.status_code for r in replies) == {200: 7, 429: 33}
        assert all(int(r.headers["retry-after"]) > 0 for r in replies if r.status_code == 429)
        assert (len(house.upstream.asked), house.held()) == (7, (0, 0))
        assert Counter(row.status for row in await house.rows())["done"] == 7

"""An engine of known use, and clients that keep books of their own: what quota tests compare with the ledger."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import serving

PRICE_IN, PRICE_OUT = 1000, 2000
MAX_TOKENS = 40
FRAME_TOKENS = 256
CARD = """\
id = "mock"
title = "Mock"
task = "chat"
engine = "remote"
context = 100000
max_output = 1000
parameters = ["temperature"]
[price]
input = 1
output = 2
[remote]
url = "{url}"
model = "mock"
"""


@dataclass
class Engine:
    """Answers `IN/OUT/SECONDS` prompts with exactly that use, after that time. Counts what it finished."""

    served: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        body = json.loads(raw)
        prompt, completion, seconds = body["messages"][0]["content"].split("/")
        usage = {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}
        usage["total_tokens"] = sum(usage.values())
        await asyncio.sleep(float(seconds))
        kind = b"text/event-stream" if body.get("stream") else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for piece in _stream(usage) if body.get("stream") else [_whole(usage)]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.served += 1


def _whole(usage: dict[str, int]) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def _stream(usage: dict[str, int]) -> list[bytes]:
    base = {"id": "c", "object": "chat.completion.chunk"}
    words = [{"index": 0, "delta": {"content": "ok"}, "finish_reason": None}] * 3
    chunks = [{**base, "choices": [word]} for word in words] + [{**base, "choices": [], "usage": usage}]
    return [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]


@asynccontextmanager
async def metered(data: Path) -> AsyncIterator[Engine]:
    """The engine on a port, and its card in the data folder of a cloud to be started."""
    engine = Engine()
    async with serving(engine) as url:
        (data / "models").mkdir(parents=True, exist_ok=True)
        (data / "models/mock.toml").write_text(CARD.format(url=url))
        yield engine


@dataclass(frozen=True)
class Sent:
    """One request as its client saw it. Times are of one monotonic clock; money is nanodollars."""

    began: float
    ended: float
    ask: int
    status: int
    id: str = ""
    cost: int = 0
    tokens: tuple[int, int] = (0, 0)
    error: dict[str, Any] = field(default_factory=dict)


class Client:
    """Sends requests of random use with one key. `books` holds every answer that arrived completely."""

    def __init__(self, http: httpx.AsyncClient, url: str, secret: str, seed: int) -> None:
        self.http, self.url, self.dice = http, url, random.Random(seed)
        self.headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        self.books: list[Sent] = []

    async def ask(self, seconds: float | None = None) -> Sent | None:
        """One request; None when the connection broke before the answer was complete."""
        used = (self.dice.randint(1, 200), self.dice.randint(1, MAX_TOKENS))
        wait = self.dice.uniform(0, 0.03) if seconds is None else seconds
        stream = self.dice.random() < 0.5
        said = {"role": "user", "content": f"{used[0]}/{used[1]}/{wait:.3f}"}
        body: dict[str, Any] = {"model": "mock", "max_tokens": MAX_TOKENS, "messages": [said], "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        raw = json.dumps(body).encode()
        began = time.monotonic()
        try:
            reply = await self.http.post(f"{self.url}/v1/chat/completions", content=raw, headers=self.headers)
        except (httpx.TransportError, OSError):
            return None
        seen = self._read(reply, stream, began, (len(raw) + FRAME_TOKENS) * PRICE_IN + MAX_TOKENS * PRICE_OUT)
        if seen is not None and seen.status == 200:
            assert seen.tokens == used, "the caller was told another use than the engine's"
        if seen is not None:
            self.books.append(seen)
        return seen

    def _read(self, reply: httpx.Response, stream: bool, began: float, ask: int) -> Sent | None:
        ended, id = time.monotonic(), reply.headers.get("x-request-id", "")
        if reply.status_code != 200:
            return Sent(began, ended, ask, reply.status_code, id, error=reply.json()["error"])
        if stream and not reply.text.endswith("data: [DONE]\n\n"):
            return None
        events = [json.loads(e[6:]) for e in reply.text.split("\n\n")[:-2]] if stream else [reply.json()]
        usage = events[-1]["usage"]
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        return Sent(began, ended, ask, 200, id, tokens[0] * PRICE_IN + tokens[1] * PRICE_OUT, tokens)

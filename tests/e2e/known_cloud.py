"""A cloud whose regions are processes of their own, before an engine whose every token is known: clients that compare
each token, and the books that must agree with what the clients saw."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import known_engine
from known_engine import answer, prompt_ids, word

CHAT = "/v1/chat/completions"
PRICE_IN, PRICE_OUT = 1000, 2000
CARD = """\
id = "known"
title = "Known tokens"
task = "chat"
engine = "remote"
context = 8192
max_output = 1024
parameters = ["temperature", "seed"]
[price]
input = 1
output = 2
[weights]
sha256 = "{digest}"
[remote]
url = "{url}"
model = "known"
token_ids = true
"""


@contextmanager
def engine(data: Path, wait: float) -> Iterator[str]:
    """The engine in a process of its own, with `wait` seconds a token, and its card in the data folder of a cloud."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(known_engine.__file__), str(port), str(wait)])
    try:
        _listens(port)
        (data / "models").mkdir(parents=True, exist_ok=True)
        url = f"http://127.0.0.1:{port}"
        (data / "models" / "known.toml").write_text(CARD.format(url=url, digest="ab" * 32))
        yield url
    finally:
        process.kill()
        process.wait(10)


def _listens(port: int, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, "the engine did not start"
        time.sleep(0.05)


def options(regions: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Options and environment of a cloud in which each of `regions` is a process; the first is the gateway's own."""
    told = {"ATOLL_REGION": regions[0], "ATOLL_ISOLATED_MODELS": "known", "ATOLL_SLOTS": "64"}
    return ("--models", "known", "--isolate", ",".join(regions), "--regions", regions[0]), told


@dataclass
class Told:
    """What a client got for `body`. `longest` is the longest silence between two tokens, in seconds."""

    body: dict[str, Any]
    id: str = ""
    status: int = 0
    region: str = ""
    text: str = ""
    tokens: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    done: bool = False
    longest: float = 0.0

    @property
    def right(self) -> bool:
        """All tokens of the unbroken answer, once each, in order, and a true bill."""
        made = answer(self.body)
        use = {"prompt_tokens": len(prompt_ids(self.body)), "completion_tokens": len(made)}
        billed = {name: self.usage.get(name) for name in use}
        return self.done and self.text == "".join(map(word, made)) and billed == use

    @property
    def cost(self) -> float:
        """Dollars."""
        prompt = len(prompt_ids(self.body))
        return (prompt * PRICE_IN + len(answer(self.body)) * PRICE_OUT) / 1e9


def asked(seed: int, tokens: int, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"request number {seed}"}]
    return {"model": "known", "messages": said, "max_tokens": tokens, "seed": seed, **more}


async def events(
    http: httpx.AsyncClient, told: Told, headers: dict[str, str] | None = None
) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; `told` is filled in on the way."""
    body = {**told.body, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", CHAT, json=body, headers=headers) as reply:
        told.id, told.status = reply.headers["x-request-id"], reply.status_code
        told.region = reply.headers.get("x-atoll-region", "")
        if reply.status_code != 200:
            told.error = json.loads(await reply.aread())["error"]
            return
        last = 0.0
        async for line in reply.aiter_lines():
            told.done = told.done or line == "data: [DONE]"
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                now = time.monotonic()
                if note(told, event):
                    told.longest, last = max(told.longest, now - last if last else 0.0), now
                yield event


def note(told: Told, event: dict[str, Any]) -> bool:
    """Whether the event brought text."""
    told.error = event.get("error") or told.error
    told.usage = event.get("usage") or told.usage
    said = "".join(c["delta"].get("content") or "" for c in event.get("choices", ()))
    told.text += said
    told.tokens += bool(said)
    return bool(said)


async def stream(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str] | None = None) -> Told:
    told = Told(body)
    async for _ in events(http, told, headers):
        pass
    return told


async def whole(http: httpx.AsyncClient, body: dict[str, Any]) -> Told:
    """The same, not streamed."""
    told = Told(body)
    reply = await http.post(CHAT, json=body)
    told.id, told.status = reply.headers["x-request-id"], reply.status_code
    told.region = reply.headers.get("x-atoll-region", "")
    said = reply.json()
    told.error = said.get("error")
    if told.error is None:
        told.text, told.usage, told.done = said["choices"][0]["message"]["content"], said["usage"], True
    return told


@asynccontextmanager
async def client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=150, limits=limits) as made:
        yield made


async def rows(http: httpx.AsyncClient, within: float = 10) -> list[dict[str, Any]]:
    """The whole ledger, newest first, once no request is open any more: refusals are written a moment later."""
    deadline = time.monotonic() + within
    found = await _rows(http)
    while any(row["status"] == "open" for row in found):
        assert time.monotonic() < deadline, "requests that have ended are still open in the ledger"
        await asyncio.sleep(0.2)
        found = await _rows(http)
    return found


async def _rows(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    while True:
        page = (await http.get("/atoll/v1/requests", params={"limit": 1000, **before})).raise_for_status().json()
        found += page["data"]
        if page["next"] is None:
            return found
        before = page["next"]


def steps(row: dict[str, Any]) -> list[tuple[str, int]]:
    """Where an answer was made: regions and how many tokens came from each."""
    return [(region, int(tokens)) for region, _, tokens in (part.rpartition(":") for part in row["path"].split())]


def check_books(tolds: Sequence[Told], ledger: Sequence[dict[str, Any]]) -> None:
    """One row a request, with its tokens, its price, and the regions that made them; no other rows."""
    mine = {row["id"]: row for row in ledger}
    assert len(mine) == len(ledger) == len(tolds), "rows and requests differ in number"
    for told in tolds:
        row = mine[told.id]
        if told.status != 200:
            assert row["status"] == "failed" and not row["output"] and not row["cost"], row
            continue
        count = len(answer(told.body))
        assert (row["status"], row["output"]) == ("done", count), row
        assert sum(tokens for _, tokens in steps(row)) == count, row
        assert abs(row["cost"] - told.cost) < 1e-12, row


async def regions(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in (await http.get("/atoll/v1/regions")).raise_for_status().json()["data"]}


async def all_serve(http: httpx.AsyncClient, wanted: Sequence[str], within: float = 60) -> None:
    """Wait until each of these regions is alive and has its model in service."""
    deadline = time.monotonic() + within
    while True:
        now = await regions(http)
        if all(now[id]["alive"] and now[id]["endpoints"] and now[id]["healthy"] for id in wanted):
            return
        assert time.monotonic() < deadline, {id: now[id]["alive"] for id in wanted}
        await asyncio.sleep(0.2)


async def drill(http: httpx.AsyncClient, region: str, kind: str, seconds: float) -> int:
    told = {"kind": kind, "seconds": seconds}
    return (await http.post(f"/atoll/v1/regions/{region}/drill", json=told)).status_code

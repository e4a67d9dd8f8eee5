"""A gateway on a real loopback port before engines that play back what a test wrote: shared by tests of surfaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from atoll.core.cards import Card
from atoll.core.types import Endpoint, Entry, Key, Limits, Price
from atoll.gateway.accounts import Accounts, digest
from atoll.gateway.asgi import Gateway
from atoll.gateway.asgi import Limits as BodyLimits
from atoll.gateway.exchange import Exchange
from atoll.gateway.server import bind, build_server
from atoll.regions.fleet import Fleet
from atoll.store import Store, open_store

SECRET = "sk-atoll-test"
USER = Key("key_test", "test", "user", digest(SECRET), "sk-atoll-…test")
OTHER_SECRET = "sk-atoll-other"
OTHER = Key("key_other", "other", "user", digest(OTHER_SECRET), "sk-atoll-…ther")

CHAT_CARD = Card(
    id="talker",
    title="Talker",
    task="chat",
    engine="remote",
    context=4096,
    max_output=1024,
    input=("text", "image"),
    tools="native",
    thinking="switch",
    json_schema=True,
    parameters=("temperature", "top_p", "top_k", "stop", "seed"),
    price=Price(100, 200, 50),
)


@dataclass(slots=True)
class Answer:
    """What a scripted engine replies: `pieces` are sent one by one, with `wait` seconds between them.
    `torn` closes the connection instead of ending the body."""

    pieces: list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    wait: float = 0.0
    torn: bool = False


@dataclass(slots=True)
class Asked:
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> dict[str, Any]:
        return orjson.loads(self.raw)


class Upstream:
    """An engine of canned answers, by path; the last one of a path is repeated. Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.cut_off = asyncio.Event()
        self._answers: dict[str, list[Answer]] = {}

    def on(self, path: str, *answers: Answer) -> None:
        self._answers[path] = list(answers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.asked.append(Asked(scope["path"], headers, raw))
        answers = self._answers[scope["path"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        gone = asyncio.ensure_future(self._watch(receive))
        try:
            await self._play(answer, send)
        finally:
            gone.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cut_off.set()

    async def _play(self, answer: Answer, send: Any) -> None:
        headers = [(k.encode(), v.encode()) for k, v in answer.headers.items()]
        if answer.torn:
            headers.append((b"content-length", b"1000000"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for piece in answer.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if answer.wait:
                await asyncio.sleep(answer.wait)
        if not answer.torn:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **more}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    table = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    table["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": table}


def event_stream(*chunks: dict[str, Any], done: bool = True, **how: Any) -> Answer:
    """A stream of server-sent events, one piece a chunk."""
    pieces = [b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks]
    if done:
        pieces.append(b"data: [DONE]\n\n")
    return Answer(pieces, headers={"content-type": "text/event-stream"}, **how)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer([orjson.dumps(value)], status, {"content-type": "application/json", **(headers or {})})


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """`app` on a free loopback port; its base URL."""
    listener = bind("127.0.0.1", 0)
    server = build_server(app, drain_seconds=1)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@dataclass(slots=True)
class House:
    """A running gateway, the engine behind all of its cards, and its books."""

    url: str
    upstream: Upstream
    gateway: Gateway
    fleet: Fleet
    store: Store

    async def rows(self) -> list[Entry]:
        return list(await self.store.ledger.entries())

    async def settled(self) -> Entry:
        """The newest row, once it is closed."""
        async with asyncio.timeout(5):
            while True:
                rows = await self.rows()
                if rows and rows[0].status != "open":
                    return rows[0]
                await asyncio.sleep(0.01)

    def limit(self, limits: Limits) -> None:
        self.gateway.exchange.accounts.put(replace(USER, limits=limits))

    def held(self) -> tuple[int, int]:
        """Open reservations of the test key: how many, and how much money."""
        account = self.gateway.exchange.accounts.account(USER.id)
        return account.open, account.held


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def running(
    *cards: Card,
    tiers: dict[str, str] | None = None,
    rest: Any = nothing,
    max_body_bytes: int = 32 * 1024 * 1024,
) -> AsyncIterator[House]:
    """A gateway over the memory store whose cards are all served by one scripted upstream."""
    upstream, store, fleet = Upstream(), await open_store("memory://"), Fleet(patience=1.0)
    fleet.tiers = tiers or {}
    async with serving(upstream) as engine:
        for card in cards or (CHAT_CARD,):
            fleet.offer(card)
            if card.engine != "cascade":
                fleet.join(card.id, Endpoint(f"{card.id}-1", engine, "here", station=card.engine == "llamacpp"))
        exchange = Exchange(fleet, Accounts([USER, OTHER], {}), store.ledger)
        gateway = Gateway(exchange, BodyLimits(max_body_bytes), responses=store.responses)
        gateway.rest = rest
        async with serving(gateway) as url:
            yield House(url, upstream, gateway, fleet, store)
        await fleet.close()
    await store.close()

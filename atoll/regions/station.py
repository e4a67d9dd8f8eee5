"""The region's side: a listener that queues requests and runs them on the engines of its machine.

`POST /m/<card id>/<path>` takes an OpenAI request. Where the model has a runner, the answer is a stream of canonical
chunks whatever was asked, which begins at once: comments tell that the region lives while the request waits, and an
error after that is an event. Elsewhere the engine's answer passes as it is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from atoll.core.admission import Ticket
from atoll.core.cards import Card, Weights, card_table
from atoll.core.errors import AtollError, EngineFailed, Forbidden, NotFound, to_wire
from atoll.core.types import Endpoint
from atoll.regions.beats import EVERY, beat
from atoll.regions.faults import Faults, Line
from atoll.regions.queue import Queue, Turn
from atoll.regions.site import Seat, Site
from atoll.regions.trust import Trust

COUNT = "/v1/chat/completions/input_tokens"
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as its headers tell. Its ticket says who asks, how urgent it is, and by when it must have begun."""

    seat: Seat
    path: str
    content_type: str
    ticket: Ticket


class Protocol(HttpToolsProtocol):
    """A connection that arrives while its station dies is dropped too."""

    def __init__(self, station: Station, *of_uvicorn: Any) -> None:
        super().__init__(*of_uvicorn)
        self._station = station

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self._station.listening:
            transport.abort()


class Station:
    """One region's listener. It lets in who has the token or, where there is `trust`, whom TLS has proved to be a
    gateway. `line` is the emulated way to it: latency and the faults of drills."""

    def __init__(self, region: str, site: Site, slots: int, token: str = "", trust: Trust | None = None) -> None:
        self.region = region
        self.site = site
        self.token = token or secrets.token_urlsafe(32)
        self.slots = slots
        self.trust = trust
        self.faults = Faults()
        self.queues: dict[str, Queue] = {}
        self.url = ""
        self._server: asyncio.Server | None = None
        self._state = ServerState()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        tls = self.trust.context if self.trust else None
        config = uvicorn.Config(
            self, http=Protocol, lifespan="off", log_config=None, access_log=False, server_header=False,
            date_header=False, timeout_keep_alive=75, loop="none",
        )  # fmt: skip
        config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Protocol(self, config, self._state, {}, loop), host, port, ssl=tls
        )
        bound = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{bound}"

    def endpoint(self, card_id: str) -> Endpoint:
        digest = self.site.seat(card_id).card.digest
        url = f"{self.url}/m/{card_id}"
        return Endpoint(f"{card_id}@{self.region}", url, self.region, self.token, station=True, digest=digest)

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def kill(self) -> None:
        """Stop listening and drop every connection, as a dead machine does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._state.connections):
            connection.transport.abort()
        while self._state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def revive(self) -> None:
        """Listen again where it did."""
        if self._server is None:
            await self.listen(port=int(self.url.rpartition(":")[2]))

    def fault(self, kind: str, seconds: float) -> None:
        """Fail for a while, as `faults` tells."""
        self.faults.strike(kind, seconds)

    def load(self) -> dict[str, Any]:
        running = {name: queue.running for name, queue in self.queues.items()}
        waiting = {name: queue.waiting for name, queue in self.queues.items()}
        told = {"region": self.region, "running": running, "waiting": waiting, "models": self._models()}
        return {**told, "trusts": sorted(self.trust.told)} if self.trust else told

    def _models(self) -> dict[str, str]:
        return {name: "ready" if seat.pools else seat.failed or "starting" for name, seat in self.site.seats.items()}

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        line = Line(self.faults, send)
        await line.arrive()
        try:
            await self._serve(scope, receive, line)
        finally:
            await line.close()

    async def _serve(self, scope: Any, receive: Any, line: Line) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if not (self.trust or secrets.compare_digest(headers.get(b"authorization", ""), f"Bearer {self.token}")):
                raise Forbidden("this region belongs to another cloud")
            if scope["path"] == "/load":
                await _reply(line, 200, self.load())
                return
            if scope["path"] == "/fault":
                told = orjson.loads(await _body(receive))
                await _reply(line, 200, {})
                await line.close()
                self.fault(str(told["kind"]), float(told["seconds"]))
                return
            if scope["path"] == "/gateways" and self.trust:
                self.trust.tell(orjson.loads(await _body(receive))["authorities"])
                await _reply(line, 200, {})
                return
            if scope["path"] == "/cards":
                await _reply(line, 200, {name: _told(seat.card) for name, seat in self.site.seats.items()})
                return
            asked = self._asked(scope, headers)
            body = await _body(receive)
            await _while_connected(receive, self._admit(asked, body, line))
        except AtollError as error:
            if not line.begun:
                await _reply(line, error.status, {"error": to_wire(error)})

    def _asked(self, scope: Any, headers: dict[bytes, str]) -> Asked:
        parts = scope["path"].split("/", 3)
        if scope["method"] != "POST" or len(parts) < 4 or parts[1] != "m":
            raise NotFound("there is nothing here")
        seat = self.site.seat(parts[2])
        deadline = asyncio.get_running_loop().time() + float(headers.get(b"x-atoll-deadline", "600"))
        priority = int(headers.get(b"x-atoll-priority", "5"))
        ticket = Ticket(headers.get(b"x-atoll-key", ""), priority, deadline=deadline)
        return Asked(seat, f"/{parts[3]}", headers.get(b"content-type", "application/json"), ticket)

    async def _admit(self, asked: Asked, body: bytes, line: Line) -> None:
        """Wait for a turn and answer. Raises Overloaded at once when the queue is full."""
        card = asked.seat.card.id
        limit = self.slots if asked.seat.runner else 0
        queue = self.queues.setdefault(card, Queue(f"'{card}' in {self.region}", limit))
        if asked.seat.runner is not None and asked.path == COUNT:
            counted = await asked.seat.runner.count(orjson.loads(body), self._post(card))
            await _reply(line, 200, {"input_tokens": counted})
            return
        turn = queue.enter(asked.ticket)
        try:
            if asked.seat.runner is None:
                await turn
                await self._pass(asked, body, line)
            else:
                await self._stream(asked, orjson.loads(body), turn, line)
        finally:
            queue.leave(turn)

    async def _chunks(self, asked: Asked, body: dict[str, Any], turn: Turn) -> AsyncIterator[bytes]:
        await turn
        assert asked.seat.runner is not None
        answer = asked.seat.runner.answer(asked.path, body, self._post(asked.seat.card.id))
        async with aclosing(answer) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _post(self, card_id: str) -> Any:
        async def post(path: str, body: bytes) -> Any:
            return await self.site.post(card_id, path, body)

        return post

    async def _stream(self, asked: Asked, body: dict[str, Any], turn: Turn, line: Line) -> None:
        """Events as they come, and a comment whenever there was none for a while."""
        await line.start(200, [(b"content-type", b"text/event-stream")])
        beating = asyncio.create_task(_beat(line, asked.seat, turn))
        try:
            async with aclosing(self._chunks(asked, body, turn)) as events:  # type: ignore[type-var]
                async for data in events:
                    await line.write(data)
        except AtollError as error:
            await line.write(b"data: " + orjson.dumps({"error": to_wire(error)}) + b"\n\n")
        finally:
            beating.cancel()
        await line.end()

    async def _pass(self, asked: Asked, body: bytes, line: Line) -> None:
        reply = await self.site.post(asked.seat.card.id, asked.path, body, asked.content_type)
        try:
            kind = reply.headers.get("content-type", "application/json").encode("latin-1")
            await line.start(reply.status, [(b"content-type", kind)])
            while data := await reply.read():
                await line.write(data)
            await line.end()
        finally:
            reply.close()

    async def close(self) -> None:
        await self.kill()


async def _beat(line: Line, seat: Seat, turn: Turn) -> None:
    """Tell that the region lives while it has nothing else to tell. An engine that is being restarted is not silent.
    Silence is counted in beats: a process that was itself held up has not listened."""
    silent = 0.0
    while True:
        before, told = line.written, seat.told
        await asyncio.sleep(EVERY)
        silent = silent + EVERY if turn.done() and seat.pools and seat.told == told else 0.0
        if line.written == before:
            await line.write(beat(silent))


def _told(card: Card) -> dict[str, Any]:
    """A card for the gateway: what the model can do, not where its weights or its server are."""
    remote = replace(card.remote, url="here", key_env="") if card.remote else None
    return {"card": card_table(replace(card, weights=Weights(), remote=remote)), "digest": card.digest}


async def _body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EngineFailed("the gateway went away")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _while_connected(receive: Any, serving: Awaitable[None]) -> None:
    """Stop serving when the gateway hangs up: that is how it gives a request up."""
    task = asyncio.ensure_future(serving)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                await asyncio.wait({each})
    if not task.cancelled():
        task.result()


async def _reply(line: Line, status: int, value: dict[str, Any]) -> None:
    await line.start(status, [(b"content-type", b"application/json")])
    await line.write(orjson.dumps(value))
    await line.end()

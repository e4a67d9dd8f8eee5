"""One answer, whatever happens to the regions that make it.

What was sent of an answer is kept, token by token. When the region that makes it fails, the rest comes from another
one: `exact` makes the answer again with the same seed, checks everything that was sent against it and drops it;
`fast` reads prompt and sent tokens as one prompt; `hot` has a second region at work from the first token on. The
client sees one stream under one id. `core.recover` decides, this file does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson

from atoll.core.answer import Piece, Told
from atoll.core.errors import AtollError, EngineFailed
from atoll.core.ports import Reply
from atoll.core.types import Grade, Usage
from atoll.gateway.exchange import Charge, Exchange, Wish
from atoll.gateway.http import Http
from atoll.gateway.stream import parsed, refusal, usage_of

Chunk = dict[str, Any]
ATTEMPTS = 6
DEADLINE = 600.0
SAME = ("id", "created", "system_fingerprint")


class Mismatch(EngineFailed):
    """An answer made again is not the one that was sent."""


class Session:
    """The chunks of one answer. `body` asks for a stream."""

    def __init__(self, exchange: Exchange, http: Http, charge: Charge, path: str, body: dict[str, Any]) -> None:
        self.exchange = exchange
        self.http = http
        self.charge = charge
        self.path = path
        self.body = body
        self.told = Told()
        self.grade: Grade = charge.key.policy.recovery
        self.attempts = 0
        self.until = time.monotonic() + DEADLINE
        self.way: Grade = "exact"
        self._identity: Chunk = {}
        self._digest = ""
        self._failed: frozenset[str] = frozenset()
        self._standby: Standby | None = None

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Raises what cannot be recovered from."""
        try:
            while True:
                try:
                    async with aclosing(self._made()) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                except AtollError as error:
                    await self._recover(error)
        finally:
            if self._standby is not None:
                self._standby.close()

    async def _recover(self, error: AtollError) -> None:
        """Prepare for the next attempt. Raises `error` if there is to be none."""
        if self.http.gone:
            raise error
        self.attempts += 1
        if not error.retryable or self.attempts > ATTEMPTS or time.monotonic() > self.until or self.grade == "none":
            raise error
        if not self.told.tokens:
            return
        fast = self.grade == "fast" or isinstance(error, Mismatch)
        if fast and (not _is_plain(self.body) or self.told.ids() is None or self.told.finished):
            if isinstance(error, Mismatch):
                raise error
            fast = False
        self.way = "fast" if fast else "exact"
        self.charge.recovered(self.way)

    async def _made(self) -> AsyncIterator[Chunk]:
        """One attempt: the part of its answer that was not sent yet."""
        checking = Checking(self.told, self.way)
        async with aclosing(self._source()) as source:
            async for chunk in source:
                if not self.attempts or (chunk := checking.rest(chunk)):
                    self._note(chunk)
                    yield chunk

    async def _source(self) -> AsyncIterator[Chunk]:
        standby, self._standby = self._standby, None
        if standby is not None and standby.alive:
            self.charge.region = standby.region
            self.http.on_gone(standby.close)
            async for chunk in standby.chunks():
                yield chunk
            return
        body = self.body
        if self.way == "fast" and self.told.tokens:
            body = {**body, "continue_token_ids": self.told.ids()}
        reply = await self.exchange.open(
            self.http, self.charge, self.path, orjson.dumps(body), wish=Wish(self._failed, self._digest)
        )
        self._failed = frozenset({reply.endpoint.name})
        self._digest = reply.endpoint.digest
        try:
            if reply.status >= 400:
                raise await refusal(reply)
            async for chunk in parsed(reply):
                yield chunk
                if self.grade == "hot" and self._standby is None and self.told.tokens:
                    await self._stand_by(reply)
        finally:
            reply.close()

    async def _stand_by(self, primary: Reply) -> None:
        """Let a second region make the same answer, unseen."""
        self._standby = Standby()
        wish = Wish(self._failed, self._digest)
        asked = self.exchange.reach(self.charge, self.path, orjson.dumps(self.body), wish=wish)
        self._standby.begin(asked, primary.endpoint.name)

        def leave() -> None:
            primary.close()
            if self._standby is not None:
                self._standby.close()

        self.http.on_gone(leave)

    def _note(self, chunk: Chunk) -> None:
        """Keep what is sent, and make it look like one stream."""
        self._identity = self._identity or {name: chunk[name] for name in SAME if name in chunk}
        chunk.update(self._identity)
        for choice in chunk.get("choices") or ():
            piece = piece_of(choice)
            self.told.add(choice["index"], piece)
            self.charge.delivered(len(piece.ids or ()) or int(bool(piece.text)))
            choice.pop("token_ids", None)
        if chunk.get("usage"):
            self.charge.usage = usage_of(chunk["usage"])
        elif chunk.get("choices"):
            self.charge.usage = Usage(self.charge.usage.input, self.told.tokens)
            self.charge.first_token()


class Checking:
    """Holds a new attempt against what was told, piece by piece, and lets through what is new."""

    def __init__(self, told: Told, grade: Grade) -> None:
        self._told = told
        self._from_start = grade != "fast" or not told.tokens
        self._at: dict[int, int] = {}
        self._until = {index: len(pieces) for index, pieces in told.pieces.items()}

    def rest(self, chunk: Chunk) -> Chunk | None:
        """Raises Mismatch."""
        choices = [choice for choice in chunk.get("choices") or () if not self._was_told(choice)]
        if not choices and chunk.get("choices"):
            return {**chunk, "choices": []} if chunk.get("usage") else None
        return {**chunk, "choices": choices}

    def _was_told(self, choice: Chunk) -> bool:
        index, piece = choice["index"], piece_of(choice)
        if not self._from_start:
            opening = (choice.get("delta") or {}).pop("role", None) is not None
            return opening and not piece.ids and not piece.text and not piece.finish
        at = self._at.get(index, 0)
        if at >= self._until.get(index, 0):
            return False
        self._at[index] = at + 1
        if not self._told.pieces[index][at].matches(piece):
            raise Mismatch("the answer made again differs from what was sent")
        return True


class Standby:
    """A second region's answer to the same request, kept until it is needed."""

    def __init__(self) -> None:
        self.region = ""
        self._reply: Reply | None = None
        self._kept: asyncio.Queue[Chunk | AtollError | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def begin(self, asked: Any, primary: str) -> None:
        self._task = asyncio.create_task(self._collect(asked, primary))

    @property
    def alive(self) -> bool:
        return self._reply is not None

    async def _collect(self, asked: Any, primary: str) -> None:
        try:
            reply = await asked
            if reply.status >= 400 or reply.endpoint.name == primary:
                reply.close()
                return
            self._reply, self.region = reply, reply.endpoint.region
            async for chunk in parsed(reply):
                self._kept.put_nowait(chunk)
            self._kept.put_nowait(None)
        except AtollError as error:
            self._reply = None
            self._kept.put_nowait(error)

    async def chunks(self) -> AsyncIterator[Chunk]:
        try:
            while item := await self._kept.get():
                if isinstance(item, AtollError):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._reply is not None:
            self._reply.close()


def piece_of(choice: Chunk) -> Piece:
    delta = choice.get("delta") or {}
    calls = "".join((c.get("function") or {}).get("arguments") or "" for c in delta.get("tool_calls") or ())
    text = "".join((choice.get("text") or "", delta.get("content") or "", delta.get("reasoning_content") or "", calls))
    ids = choice.get("token_ids")
    return Piece(None if ids is None else tuple(ids), text, choice.get("finish_reason"))


def _is_plain(body: dict[str, Any]) -> bool:
    """True where tokens alone say how to go on: one choice, no grammar, no tools."""
    shaped = (body.get("response_format") or {}).get("type", "text") != "text"
    return (body.get("n") or 1) == 1 and not body.get("tools") and not shaped

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
from dataclasses import replace
from typing import Any

import orjson

from atoll.core.answer import Told
from atoll.core.errors import AtollError, Overloaded
from atoll.core.ports import Reply
from atoll.core.recover import Attempt, Continue, Differs, Failure, GiveUp, Left, Restart, Retry, hedge, recover, spend
from atoll.core.route import Request
from atoll.core.types import Endpoint, Grade, Usage
from atoll.gateway.deltas import Chunk, apart, begins, said, say
from atoll.gateway.estimate import prompt_tokens
from atoll.gateway.exchange import Charge, Exchange, Wish
from atoll.gateway.http import Http
from atoll.gateway.standby import Mismatch, Standby, blame, kind, until_text
from atoll.gateway.stream import parsed, refusal, usage_of

DEADLINE = 120.0
HOPE = 10.0
"""Seconds after a break in which dead endpoints with the weights that began an answer may come back."""
RESTARTED = "\n\n[The answer broke off, and only another version of the model is left. It begins anew.]\n\n"
SAME = ("id", "created", "system_fingerprint")


class Session:
    """The chunks of one answer. `body` asks for a stream."""

    def __init__(self, exchange: Exchange, http: Http, charge: Charge, path: str, body: dict[str, Any]) -> None:
        self.exchange = exchange
        self.http = http
        self.charge = charge
        self.path = path
        self.body = body
        self.told = Told()
        self.way: Grade = "exact"
        shaped = bool(body.get("tools")) or (body.get("response_format") or {}).get("type", "text") != "text"
        policy = replace(charge.key.policy, recovery=charge.place.recovery or charge.key.policy.recovery)
        self.attempt = Attempt(
            0, time.monotonic() + DEADLINE, policy, structured=shaped, choices=body.get("n") or 1
        )
        self._began = time.monotonic()
        self._before = 0
        self._identity: Chunk = {}
        self._digest = ""
        self._hopes_until = 0.0
        self._full = False
        self._failed: frozenset[str] = frozenset()
        self._standby: Standby | None = None
        self._restarted = False

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
        now, tokens = time.monotonic(), self.told.tokens
        again = 1 if tokens > self._before else self.attempt.number + 1
        standby = self._standby is not None and self._standby.alive
        known = self.told.ids is not None and not self.told.finished
        pace = (now - self._began) / tokens if tokens else 0.0
        until = self.attempt.deadline if again > 1 else now + DEADLINE + tokens * pace
        self.attempt = replace(
            self.attempt, number=again, deadline=until, ids=known, standby=standby, pace=pace
        )
        self._hopes_until = self._hopes_until if again > 1 else now + HOPE
        self._before = tokens
        failure = Failure("gone" if self.http.gone else kind(error), self._left(now), error.retry_after)
        action, self.exchange.retries = recover(self.attempt, failure, tokens, now, self.exchange.retries)
        if isinstance(action, GiveUp):
            raise error
        if isinstance(action, Retry):
            self._digest = ""
        if isinstance(action, Restart):
            self.charge.restarted()
            self.told, self._digest, self._restarted = Told(), "", True
        if isinstance(action, Continue):
            self._digest = self._digest if action.same_weights else ""
            self.way = action.grade
            self.charge.recovered(action.grade)
            self.attempt = replace(self.attempt, drifted=self.attempt.drifted or action.grade == "fast")
        if action.after:
            await asyncio.sleep(action.after)

    def _left(self, now: float) -> Left:
        """What is left for this answer: its own weights, or only others; nothing where all just refused it."""
        charge, full, self._full = self.charge, self._full, False
        if full:
            return "none"
        request = Request(charge.entry.id, charge.serving.id, allowed=charge.place.allowed, digest=self._digest)
        return self.exchange.models.left(request, hoping=now < self._hopes_until)

    async def _made(self) -> AsyncIterator[Chunk]:
        """One attempt: the part of its answer that was not sent yet."""
        checking = Checking(self.told, self.way == "fast")
        if self._restarted:
            self._restarted = False
            yield self._notice()
        async with aclosing(self._source()) as source:
            async for made in source:
                for chunk in apart(made):
                    if not self.attempt.number or (chunk := checking.rest(chunk)):
                        if checking.by_text:
                            self.charge.by_text()
                        self._note(chunk)
                        yield chunk
        checking.end()

    def _notice(self) -> Chunk:
        """What tells the client that the answer begins anew."""
        said = {"text": RESTARTED} if "prompt" in self.body else {"delta": {"content": RESTARTED}}
        kind = "text_completion" if "prompt" in self.body else "chat.completion.chunk"
        choice = {"index": 0, **said, "finish_reason": None, "logprobs": None}
        return {**self._identity, "object": kind, "model": self.charge.serving.id, "choices": [choice]}

    async def _source(self) -> AsyncIterator[Chunk]:
        standby, self._standby = self._standby, None
        if standby is not None and standby.alive:
            async for chunk in self._taken_over(standby):
                yield chunk
            return
        if standby is not None:
            standby.close()
        body = self.body
        if self.way == "fast" and self.told.tokens:
            body = {**body, "continue_token_ids": self.told.ids}
        tried = self._stand_by if self.attempt.policy.recovery == "hot" else None
        asked = time.monotonic()
        wish = Wish(self._failed, self._digest, tried, max(0.0, self._hopes_until - asked))
        try:
            reply = await self.exchange.open(self.http, self.charge, self.path, orjson.dumps(body), wish=wish)
        except Overloaded:
            self._full = True
            raise
        self._failed = frozenset({reply.endpoint.name})
        self._digest = reply.endpoint.digest
        try:
            if reply.status >= 400:
                raise await refusal(reply)
            if self._standby is not None:
                self._leave_both(reply, self._standby)
            async for chunk in self._hedged(reply, asked):
                yield chunk
        except AtollError as error:
            blame(reply, error)
            raise
        finally:
            reply.close()

    async def _taken_over(self, standby: Standby) -> AsyncIterator[Chunk]:
        """What a standby made and makes, as the answer from now on."""
        assert standby.endpoint is not None
        self._failed |= {standby.endpoint.name}
        self.charge.region = standby.endpoint.region
        self.http.served_by(standby.endpoint.region, standby.endpoint.name)
        self.http.on_gone(standby.close)
        async for chunk in standby.chunks():
            yield chunk

    async def _hedged(self, reply: Reply, asked: float) -> AsyncIterator[Chunk]:
        """The chunks of `reply`; where its first token is late, of a second region if it is first with it."""
        chunks = parsed(reply)
        due = None
        if not self.told.tokens and self._standby is None:
            due = hedge(time.monotonic(), asked, reply.expected, self.exchange.hedging)
        if due is not None:
            first = asyncio.ensure_future(until_text(chunks))
            try:
                await asyncio.wait({first}, timeout=due - time.monotonic())
                if not first.done() and (second := self._second(reply)) and await second.is_before(first):
                    self._standby = None
                    first.cancel()
                    reply.close()
                    async for chunk in self._taken_over(second):
                        yield chunk
                    return
                for chunk in await first:
                    yield chunk
            finally:
                first.cancel()
            if self._standby is not None:
                self._standby.close()
                self._standby = None
        async for chunk in chunks:
            yield chunk

    def _second(self, reply: Reply) -> Standby | None:
        """Another region at work on a request whose first token is late; None where the budget of retries is spent."""
        budget, wait = spend(self.exchange.retries, time.monotonic())
        if wait:
            return None
        self.exchange.retries = budget
        self._stand_by(reply.endpoint)
        assert self._standby is not None
        self._leave_both(reply, self._standby)
        return self._standby

    def _stand_by(self, primary: Endpoint) -> None:
        """Let a second region make the same answer, unseen."""
        if self._standby is not None:
            self._standby.close()
        self._standby = Standby()
        wish = Wish(self._failed | {primary.name}, primary.digest)
        asked = self.exchange.reach(self.charge, self.path, orjson.dumps(self.body), wish=wish)
        self._standby.begin(asked, primary.name)

    def _leave_both(self, primary: Reply, standby: Standby) -> None:
        """Neither goes on when the client goes away."""

        def leave() -> None:
            primary.close()
            standby.close()

        self.http.on_gone(leave)

    def _note(self, chunk: Chunk) -> None:
        """Keep what is sent, and make it look like one stream."""
        self._identity = self._identity or {name: chunk[name] for name in SAME if name in chunk}
        chunk.update(self._identity)
        for choice in chunk.get("choices") or ():
            part, (channel, text) = self.told.part(choice["index"]), said(choice)
            ids = choice.pop("token_ids", None)
            part.add(None if ids is None else tuple(ids), text, channel)
            if begun := begins(choice):
                part.calls[begun[0]] = begun[1]
            part.finished = part.finished or choice.get("finish_reason") is not None
            self.charge.delivered(None if ids is None else len(ids), text)
        read = chunk.pop("prompt_read", None)
        if not self.charge.usage.input:
            prompt, cached = read or (prompt_tokens(self.body), 0)
            self.charge.usage = Usage(prompt, 0, cached)
        if chunk.get("usage"):
            self.charge.usage = usage_of(chunk["usage"])
        elif chunk.get("choices"):
            self.charge.usage = self.charge.usage._replace(output=self.told.tokens)
            self.charge.first_token()


class Checking:
    """Holds a new attempt against what was told, and lets through what is new. `onward`: it begins where that ends.
    `by_text`: not all of it could be compared token by token."""

    def __init__(self, told: Told, onward: bool) -> None:
        self._told = told
        self._onward = onward and told.tokens > 0
        self.by_text = False
        self._checks = {} if self._onward else {index: part.verifier() for index, part in told.parts.items()}

    def rest(self, chunk: Chunk) -> Chunk | None:
        """Raises Mismatch."""
        choices = [new for choice in chunk.get("choices") or () if (new := self._new(choice))]
        return {**chunk, "choices": choices} if choices or chunk.get("usage") or not chunk.get("choices") else None

    def _new(self, choice: Chunk) -> Chunk | None:
        """What of a choice was not told yet."""
        index, (channel, text) = choice["index"], said(choice)
        if index not in self._told.parts:
            return choice
        if "delta" in choice:
            choice["delta"].pop("role", None)
        part, begun = self._told.parts[index], begins(choice)
        if begun and (name := part.calls.get(begun[0])):
            if name != begun[1]:
                raise Mismatch(f"the answer made again differs: it calls '{begun[1]}' instead of '{name}'")
            choice, begun = say(choice, channel, text), None
        finish = choice.get("finish_reason") if not part.finished else None
        ids = choice.get("token_ids")
        if index in self._checks and not self._checks[index].done:
            self._checks[index], found = self._checks[index].feed(None if ids is None else tuple(ids), text, channel)
            if isinstance(found, Differs):
                raise Mismatch(f"the answer made again differs: {found.reason}")
            self.by_text = self.by_text or self._checks[index].ids is None
            if begun and found.text != text:
                raise Mismatch(f"the answer made again differs: it calls '{begun[1]}' too early")
            if found.text != text:
                choice = say(choice, channel, found.text)
            choice["token_ids"] = ids = None if found.ids is None else list(found.ids)
            text = found.text
        return {**choice, "finish_reason": finish} if text or ids or finish or begun else None

    def end(self) -> None:
        """Raises Mismatch when not all that was told has come again."""
        for check in self._checks.values():
            if found := check.end():
                raise Mismatch(f"the answer made again differs: {found.reason}")

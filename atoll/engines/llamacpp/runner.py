"""A request's way through a llama.cpp server: prompt, prefill in pieces, answer with token ids.

llama.cpp fills its batches from the slots in order, so that one long prompt would keep every request in a later
slot waiting until it is read. A long prompt is therefore sent in growing prefixes, each of which finds the one
before in the slot's cache; between two of them the others have their turn. A piece is as long as was lately read in
`PIECE_S`, so that others wait as long on a busy machine as on an idle one. The last token of a long prompt is read
alone, as llama.cpp does with a prompt that it has in its cache: its kernels for one token and for many differ, and an
answer would otherwise depend on what was cached.
"""

from __future__ import annotations

import contextlib
import zlib
from array import array
from collections.abc import AsyncIterator
from typing import Any

import orjson

from atoll.core.cards import Card
from atoll.core.errors import AtollError, EngineFailed, Unsupported
from atoll.core.events import DONE, EventReader
from atoll.core.ports import Post, Reply
from atoll.engines.llamacpp.dialect import COUNT, LlamaDialect

COMPLETIONS = "/v1/completions"
PIECE = 256
PIECE_S = 0.5
GRID, STEP = 32, 16
LONG_TEXT = 2 * PIECE
REMEMBERED = 16_384


class LlamaRunner:
    """`core.ports.Runner`."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.dialect = LlamaDialect()
        self._read: dict[int, None] = {}
        self._pace = GRID / PIECE_S

    async def count(self, body: dict[str, Any], post: Post) -> int:
        told = await self._ask(post, COUNT, self.dialect.count(self.card, body))
        return int(told["input_tokens"])

    async def answer(self, path: str, body: dict[str, Any], post: Post) -> AsyncIterator[dict[str, Any]]:
        given = dict(body)
        sent_before = given.pop("continue_token_ids", None) or []
        sent, decoder = self.dialect.encode(self.card, given)
        if sent_before and ("grammar" in sent or sent.get("n", 1) > 1 or not self.dialect.is_plain(self.card, sent)):
            raise Unsupported("only one choice without grammar goes on from its tokens", param="continue_token_ids")
        fresh = 0
        if self.dialect.is_plain(self.card, sent):
            path, sent = COMPLETIONS, await self._templated(sent, post)
            fresh = await self._prefill(sent, sent_before, post)
        account = Account(len(sent_before), fresh)
        made: list[int] = []
        ids = TokenIds(self, post)
        async for event in self._events(post, path, sent):
            raw = await ids.take(event)
            account.note(event)
            for chunk in decoder.feed(event):
                chunk = account.correct(ids.attach(chunk, raw))
                made += [t for c in chunk["choices"][:1] if c["index"] == 0 for t in c["token_ids"] or ()]
                yield chunk
        if isinstance(prompt := sent.get("prompt"), list) and made and isinstance(prompt[0], int):
            self._known([*prompt, *made])

    async def _templated(self, sent: dict[str, Any], post: Post) -> dict[str, Any]:
        """A chat request as a completion of its templated prompt: only completions tell token ids."""
        sent = {**sent, "verbose": True}
        if "messages" not in sent:
            return sent
        asked = {name: sent.pop(name) for name in ("messages", "chat_template_kwargs") if name in sent}
        told = await self._ask(post, "/apply-template", asked)
        sent["prompt"] = told["prompt"]
        if sent.pop("logprobs", False):
            sent["n_probs"] = max(1, sent.get("top_logprobs") or 0)
        sent.pop("top_logprobs", None)
        return sent

    async def _prefill(self, sent: dict[str, Any], sent_before: list[int], post: Post) -> int:
        """Read a long prompt piece by piece into a slot's cache; the tokens that were not in it before."""
        prompt = sent["prompt"]
        if sent_before or (isinstance(prompt, str) and len(prompt) > LONG_TEXT):
            prompt = sent["prompt"] = [*await self._tokens(prompt, post), *sent_before]
            sent["max_tokens"] -= len(sent_before)
        if not isinstance(prompt, list) or not all(isinstance(token, int) for token in prompt):
            return 0
        if len(prompt) + 1 > self.card.context:
            return 0
        fresh, end, last = 0, self._known(prompt), len(prompt) - 1
        if last < PIECE or last - end < GRID:
            return 0
        while end < last:
            end = min(end + self._step(), last)
            asked = {"prompt": prompt[:end], "n_predict": 0, "stream": True, "return_progress": True}
            async for event in self._events(post, "/completion", asked):
                if told := event.get("timings"):
                    fresh += told["prompt_n"]
                    self._pace = 1000 * told["prompt_n"] / max(told["prompt_ms"], 1)
        return fresh

    def _step(self) -> int:
        """Tokens of the next piece."""
        return max(STEP, min(PIECE, int(self._pace * PIECE_S) // STEP * STEP))

    def _known(self, prompt: list[int]) -> int:
        """How much of a prompt was read lately; from now on, all of it was. A shorter prompt would cut a slot's cache
        short, so the first piece goes beyond that; if the slot has lost it, the first piece is long, and others wait
        for it once."""
        marks, seal = {}, 0
        for end in range(GRID, len(prompt), GRID):
            seal = zlib.crc32(array("i", prompt[end - GRID : end]).tobytes(), seal)
            marks[end] = seal
        known = max((end for end, seal in marks.items() if seal in self._read), default=0)
        for seal in marks.values():
            self._read.pop(seal, None)
            self._read[seal] = None
        while len(self._read) > REMEMBERED:
            self._read.pop(next(iter(self._read)))
        return known

    async def _tokens(self, text: str, post: Post, special: bool = True) -> list[int]:
        asked = {"content": text, "add_special": special, "parse_special": special}
        return (await self._ask(post, "/tokenize", asked))["tokens"]

    async def _ask(self, post: Post, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self._open(post, path, body)
        try:
            told = orjson.loads(await _whole(reply))
        except orjson.JSONDecodeError:
            raise EngineFailed("the engine's answer is not JSON") from None
        finally:
            reply.close()
        return told

    async def _events(self, post: Post, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        reply = await self._open(post, path, body)
        reader = EventReader()
        try:
            while data := await reply.read():
                for payload in reader.feed(data):
                    if payload == DONE:
                        with contextlib.suppress(AtollError):
                            await _whole(reply)  # a connection whose answer was read to its end is used again
                        return
                    event = orjson.loads(payload)
                    if event.get("error") and not event.get("choices"):
                        raise self.dialect.explain(500, payload)
                    yield event
        except orjson.JSONDecodeError:
            raise EngineFailed("the engine sent an event that is not JSON") from None
        finally:
            reply.close()
        if path != "/completion":
            raise EngineFailed("the engine's stream ended without [DONE]")

    async def _open(self, post: Post, path: str, body: dict[str, Any]) -> Reply:
        reply = await post(path, orjson.dumps(body))
        if reply.status >= 400:
            try:
                raise self.dialect.explain(reply.status, await _whole(reply))
            finally:
                reply.close()
        return reply


class TokenIds:
    """Which tokens made which chunk. Text is held back while a character is incomplete; the tokens of it that
    llama.cpp does not tell are found again by tokenising the text, and given up (null) where that fails."""

    def __init__(self, runner: LlamaRunner, post: Post) -> None:
        self._runner = runner
        self._post = post
        self._told: dict[int, int] = {}
        self._held: dict[int, list[int] | None] = {}

    async def take(self, event: dict[str, Any]) -> bool:
        """Note the tokens of a raw event; true if it has any notion of them."""
        told = event.get("__verbose")
        if told is None or not told.get("tokens_predicted"):
            return told is not None
        index, tokens, count = told.get("index", 0), list(told.get("tokens") or ()), told.get("tokens_predicted", 0)
        missing = count - self._told.get(index, 0) - len(tokens)
        self._told[index] = count
        if missing > 0 and tokens:
            tokens = await self._found(told.get("content", ""), tokens, missing)
        held = self._held.get(index, [])
        self._held[index] = None if held is None or tokens is None else [*held, *tokens]
        return True

    async def _found(self, text: str, tokens: list[int], missing: int) -> list[int] | None:
        found = await self._runner._tokens(text, self._post, special=False)
        return found if len(found) == missing + len(tokens) and found[-1] == tokens[-1] else None

    def attach(self, chunk: dict[str, Any], known: bool) -> dict[str, Any]:
        for choice in chunk["choices"]:
            index, opening = choice["index"], _opens(choice)
            choice["token_ids"] = None if not known else [] if opening else self._held.get(index, [])
            if self._held.get(index) and not opening:
                self._held[index] = []
        return chunk


class Account:
    """Usage as if the answer had been made in one go: without the tokens that were sent before, and with only those
    as cached that were in the cache before the prompt was read piece by piece."""

    def __init__(self, sent_before: int, fresh: int) -> None:
        self._sent_before = sent_before
        self._fresh = fresh
        self._read: tuple[int, int] | None = None

    def note(self, event: dict[str, Any]) -> None:
        """What the engine says of the prompt while it reads it."""
        if told := event.get("prompt_progress"):
            self._read = told["total"], told["cache"]

    def correct(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """The first chunk tells what was read, so that an answer which is cut is charged for its prompt."""
        if self._read and chunk["choices"]:
            prompt, cached = self._read[0] - self._sent_before, self._read[1] - self._fresh
            chunk["prompt_read"] = [prompt, max(0, min(cached, prompt))]
            self._read = None
        usage = chunk.get("usage")
        if usage and (self._sent_before or self._fresh):
            prompt = usage["prompt_tokens"] - self._sent_before
            cached = usage["prompt_tokens_details"]["cached_tokens"] - self._fresh
            completion = usage["completion_tokens"] + self._sent_before
            chunk["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": max(0, min(cached, prompt))},
            }
        return chunk


def _opens(choice: dict[str, Any]) -> bool:
    """True for the chunk that only tells who speaks."""
    delta = choice.get("delta") or {}
    return "role" in delta and not any(value for name, value in delta.items() if name != "role")


async def _whole(reply: Reply) -> bytes:
    parts = []
    while data := await reply.read():
        parts.append(data)
    return b"".join(parts)

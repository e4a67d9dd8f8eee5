"""OpenAI chat completions and completions: the wire format that is also spoken inside."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from atoll.core.cards import Card
from atoll.core.errors import AtollError
from atoll.core.ports import Ask
from atoll.core.route import Request
from atoll.core.types import Key
from atoll.gateway.checks import carried, check_chat, max_output
from atoll.gateway.errors import error_event, invalid
from atoll.gateway.estimate import prompt_tokens
from atoll.gateway.exchange import Bound, Charge, Exchange, Needs
from atoll.gateway.http import EVENTS, Http
from atoll.gateway.resume import Session
from atoll.gateway.schemas import ChatRequest, CompletionRequest
from atoll.gateway.senses import Senses, compose
from atoll.gateway.stream import DONE, chunks, collect, counted, refusal, relay, whole

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
COUNT = "/v1/chat/completions/input_tokens"
TEMPLATE_TOKENS = 256


class Sent(NamedTuple):
    """A request ready for an endpoint. `passes`: its answer goes to the client as it is."""

    path: str
    body: dict[str, Any]
    passes: bool


async def chat(exchange: Exchange, http: Http, key: Key, raw: bytes, body: dict[str, Any]) -> None:
    """POST /v1/chat/completions and /v1/completions."""
    schema = ChatRequest if http.path == CHAT else CompletionRequest
    body = drop_nulls(body)
    try:
        schema.model_validate(body)
    except ValidationError as error:
        raise invalid(error, body) from None
    card = exchange.models.resolve(body["model"])
    check_chat(card, body)
    charge = await begin(exchange, http, key, card, body, len(raw))
    await exchange.guard(http, charge, _serve(exchange, http, charge, body))


async def begin(exchange: Exchange, http: Http, key: Key, card: Card, body: dict[str, Any], size: int) -> Charge:
    """Reserve for a chat request of `size` bytes: by its size, which is quick, or where that is too much, by count."""

    async def recount() -> Bound | None:
        counted = await count(exchange, http, card, body)
        return None if counted is None else Bound(counted, max_output(card, body))

    media = carried(body)
    needs = Needs(frozenset({"text", *media}), max_output(card, body), prompt_tokens(body) if media else 0)
    charge = await exchange.begin(http, key, card, bound(card, body, size), recount)
    charge.needs = needs
    return charge


async def count(exchange: Exchange, http: Http, card: Card, body: dict[str, Any]) -> int | None:
    """Prompt tokens as the engine counts them; None where the engine cannot tell. Raises what the engine refuses."""
    if not card.resumes or "messages" not in body:
        return None
    allowed = http.place.allowed if http.place else None
    ask = Ask(Request("", card.id, allowed=allowed))
    reply = await exchange.models.open(card, COUNT, orjson.dumps({**body, "model": card.id}), ask=ask)
    try:
        if reply.status >= 400:
            raise await refusal(reply)
        return int(orjson.loads(await whole(reply))["input_tokens"])
    finally:
        reply.close()


def drop_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """An explicit null means the same as an absent field."""
    return {k: v for k, v in body.items() if v is not None} if None in body.values() else body


def bound(card: Card, body: dict[str, Any], size: int) -> Bound:
    """A token is at least one byte of the request, besides what the chat template adds."""
    return Bound(min(size + TEMPLATE_TOKENS, max(card.context, 1)) if card.context else size, max_output(card, body))


def encode(card: Card, body: dict[str, Any], path: str) -> Sent:
    """The body for an endpoint of `card`. Streams always carry usage: it is what is charged. A seed is chosen where
    none is given, so that an answer can be made again."""
    if card.defaults and "temperature" not in body:
        body = {**card.defaults, **body}
    if card.resumes:
        seed = body.get("seed")
        return Sent(path, {**body, "model": card.id, "seed": secrets.randbits(31) if seed is None else seed}, False)
    body = {**body, "model": card.remote.model if card.remote else card.id}
    if "max_completion_tokens" not in body:
        body.setdefault("max_tokens", card.max_output)
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return Sent(path, body, True)


async def answer(
    exchange: Exchange, http: Http, charge: Charge, body: dict[str, Any], path: str = CHAT
) -> AsyncIterator[dict[str, Any]]:
    """Canonical chunks of the answer to `body`, which asks for a stream. Raises what the engine refused."""

    def ask_part(card: Card, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        return ask(exchange, http, charge, encode(card, body, path))

    composed = charge.card.engine == "cascade"
    parts = compose(Senses(exchange, http, charge), body, ask_part) if composed else ask_part(charge.card, body)
    async with aclosing(parts):
        async for chunk in parts:
            yield chunk


async def ask(exchange: Exchange, http: Http, charge: Charge, sent: Sent) -> AsyncIterator[dict[str, Any]]:
    """Canonical chunks of one answer."""
    if not sent.passes:
        async with aclosing(Session(exchange, http, charge, sent.path, sent.body).chunks()) as parts:
            async for chunk in parts:
                yield chunk
        return
    reply = await exchange.open(http, charge, sent.path, orjson.dumps(sent.body))
    try:
        if reply.status >= 400:
            raise await refusal(reply)
        async for chunk in chunks(reply, charge, sent.body):
            yield chunk
    finally:
        reply.close()


async def _serve(exchange: Exchange, http: Http, charge: Charge, body: dict[str, Any]) -> None:
    show_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if charge.card.engine == "cascade":
        parts = answer(exchange, http, charge, body, http.path)
    else:
        sent = encode(charge.card, body, http.path)
        if sent.passes:
            await _pass_through(exchange, http, charge, sent, show_usage)
            return
        parts = ask(exchange, http, charge, sent)
    if body.get("stream"):
        await _decoded_stream(http, charge, parts, show_usage)
        return
    result = collect([c async for c in parts], "chat.completion" if http.path == CHAT else "text_completion")
    await charge.settle()
    await http.json(result)


async def _pass_through(exchange: Exchange, http: Http, charge: Charge, sent: Sent, show_usage: bool) -> None:
    reply = await exchange.open(http, charge, sent.path, orjson.dumps(sent.body))
    try:
        if reply.status >= 400:
            raise await refusal(reply)
        if sent.body.get("stream"):
            await _with_error_event(http, relay(http, reply, charge, sent.body, show_usage))
            return
        data, charge.usage = counted(await whole(reply), sent.body)
        await charge.settle()
        await http.reply(200, data)
    finally:
        reply.close()


async def _decoded_stream(
    http: Http, charge: Charge, parts: AsyncIterator[dict[str, Any]], show_usage: bool
) -> None:
    async def send() -> None:
        async for chunk in parts:
            if chunk.get("usage") and not chunk.get("choices") and not show_usage:
                continue
            if not http.started:
                await http.start(200, EVENTS)
            await http.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await charge.settle()
        await http.end(DONE)

    await _with_error_event(http, send())


async def _with_error_event(http: Http, sending: Any) -> None:
    """Once the stream has begun, an error is an event and the end of the stream."""
    try:
        await sending
    except AtollError as error:
        if not http.started or http.gone:
            raise
        await http.end(error_event(error, http.path, http.id))
        raise

"""What the surfaces that translate share: a chat body, the caller's names for its fields, one way to serve."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from atoll.core.errors import AtollError
from atoll.core.types import Key
from atoll.gateway.chat import answer, begin
from atoll.gateway.checks import check_chat
from atoll.gateway.errors import invalid
from atoll.gateway.exchange import Charge, Exchange
from atoll.gateway.http import EVENTS, Http

Event = dict[str, Any]
Schema = TypeVar("Schema", bound=BaseModel)

PLACE = re.compile(r"messages\[(\d+)\](?:\.content\[(\d+)\])?")


@dataclass(frozen=True, slots=True)
class Call:
    """A request of another API as a chat body.

    `fields` maps chat fields to the caller's; `places` maps `messages[1].content[0]` to where the caller wrote it.
    `size` is the most bytes of text that the prompt can hold.
    """

    body: dict[str, Any]
    size: int
    streamed: bool
    fields: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


class View(Protocol):
    """An answer in the caller's API. Events are dicts with a `type`, which names them on the wire too."""

    def feed(self, chunk: dict[str, Any]) -> list[Event]:
        """One canonical chunk. Raises EngineFailed for a stream that makes no sense."""
        ...

    async def finish(self) -> list[Event]:
        """The last events; what must be stored is stored when this returns."""
        ...

    def result(self) -> dict[str, Any]:
        """The whole answer, after `finish`."""
        ...

    def failure(self, error: AtollError, request_id: str) -> Event:
        """The terminal event of a stream that broke."""
        ...


def parse(schema: type[Schema], body: dict[str, Any]) -> Schema:
    """Raises InvalidRequest that names the field and the rule."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise invalid(error, body) from None


async def serve(
    exchange: Exchange, http: Http, key: Key, call: Call, view: Callable[[Charge], View]
) -> None:
    """From admission to the last byte. Errors name the caller's own fields."""
    with named(call):
        card = exchange.models.resolve(call.body["model"])
        check_chat(card, call.body)
        charge = await begin(exchange, http, key, card, call.body, call.size)
        await exchange.guard(http, charge, _run(exchange, http, charge, call, view(charge)))


async def _run(exchange: Exchange, http: Http, charge: Charge, call: Call, view: View) -> None:
    try:
        async with aclosing(answer(exchange, http, charge, {**call.body, "stream": True})) as chunks:
            async for chunk in chunks:
                await _write(http, view.feed(chunk), call.streamed)
        last = await view.finish()
        await charge.settle()
        await _write(http, last, call.streamed)
        if call.streamed:
            await http.end()
        else:
            await http.json(view.result())
    except AtollError as error:
        if http.started and not http.gone:
            rename(error, call)
            await http.end(render([view.failure(error, http.id)]))
        raise


async def _write(http: Http, events: list[Event], streamed: bool) -> None:
    if not streamed or not events:
        return
    if not http.started:
        await http.start(200, EVENTS)
    await http.write(render(events))


def render(events: list[Event]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events)


@contextmanager
def named(call: Call) -> Iterator[None]:
    try:
        yield
    except AtollError as error:
        rename(error, call)
        raise


def rename(error: AtollError, call: Call) -> None:
    """Say what is wrong in the caller's words. Doing it twice changes nothing."""
    if error.param:
        place = PLACE.match(error.param)
        if place:
            known = call.places.get(place[0]) or call.places.get(f"messages[{place[1]}]")
            error.param = known or call.fields.get("messages", "messages")
        else:
            head, dot, rest = error.param.partition(".")
            error.param = call.fields.get(error.param) or call.fields.get(head, head) + dot + rest
    for ours, theirs in call.fields.items():
        quoted = rf"\b{ours}\b" if "_" in ours else rf"(?<=')\b{ours}(?=')"
        error.message = re.sub(quoted, theirs, error.message)
    error.args = (error.message,)

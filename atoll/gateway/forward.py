"""What the surfaces that pass a request on as it is share: which model, which fields, and the answer's way back."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.core.cards import Card
from atoll.core.errors import NotFound, Unsupported
from atoll.core.ports import Models, Reply
from atoll.gateway.checks import check_task
from atoll.gateway.exchange import Charge, Exchange
from atoll.gateway.http import Http
from atoll.gateway.stream import refusal


def pick(models: Models, name: str, task: str) -> Card:
    """The card of a model for `task`. Raises NotFound that lists what there is, InvalidRequest for another task's."""
    try:
        card = models.resolve(name)
    except NotFound:
        fit = ", ".join(sorted(c.id for c in models.cards().values() if c.task == task)) or "none installed"
        message = f"model '{name}' does not exist here; for {task} there are: {fit}"
        raise NotFound(message, param="model", code="model_not_found") from None
    check_task(card, task)
    return card


def check_fields(card: Card, given: Iterable[str], handled: set[str]) -> None:
    """Raises Unsupported naming the first field that `card` cannot honour."""
    for name in given:
        if name not in handled and name not in card.parameters:
            raise Unsupported(f"'{name}' is not supported by model '{card.id}'", param=name)


def served_name(card: Card) -> str:
    """What the engine behind `card` calls the model."""
    return card.remote.model if card.remote else card.id


async def opened(exchange: Exchange, http: Http, charge: Charge, path: str, body: bytes, content_type: str) -> Reply:
    """An answer that began well. Raises what the engine refused."""
    reply = await exchange.open(http, charge, path, body, content_type)
    if reply.status >= 400:
        try:
            raise await refusal(reply)
        finally:
            reply.close()
    return reply

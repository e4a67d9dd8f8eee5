"""OpenAI embeddings: checked here, computed and answered by the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import Field, StringConstraints

from atoll.core.cards import Card
from atoll.core.types import Key
from atoll.gateway.chat import drop_nulls
from atoll.gateway.exchange import Bound, Charge, Exchange
from atoll.gateway.forward import check_fields, opened, pick, served_name
from atoll.gateway.http import Http
from atoll.gateway.schemas import Loose
from atoll.gateway.stream import counted, whole
from atoll.gateway.translate import parse

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

EMBEDDINGS = "/v1/embeddings"
FRAME_TOKENS = 4
Text = Annotated[str, StringConstraints(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=100_000)]


class EmbeddingsRequest(Loose):
    model: str = Field(min_length=1, max_length=256)
    input: Text | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=2048)] | Tokens
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


async def serve_embeddings(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/embeddings."""
    raw = await http.body(gateway.limits.max_body_bytes)
    body = drop_nulls(gateway.parse(http, key, raw))
    request = parse(EmbeddingsRequest, body)
    exchange = gateway.exchange
    card = pick(exchange.models, request.model, "embedding")
    plain = {"encoding_format"} if request.encoding_format == "float" else set()
    check_fields(card, body, {"model", "input", "user", *plain})
    charge = await exchange.begin(http, key, card, Bound(most_tokens(card, request)))
    await exchange.guard(http, charge, _serve(exchange, http, charge, body))


def most_tokens(card: Card, request: EmbeddingsRequest) -> int:
    """A token is at least one byte of text; each text gets a few of the model's own around it."""
    given = request.input
    texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    sizes = [(len(t.encode()) if isinstance(t, str) else len(t)) + FRAME_TOKENS for t in texts]  # type: ignore[union-attr,arg-type]
    return sum(min(s, card.context) if card.context else s for s in sizes)


async def _serve(exchange: Exchange, http: Http, charge: Charge, body: dict[str, Any]) -> None:
    sent = orjson.dumps({**body, "model": served_name(charge.card)})
    reply = await opened(exchange, http, charge, EMBEDDINGS, sent, "application/json")
    data, charge.usage = counted(await whole(reply), body)
    await charge.settle()
    await http.reply(200, data)

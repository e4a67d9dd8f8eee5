"""Text in pictures: Atoll's own route, since no common API has one. Charged per character read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from atoll.core.errors import EngineFailed
from atoll.core.types import Key, Usage
from atoll.gateway.chat import drop_nulls
from atoll.gateway.exchange import Bound, Charge, Exchange
from atoll.gateway.forward import opened, pick, served_name
from atoll.gateway.http import Http
from atoll.gateway.schemas import Strict
from atoll.gateway.stream import json_object, whole
from atoll.gateway.translate import parse

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

OCR = "/atoll/v1/ocr"
ENGINE_OCR = "/v1/ocr"
MAX_CHARACTERS = 20_000


class OcrRequest(Strict):
    model: str = Field(min_length=1, max_length=256)
    image: str = Field(pattern=r"^data:image/")


async def serve_ocr(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /atoll/v1/ocr: {"model", "image": data URL} -> {"text", "lines": [{"text", "score", "box"}], "usage"}."""
    body = drop_nulls(gateway.parse(http, key, await http.body(gateway.limits.max_body_bytes)))
    request = parse(OcrRequest, body)
    exchange = gateway.exchange
    card = pick(exchange.models, request.model, "ocr")
    bound = Bound(0, min(len(request.image), MAX_CHARACTERS))
    charge = await exchange.begin(http, key, card, bound)
    await exchange.guard(http, charge, _read(exchange, http, charge, body, bound))


async def _read(exchange: Exchange, http: Http, charge: Charge, body: dict[str, Any], bound: Bound) -> None:
    sent = orjson.dumps({**body, "model": served_name(charge.card)})
    path = OCR if charge.card.remote else ENGINE_OCR
    reply = await opened(exchange, http, charge, path, sent, "application/json")
    data = await whole(reply)
    read = json_object(data).get("text")
    if not isinstance(read, str):
        raise EngineFailed("the engine's answer has no text")
    charge.usage = Usage(0, min(bound.output, len(read)))
    await charge.settle()
    await http.reply(200, data)

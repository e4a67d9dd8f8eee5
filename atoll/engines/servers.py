"""A card for a model of an OpenAI-compatible server, from what the server says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from atoll.core.cards import Card, parse_card
from atoll.core.errors import InvalidRequest, SetupError
from atoll.engines.hub import is_loopback
from atoll.engines.hubfiles import member
from atoll.engines.sources import checked_id, plain

TIMEOUT_S = 15.0
MAX_LIST = 8 << 20
CONTEXT_FIELDS = ("context", "max_model_len", "context_length", "context_window", "max_context_length")
TEXTS = ("title", "note", "task", "tools", "thinking", "unit", "licence", "jurisdiction")
LISTS = ("input", "output", "parameters")
OPENAI_PARAMETERS = (
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "n", "stop", "logit_bias", "logprobs",
    "top_logprobs",
)  # fmt: skip


async def server_card(url: str, request: Mapping[str, Any], secrets: Mapping[str, str]) -> Card:
    """Asks `url`/v1/models. The key's value is used here and stored nowhere. Raises InvalidRequest or SetupError."""
    key_env = str(request.get("key_env") or "")
    if key_env and not secrets.get(key_env):
        raise InvalidRequest(
            f"the environment variable {key_env} is not set where Atoll runs; set it and start Atoll again",
            param="key_env",
        )
    models = await _list(url, secrets.get(key_env, ""))
    found = _pick(url, models, request.get("model"))
    remote_name = str(found["id"])
    facts = _facts(found) if member(found, "task", str) else _assumed(found, request, url)
    if request.get("context"):
        facts["context"] = min(int(request["context"]), facts.get("context") or int(request["context"]))
        facts["max_output"] = min(facts.get("max_output") or facts["context"], facts["context"])
    table = {
        **facts,
        "id": checked_id(request.get("id"), remote_name.rpartition("/")[2]),
        "engine": "remote",
        "remote": {"url": url, "model": remote_name, **({"key_env": key_env} if key_env else {})},
    }
    return parse_card(table, f"{url}/v1/models, '{plain(remote_name)}'")


async def _list(url: str, key: str) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    local = is_loopback(urlsplit(url).hostname or "")
    try:
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=not local) as client,
            client.stream("GET", f"{url}/v1/models", headers=headers) as response,
        ):
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_LIST:
                    raise SetupError(f"{url} answers too much to GET /v1/models")
    except httpx.HTTPError as error:
        raise SetupError(f"no answer from {url}/v1/models: {error or type(error).__name__}") from None
    if response.status_code in {401, 403}:
        raise InvalidRequest(
            f"{url} refuses the key (HTTP {response.status_code}); name the variable that holds it as key_env",
            param="key_env",
        )
    if response.status_code != 200:
        raise SetupError(f"{url}/v1/models answers HTTP {response.status_code}: is this an OpenAI-compatible server?")
    try:
        rows = member(orjson.loads(body), "data", list) or []
    except orjson.JSONDecodeError:
        rows = []
    models = [row for row in rows if member(row, "id", str)]
    if not models:
        raise SetupError(f"{url}/v1/models lists no model: is this an OpenAI-compatible server?")
    return models


def _pick(url: str, models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    found = [m for m in models if m["id"] == wanted] if wanted else models
    if len(found) == 1:
        return found[0]
    names = ", ".join(plain(m["id"]) for m in models[:30]) + (", …" if len(models) > 30 else "")
    why = f"there is no model '{wanted}' at {url}" if wanted else f"{url} has {len(models)} models; say which"
    raise InvalidRequest(f"{why}. There are: {names}", param="model")


def _facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Another Atoll tells everything that a card needs; values of other kinds than a card's are left out."""
    texts = {name: plain(text) for name in TEXTS if (text := member(model, name, str))}
    whole = {name: n for name in ("context", "max_output") if (n := member(model, name, int))}
    lists = {name: tuple(plain(str(i)) for i in items) for name in LISTS if (items := member(model, name, list))}
    told = member(model, "price", dict) or {}
    price = {name: n for name in ("input", "output", "cached") if (n := member(told, name, int | float))}
    schema = {"json_schema": model.get("json_schema") is True}
    return {"title": plain(str(model["id"])), **texts, **whole, **lists, **schema, "price": price}


def _assumed(model: Mapping[str, Any], request: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Other servers tell at most the context; the rest is what OpenAI-compatible servers usually honour."""
    told = next((n for f in CONTEXT_FIELDS if (n := member(model, f, int)) and n > 0), 0)
    context = told or int(request.get("context") or 0)
    if not context:
        raise InvalidRequest(f"{url} does not say how long the context of '{model['id']}' is", param="context")
    return {
        "title": plain(model["id"]) or "model",
        "task": "chat",
        "note": "Its server does not list its abilities; correct this card where they differ.",
        "context": context,
        "max_output": max(1, context // 2),
        "tools": "native",
        "json_schema": True,
        "parameters": OPENAI_PARAMETERS,
    }

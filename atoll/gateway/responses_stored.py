"""Stored responses: read, list what was asked, delete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from atoll.core.errors import AtollError, InvalidRequest, NotFound, Unsupported
from atoll.core.types import Key
from atoll.gateway.http import Http

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

RESPONSES = "/v1/responses"


async def stored_response(gateway: Gateway, key: Key, id: str, param: str | None) -> dict[str, Any]:
    if gateway.responses is None:
        raise NotFound("this gateway keeps no responses", param=param)
    try:
        return await gateway.responses.get(id, key.id, time.time())
    except NotFound as error:
        error.param = param
        raise


async def serve_stored(gateway: Gateway, http: Http, key: Key) -> None:
    """GET and DELETE /v1/responses/{id}, GET /v1/responses/{id}/input_items."""
    id, _, rest = http.path.removeprefix(RESPONSES + "/").partition("/")
    method = http.scope["method"]
    query = {k: v[-1] for k, v in parse_qs(http.scope.get("query_string", b"").decode("latin-1")).items()}
    if (method, rest) == ("GET", ""):
        if query.get("stream", "false").lower() != "false":
            raise Unsupported("'stream' is not supported here: a finished response is sent whole", param="stream")
        found = await stored_response(gateway, key, id, None)
        await http.json(found["response"])
    elif (method, rest) == ("DELETE", ""):
        await stored_response(gateway, key, id, None)
        assert gateway.responses is not None
        await gateway.responses.delete(id, key.id)
        await http.json({"id": id, "object": "response", "deleted": True})
    elif (method, rest) == ("GET", "input_items"):
        found = await stored_response(gateway, key, id, None)
        await http.json(page(found["input"], query))
    elif (method, rest) == ("POST", "cancel"):
        raise InvalidRequest("only background responses can be cancelled, and there are none here")
    else:
        raise _no_such(method, http.path)


def page(items: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of a list, newest first unless `order` is asc. Raises InvalidRequest naming the query field."""
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= 100:
        raise InvalidRequest(f"limit: must be a number from 1 to 100, not '{limit[:20]}'", param="limit")
    if order not in {"asc", "desc"}:
        raise InvalidRequest(f"order: must be asc or desc, not '{order[:20]}'", param="order")
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in listed]
        if after not in ids:
            raise InvalidRequest(f"after: there is no item '{after[:80]}'", param="after")
        listed = listed[ids.index(after) + 1 :]
    data = listed[: int(limit)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(listed) > len(data),
    }


def _no_such(method: str, path: str) -> AtollError:
    if path.count("/") > 3:
        message = f"there is nothing at {method} {path}; the API is described at /openapi.json"
        return NotFound(message, code="unknown_path")
    error = InvalidRequest(f"{method} is not offered at {path}", code="method_not_allowed")
    error.status = 405
    return error

"""The one place where errors become HTTP, in the body shape of the API that was called."""

from __future__ import annotations

import math
from typing import Any

import orjson
from pydantic import ValidationError

from atoll.core.errors import AtollError, InvalidRequest
from atoll.gateway.http import JSON, Headers, Http

OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: AtollError, path: str, request_id: str) -> dict[str, Any]:
    """The JSON body: Anthropic's shape under /v1/messages, OpenAI's everywhere else."""
    client_fault = error.status < 500
    if path.startswith("/v1/messages"):
        kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if client_fault else "api_error")
        named = error.param is None or error.message.startswith(error.param)
        message = error.message if named else f"{error.param}: {error.message}"
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    kind = OPENAI_TYPES.get(error.status, "invalid_request_error" if client_fault else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_event(error: AtollError, path: str, request_id: str) -> bytes:
    """A terminal server-sent event for a stream that has begun."""
    name = b"event: error\n" if path.startswith(("/v1/messages", "/v1/responses")) else b""
    body = error_body(error, path, request_id)
    if path.startswith("/v1/responses"):
        body = {"type": "error", "sequence_number": 0, "param": error.param, **body["error"], "code": error.code}
    return name + b"data: " + orjson.dumps(body) + b"\n\n"


async def send_error(http: Http, error: AtollError) -> None:
    headers: Headers = [JSON]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if not error.retryable:
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await http.reply(error.status, orjson.dumps(error_body(error, http.path, http.id)), headers)


def invalid(error: ValidationError, body: Any = None) -> InvalidRequest:
    """The deepest thing wrong, named as `messages[0].role`; `body` is what was validated."""
    found = [(_where(e["loc"], body, e["type"]), e) for e in error.errors(include_url=False, include_context=False)]
    where, first = max(found, key=lambda pair: _depth(pair[0])) if body is not None else found[0]
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    if first["type"] == "extra_forbidden":
        message, code = "this field is not supported", "unsupported_parameter"
    return InvalidRequest(f"{where}: {message}" if where else message, param=where or None, code=code)


def _depth(where: str) -> int:
    return where.count(".") + where.count("[")


def _where(loc: tuple[int | str, ...], body: Any, kind: str) -> str:
    """pydantic's location without the names of union branches: with the body at hand, what is not in it is one."""
    where, value = "", body
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(part, int):
            where += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
            continue
        if body is None:
            named = part.replace("_", "").isalnum() and part[:1].islower()
        else:
            named = isinstance(value, dict) and (part in value or (last and kind == "missing"))
        if named:
            where += f".{part}" if where else part
            value = value.get(part) if isinstance(value, dict) else None
    return where

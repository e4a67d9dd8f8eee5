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
        message = f"{error.param}: {error.message}" if error.param else error.message
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


def invalid(error: ValidationError) -> InvalidRequest:
    """The first thing wrong, named as `messages[0].role`."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part.replace("_", "").isalnum() and part[:1].islower():
            where += f".{part}" if where else part
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return InvalidRequest(f"{where}: {message}" if where else message, param=where or None, code=code)

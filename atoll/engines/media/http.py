"""What every route of the worker needs: the token, body limits, JSON in and out, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.core.errors import AtollError, EngineFailed, InvalidRequest, TooLarge, Unauthenticated, Unsupported

T = TypeVar("T")
MAX_BODY = 64 << 20


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


class Guard:
    """Refuses requests without the bearer token, and bodies over `MAX_BODY`, before they are read."""

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            return await problem(Unauthenticated("The bearer token is missing or wrong."))(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return await problem(_too_large())(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise _too_large()
            return message

        await self._app(scope, counted, send)


def _too_large() -> TooLarge:
    return TooLarge(f"The request body is over {MAX_BODY >> 20} MiB.")


def json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def error_body(error: AtollError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "code": error.code, "param": error.param}}


def problem(error: AtollError) -> Response:
    headers = {"retry-after": str(max(1, round(error.retry_after)))} if error.retry_after else None
    return json(error_body(error), error.status, headers)


async def on_atoll_error(request: Request, error: AtollError) -> Response:
    return problem(error)


async def on_http_error(request: Request, error: HTTPException) -> Response:
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = {"error": {"message": str(error.detail), "type": kind, "code": code, "param": None}}
    return json(body, error.status_code, dict(error.headers or {}))


async def on_gone(request: Request, error: ClientGone) -> Response:
    return Response(status_code=499)


async def on_crash(request: Request, error: Exception) -> Response:
    """A defect: the server logs its traceback, the client learns only that it happened."""
    return problem(EngineFailed("The media engine failed on this request; its log says why."))


async def read_json(request: Request, known: set[str]) -> dict[str, Any]:
    """The body as a JSON object with only `known` keys; null counts as absent. Raises InvalidRequest, Unsupported."""
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in known:
            raise Unsupported(f"{name} is not supported by this model.", param=name)
    return given


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it when the client closes the connection. The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait([task, gone])


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

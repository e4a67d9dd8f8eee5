"""The public API as an ASGI application: find the handler, authenticate, serve, render errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from atoll.core.errors import AtollError, Forbidden, NotFound
from atoll.core.ports import Responses
from atoll.core.types import Key
from atoll.gateway.audio import SPEECH, TRANSCRIPTIONS, serve_speech, serve_transcriptions
from atoll.gateway.chat import CHAT, COMPLETIONS, chat
from atoll.gateway.embeddings import EMBEDDINGS, serve_embeddings
from atoll.gateway.errors import send_error
from atoll.gateway.exchange import Exchange
from atoll.gateway.http import Http, RequestIds, parse_json
from atoll.gateway.messages import COUNT, MESSAGES, serve_count, serve_messages
from atoll.gateway.ocr import OCR, serve_ocr
from atoll.gateway.responses import serve_responses
from atoll.gateway.responses_stored import RESPONSES, serve_stored

log = logging.getLogger("atoll.gateway")

Handler = Callable[["Gateway", Http, Key], Awaitable[None]]

OPERATOR = Key("operator", "local operator", "admin", "", "")


@dataclass(frozen=True, slots=True)
class Limits:
    max_body_bytes: int = 32 * 1024 * 1024


class Gateway:
    """`models` serve on the hot path here; everything else (`rest`) is an ordinary Starlette application.

    `hot` are the paths whose requests the server may hand over with their body (`server.Cycle`).
    Requests that come in over `operator_socket`, which only this user can open, are the local operator's.
    """

    rest: ASGIApp

    def __init__(
        self, exchange: Exchange, limits: Limits, operator_socket: str = "", responses: Responses | None = None
    ) -> None:
        self.exchange = exchange
        self.responses = responses
        self.limits = limits
        self.ids = RequestIds()
        self.operator_socket = operator_socket
        self.routes: dict[str, Handler] = {
            CHAT: serve_chat,
            COMPLETIONS: serve_chat,
            MESSAGES: serve_messages,
            COUNT: serve_count,
            RESPONSES: serve_responses,
            EMBEDDINGS: serve_embeddings,
            TRANSCRIPTIONS: serve_transcriptions,
            SPEECH: serve_speech,
            OCR: serve_ocr,
        }
        self.hot = frozenset(path.encode() for path in self.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self.routes.get(scope.get("path", ""))
        if scope["type"] != "http" or handler is None or scope["method"] != "POST":
            if scope["type"] != "http" or not scope["path"].startswith(RESPONSES + "/"):
                await self.rest(scope, receive, send)
                return
            handler = serve_stored
        http = Http(scope, receive, self.ids.new())
        try:
            await handler(self, http, self.identify(scope, http.header))
        except AtollError as error:
            if not http.started and not http.gone:
                await send_error(http, error)
        except asyncio.CancelledError:
            if not http.gone:
                raise
        except Exception:
            log.exception("request %s failed", http.id)
            if not http.started:
                await send_error(http, AtollError(f"internal error; the log has the details under {http.id}"))

    def parse(self, http: Http, key: Key, raw: bytes) -> dict[str, Any]:
        """The JSON body of a request, whose residency rule goes to `http.place`. Raises InvalidRequest or Forbidden."""
        http.place, body = self.exchange.placing.take(key, parse_json(raw))
        return body

    def identify(self, scope: Scope, header: Callable[[bytes], str | None]) -> Key:
        """The caller: by bearer token or x-api-key, or the local operator. Raises Unauthenticated."""
        server = scope.get("server")
        if server and server[1] is None and server[0] == self.operator_socket:
            return OPERATOR
        bearer = header(b"authorization") or ""
        secret = bearer[7:] if bearer[:7].lower() == "bearer " else header(b"x-api-key")
        return self.exchange.accounts.identify(secret)


async def serve_chat(gateway: Gateway, http: Http, key: Key) -> None:
    raw = await http.body(gateway.limits.max_body_bytes)
    await chat(gateway.exchange, http, key, raw, gateway.parse(http, key, raw))


def require_admin(key: Key) -> None:
    if key.role != "admin":
        raise Forbidden("this needs a key with the role 'admin'")


def no_such_path(path: str) -> NotFound:
    return NotFound(f"there is nothing at {path}; the API is described at /openapi.json", code="unknown_path")

"""The Starlette application around the model calls: admin API, health, metrics, the API document, the console."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.core.errors import AtollError, InvalidRequest, NotFound
from atoll.gateway.admin import reply
from atoll.gateway.errors import error_body
from atoll.gateway.metrics import Metrics
from atoll.gateway.openapi import document

log = logging.getLogger("atoll.gateway")

CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)


class SecureHeaders:
    """Adds the headers that keep the console to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", CONTENT_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Part(Protocol):
    """A part of the API, with its paths."""

    def routes(self) -> Sequence[BaseRoute]: ...


def build_rest(
    parts: Sequence[Part], metrics: Metrics, console: Path, waiting_for: Callable[[], list[str]]
) -> Starlette:
    """`parts` are asked in this order for what serves a path."""

    async def health(_: Request) -> Response:
        return reply({"status": "ok"})

    async def ready(_: Request) -> Response:
        missing = waiting_for()
        return reply({"ready": not missing, "waiting_for": missing}, 503 if missing else 200)

    async def prometheus(_: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: Request) -> Response:
        return reply(document())

    async def index(_: Request) -> Response:
        return FileResponse(console / "index.html", headers={"cache-control": "no-cache"})

    return Starlette(
        routes=[
            *(route for part in parts for route in part.routes()),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", prometheus),
            Route("/openapi.json", openapi),
            Route("/", index),
            Mount("/console", StaticFiles(directory=console)),
        ],
        middleware=[Middleware(SecureHeaders)],
        exception_handlers={AtollError: on_error, HTTPException: on_http_error, Exception: on_crash},
    )


async def on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AtollError)
    response = reply(error_body(error, request.url.path, ""), error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    return response


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    ours: AtollError = InvalidRequest(str(error.detail))
    if error.status_code == 404:
        ours = NotFound(f"there is nothing at {path}; the API is described at /openapi.json", code="unknown_path")
    elif error.status_code == 405:
        ours = InvalidRequest(f"{request.method} is not offered at {path}", code="method_not_allowed")
    response = reply(error_body(ours, path, ""), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def on_crash(request: Request, error: Exception) -> Response:
    reference = os.urandom(6).hex()
    log.error("request %s failed", reference, exc_info=error)
    ours = AtollError(f"internal error; the log has the details under {reference}")
    return reply(error_body(ours, request.url.path, reference), 500)

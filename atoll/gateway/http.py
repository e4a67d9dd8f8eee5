"""One HTTP request and its answer, over plain ASGI: what every surface reads from and writes to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from atoll.core.errors import InvalidRequest, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Http:
    """`gone` is true once the client has left; `started` once the status line is sent."""

    __slots__ = ("_receive", "_send", "_watch", "extra", "gone", "id", "path", "scope", "started")

    def __init__(self, scope: Message, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.id = request_id
        self.started = False
        self.gone = False
        self.extra: Headers = [(b"x-request-id", request_id.encode())]
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> str | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return value.decode("latin-1")
        return None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge beyond `limit` bytes, without reading further."""
        declared = self.header(b"content-length")
        if declared and declared.isdigit() and int(declared) > limit:
            raise TooLarge(f"the body is {declared} bytes; the limit is {limit} (setting: max_body_bytes)")
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is over {limit} bytes (setting: max_body_bytes)")
            if not message.get("more_body"):
                return part if not parts else b"".join([*parts, part])
            parts.append(part)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client goes away before the answer is complete, instead of an earlier
        callback. After `body` only."""
        self.unwatch()
        self._watch = asyncio.ensure_future(self._await_disconnect(callback))

    async def _await_disconnect(self, callback: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        callback()

    def unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.extra]})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.unwatch()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def reply(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A complete answer; JSON unless `headers` says otherwise."""
        await self.start(status, [*(headers or [JSON]), (b"content-length", str(len(body)).encode())])
        await self.end(body)

    async def json(self, value: Any, status: int = 200) -> None:
        await self.reply(status, orjson.dumps(value))


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value

"""One HTTP request and its answer, over plain ASGI: what every surface reads from and writes to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import orjson

from atoll.core.errors import InvalidRequest, TooLarge
from atoll.gateway.placing import Place

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = list[tuple[bytes, bytes]]

WIRE = "atoll.wire"
CYCLE = "atoll.cycle"
BODY = "atoll.body"
REASONS = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}

JSON = (b"content-type", b"application/json")
EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class RequestIds:
    """Ids begin with the time in milliseconds, so that ledger rows of one moment lie side by side on disk. Their random
    part is fetched for many at once: asking the system gives up the interpreter lock."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[str] = []

    def new(self) -> str:
        if not self._parts:
            drawn = os.urandom(8 * 256).hex()
            self._parts = [drawn[i : i + 16] for i in range(0, len(drawn), 16)]
        return f"req_{int(time.time() * 1000):012x}{self._parts.pop()}"


class Http:
    """`gone` is true once the client has left; `started` once the status line is sent.

    The answer is framed here and written to the connection (`scope[WIRE]`, a `server.Protocol`) in one piece,
    which costs half of what ASGI's two messages do. `scope[BODY]` is the body where the server has read it already.
    """

    __slots__ = ("_cycle", "_receive", "_wire", "extra", "gone", "id", "path", "place", "scope", "started")

    def __init__(self, scope: Message, receive: Receive, request_id: str) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.id = request_id
        self.place: Place | None = None
        self.started = False
        self.gone = False
        self.extra: Headers = [(b"x-request-id", request_id.encode())]
        self._receive = receive
        self._wire = scope[WIRE]
        self._cycle = scope[CYCLE]

    def served_by(self, region: str, endpoint: str) -> None:
        """Tell the client where its answer comes from; the last word before the answer begins counts."""
        if not self.started:
            placed = ((b"x-atoll-region", region), (b"x-atoll-decision", endpoint))
            self.extra[1:] = [(name, told.encode("latin-1", "replace")) for name, told in placed]

    def header(self, name: bytes) -> str | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return value.decode("latin-1")
        return None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge beyond `limit` bytes, without reading further."""
        read = self.scope.get(BODY)
        if read is not None and len(read) <= limit:
            return read
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

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Call `callback`, the last one given, when the client goes away before the answer is complete.
        After `body` only."""

        def left() -> None:
            self.gone = True
            callback()

        if self._wire.transport.is_closing():
            left()
        else:
            self._wire.lost = left

    def cancel_when_gone(self) -> None:
        """Cancel the task that calls this when the client goes away."""
        task = asyncio.current_task(self._wire.loop)
        assert task is not None
        self.on_gone(task.cancel)

    def unwatch(self) -> None:
        self._wire.lost = None

    async def start(self, status: int, headers: Headers) -> None:
        """Begin an answer of unknown length."""
        self.started = True
        self._wire.begin(self._cycle, self._head(status, headers, b"transfer-encoding: chunked\r\n\r\n"))

    def push(self, data: bytes) -> bool:
        """Send a piece at once; true when the client is behind, and `drained` should be awaited."""
        if data and not self.gone:
            self._wire.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return self._wire.flow.write_paused

    async def drained(self) -> None:
        await self._wire.drained()

    async def write(self, data: bytes) -> None:
        if self.push(data):
            await self.drained()

    async def end(self, data: bytes = b"") -> None:
        self.unwatch()
        self._wire.finish(self._cycle, b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")

    async def reply(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A complete answer; JSON unless `headers` says otherwise."""
        self.unwatch()
        self.started = True
        length = b"content-length: %d\r\n\r\n" % len(body)
        self._wire.finish(self._cycle, self._head(status, headers or [JSON], length) + body)

    def _head(self, status: int, headers: Headers, last: bytes) -> bytes:
        lines = b"".join([b"%b: %b\r\n" % pair for pair in (*headers, *self.extra)])
        close = b"" if self._cycle.keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 %b\r\n%b%b%b" % (REASONS[status], lines, close, last)

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

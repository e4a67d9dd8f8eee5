"""The WebSocket endpoint of policies, as an ASGI application for one route with the path parameter `id`.

The service speaks first (metadata); then the client: `begin`, `observe`, `stop`, `reset`. docs/guides/policies.md has
the messages. What else speaks through here (adapters) brings a `Dialect`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import parse_qsl

import orjson
from starlette.types import Message, Receive, Scope, Send

from atoll.core.errors import AtollError, InvalidRequest, Overloaded
from atoll.core.types import Key
from atoll.physical.serve.line import Line, refusal
from atoll.physical.serve.service import Service
from atoll.physical.serve.wire import pack, unpack

MAX_SESSIONS = 64
MAX_UNREAD = 256
RECHECK_S = 5.0
GOING_AWAY, REFUSED, TOO_SLOW = 1012, 1008, 1013

Identify = Callable[[str | None], Key]
Frame = bytes | str


class Dialect(Protocol):
    """How messages look on the wire; a dialect may be one connection's and keep what it needs."""

    def read(self, frame: Frame) -> dict[str, Any]:
        """Raises InvalidRequest."""
        ...

    def write(self, message: dict[str, Any]) -> Frame | None:
        """None: this dialect has no such message."""
        ...


class Native:
    """MessagePack, or JSON to who speaks it (`text`)."""

    text = False

    def read(self, frame: Frame) -> dict[str, Any]:
        self.text = isinstance(frame, str)
        return unpack(frame)

    def write(self, message: dict[str, Any]) -> Frame:
        return pack(message, self.text)


class Endpoint:
    """The query of the address may have `consent=true` instead of a `begin` (with `simulated=true`), and
    `format=json`. `dialect` makes one for each connection."""

    def __init__(self, service: Service, identify: Identify, dialect: Callable[[], Dialect] = Native) -> None:
        self.service, self.identify, self.dialect = service, identify, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        secret = _secret(scope)
        try:
            ticketed = self.service.redeem(secret or "")
            key = ticketed or self.identify(secret)
            served = self.service.served(scope["path_params"]["id"])
            if len(served.lines) >= MAX_SESSIONS:
                raise Overloaded(f"policy '{served.name}' has {MAX_SESSIONS} sessions already")
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            dialect = self.dialect()
            if isinstance(dialect, Native):
                dialect.text = query.get("format") == "json"
        except AtollError as error:
            await _reject(receive, send, error)
            return
        await receive()
        await send({"type": "websocket.accept"})
        connection = Connection(dialect, send)
        line = Line(served, key, connection.put, connection.leave)
        try:
            connection.put(line.metadata())
            if query.get("consent") == "true":
                line.begin({"consent": True, "simulated": query.get("simulated") == "true"})
            await connection.flush()
            await self._converse(connection, line, receive, lambda: ticketed or self.identify(secret))
        finally:
            line.close()
            connection.close()

    async def _converse(
        self, connection: Connection, line: Line, receive: Receive, check: Callable[[], Key]
    ) -> None:
        checked = time.monotonic()
        while (frame := _frame(await receive())) is not None:
            try:
                if time.monotonic() - checked > RECHECK_S:
                    check()
                    checked = time.monotonic()
            except AtollError as error:
                line.end(error.message)
            message: dict[str, Any] = {}
            try:
                message = connection.dialect.read(frame)
                await self._take(connection, line, message)
            except AtollError as error:
                connection.put(refusal(error, message.get("seq")))
            await connection.flush()

    async def _take(self, connection: Connection, line: Line, message: dict[str, Any]) -> None:
        match message["type"]:
            case "observe":
                with connection.attended():
                    line.observe(message)
            case "begin":
                line.begin(message)
            case "stop":
                token = await self.service.stop(line.name, line.by, str(message.get("reason", ""))[:200])
                connection.put({"type": "token", "token": token})
            case "reset":
                await self.service.reset(line.name, str(message.get("token", "")), line.by)
            case other:
                known = "begin, observe, stop, reset"
                raise InvalidRequest(f"there is no message '{other[:40]}'; there are: {known}", param="type")


class Connection:
    """What is to be sent, in order. Those who decide put it here and never wait; a client that does not read what it is
    sent is let go."""

    def __init__(self, dialect: Dialect, send: Send) -> None:
        self.dialect = dialect
        self._send = send
        self._unsent: deque[Message] = deque()
        self._sending = self._over = self._attended = False
        self._task: asyncio.Task[None] | None = None

    def put(self, message: dict[str, Any]) -> None:
        frame = self.dialect.write(message)
        if frame is not None:
            self._append({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})

    def leave(self, why: str) -> None:
        self._append({"type": "websocket.close", "code": GOING_AWAY, "reason": why[:120]})
        self._over = True

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Whoever puts something within flushes it."""
        self._attended = True
        try:
            yield
        finally:
            self._attended = False

    async def flush(self) -> None:
        """Send what is there; returns at once where that is being done."""
        if self._sending:
            return
        self._sending = True
        try:
            while self._unsent:
                await self._send(self._unsent.popleft())
        finally:
            self._sending = False

    def close(self) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def _append(self, message: Message) -> None:
        if self._over:
            return
        if len(self._unsent) >= MAX_UNREAD:
            self._unsent.clear()
            message = {"type": "websocket.close", "code": TOO_SLOW, "reason": "the client does not read"}
            self._over = True
        self._unsent.append(message)
        if not self._attended and not self._sending and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._flush_unattended())

    async def _flush_unattended(self) -> None:
        with contextlib.suppress(OSError):
            await self.flush()


def _frame(message: Message) -> Frame | None:
    """None when the client has left."""
    if message["type"] != "websocket.receive":
        return None
    text = message.get("text")
    return message["bytes"] if text is None else text


def _secret(scope: Scope) -> str | None:
    """The API key: 'Authorization: Bearer <key>' (or Api-Key, as openpi's client says it), or x-api-key."""
    headers = dict(scope["headers"])
    kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() in ("bearer", "api-key"):
        return secret.strip()
    found = headers.get(b"x-api-key")
    return found.decode("latin-1") if found else None


async def _reject(receive: Receive, send: Send, error: AtollError) -> None:
    """An ordinary HTTP answer instead of a WebSocket."""
    await receive()
    body = orjson.dumps({"error": {"message": error.message, "type": type(error).__name__, "code": error.code}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})

"""The WebSocket endpoint of policies, as an ASGI application for one route with the path parameter `id`.

The service speaks first (metadata); then the client: `begin`, `observe`, `stop`, `reset`. docs/guides/policies.md has
the messages. What else speaks through here (adapters) brings a `Dialect`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from atoll.core.errors import AtollError, InvalidRequest, Overloaded
from atoll.core.ports import SOCKET, Socket
from atoll.core.types import Key
from atoll.physical.serve.line import Line, refusal
from atoll.physical.serve.service import Service
from atoll.physical.serve.wire import pack, unpack

log = logging.getLogger("atoll.physical")

MAX_SESSIONS = 64
RECHECK_S = 5.0
GOING_AWAY = 1012

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
        except AtollError as error:
            await _reject(receive, send, error)
            return
        await receive()
        await send({"type": "websocket.accept"})
        talk = Talk(self.service, self.dialect(), scope[SOCKET], send)
        talk.check = lambda: ticketed or self.identify(secret)
        talk.line = Line(served, key, talk.put, talk.leave)
        try:
            talk.open(dict(parse_qsl(scope["query_string"].decode("latin-1"))))
            while (message := await receive())["type"] == "websocket.receive":
                talk.hear(message["bytes"] if message.get("text") is None else message["text"])
        finally:
            talk.close()


class Talk:
    """One connection. What is heard is answered where it arrives."""

    line: Line
    check: Callable[[], Key]

    def __init__(self, service: Service, dialect: Dialect, socket: Socket, send: Send) -> None:
        self._service, self._dialect, self._socket, self._send = service, dialect, socket, send
        self._checked = time.monotonic()
        self._over = self._unkept = False
        self._token: str | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, query: dict[str, str]) -> None:
        if isinstance(self._dialect, Native):
            self._dialect.text = query.get("format") == "json"
        self.put(self.line.metadata())
        if query.get("consent") == "true":
            polls = not isinstance(self._dialect, Native)
            self.line.begin({"consent": True, "simulated": query.get("simulated") == "true", "polls": polls})
        self._socket.listen(self.hear)

    def hear(self, frame: Frame) -> None:
        message: dict[str, Any] = {}
        try:
            message = self._dialect.read(frame)
            self._take(message)
        except AtollError as error:
            self.put(refusal(error, message.get("seq")))

    def put(self, message: dict[str, Any]) -> None:
        frame = None if self._over else self._dialect.write(message)
        if frame is not None:
            self._socket.say(frame)

    def leave(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._spawn(self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": why[:120]}))

    def close(self) -> None:
        self._over = True
        self.line.close()

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "observe":
                self._recheck()
                self.line.observe(message)
            case "begin":
                self.line.begin(message)
            case "stop":
                self._stop(str(message.get("reason", ""))[:200])
            case "reset":
                self._service.free(self.line.name, str(message.get("token", "")), self.line.by)
                self._keep()
            case other:
                known = "begin, observe, stop, reset"
                raise InvalidRequest(f"there is no message '{other[:40]}'; there are: {known}", param="type")

    def _recheck(self) -> None:
        """A key that is revoked moves nothing any more."""
        if time.monotonic() - self._checked > RECHECK_S:
            self._checked = time.monotonic()
            try:
                self.check()
            except AtollError as error:
                self.line.end(error.message)

    def _stop(self, reason: str) -> None:
        token = self._service.halt(self.line.name, self.line.by, reason)
        self._token = token or self._token or ""
        self._keep()

    def _keep(self) -> None:
        """What holds is written beside the conversation, however often it changes meanwhile."""
        self._unkept = True
        if self._keeping is None or self._keeping.done():
            self._keeping = self._spawn(self._kept())

    async def _kept(self) -> None:
        while self._unkept:
            self._unkept = False
            await self._service.keep(self.line.name)
        if self._token is not None:
            self.put({"type": "token", "token": self._token})
            self._token = None

    def _spawn(self, doing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._told)
        return task

    def _told(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AtollError):
            self.put(refusal(error))
        elif error is not None and not isinstance(error, OSError):
            log.error("session %s failed", self.line.id, exc_info=error)


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

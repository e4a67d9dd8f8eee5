"""The HTTP server: uvicorn, hardened against clients that send or read too slowly, or too much."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from atoll.core.errors import SetupError
from atoll.core.ports import SOCKET
from atoll.gateway.http import BODY, CYCLE, WIRE

HEAD_SECONDS = 10.0
BODY_SECONDS = 120.0
STALL_SECONDS = 30.0
MAX_HEAD_BYTES = 64 * 1024
WRITE_BUFFER = 256 * 1024
SHORT_BODY = HIGH_WATER_LIMIT


class Nobody:
    """The event of a request that nobody waits for."""

    def set(self) -> None: ...


class Cycle:
    """A request whose body is short and read before its handler starts. It stands in for uvicorn's own cycle, which is
    made to take bodies and answers in pieces and costs as much as reading the request."""

    __slots__ = (
        "body", "disconnected", "keep_alive", "message_event", "more_body", "on_response", "protocol",
        "response_complete", "response_started", "scope",
    )  # fmt: skip

    def __init__(self, protocol: Protocol, keep_alive: bool) -> None:
        self.protocol = protocol
        self.scope = protocol.scope
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.message_event = NOBODY
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False

    async def run_asgi(self, app: ASGIApp) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            if not self.response_complete:
                self.protocol.transport.close()
            self.scope.clear()  # it holds this cycle: the two would wait for the collector

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.scope[BODY], "more_body": False}

    async def send(self, message: Any) -> None:
        raise RuntimeError("this answer is written by Http")


NOBODY = Nobody()


class Protocol(HttpToolsProtocol):
    """A connection must send a whole request head in 10 s and its body in 120 s, and keep reading its answer:
    one whose send buffer stays full for 30 s is closed, so that nobody's memory is held for it."""

    _phase = "head"
    _timed = "idle"
    _head_bytes = 0
    _reading: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _kept: asyncio.TimerHandle | None = None
    _idle_since = 0.0
    lost: Callable[[], None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._watch_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = "idle"
        self._watch_phase()
        self._drain_by(None)
        if self._kept is not None:
            self._kept.cancel()
        super().connection_lost(exc)
        if self.lost is not None:
            self.lost()
            self.lost = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._phase == "head":
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")
        if self._phase != self._timed:
            self._watch_phase()

    def on_message_begin(self) -> None:
        self._phase, self._head_bytes = "head", 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._phase = "idle" if self.parser.should_upgrade() else "body"
        self.scope[WIRE] = self
        if self._is_short():
            self.scope["method"], self.scope["path"] = "POST", self.url.decode()
            self.cycle = Cycle(self, self.parser.should_keep_alive())
        else:
            super().on_headers_complete()
        self.scope[CYCLE] = self.cycle

    def on_message_complete(self) -> None:
        self._phase = "idle"
        super().on_message_complete()
        if type(self.cycle) is Cycle:
            self.scope[BODY] = bytes(self.cycle.body)
            self._start_asgi_task(self.cycle, self.app)

    def on_response_complete(self) -> None:
        """As uvicorn's, but with a timer a connection instead of two calls to the loop a request."""
        self._idle_since = self.loop.time()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._kept is None:
            self._kept = self.loop.call_later(self.timeout_keep_alive, self._close_idle)

    def _close_idle(self) -> None:
        self._kept = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self._phase != "idle" or not self.cycle.response_complete:
            left = self.timeout_keep_alive
        if left > 0:
            self._kept = self.loop.call_later(left, self._close_idle)
        else:
            self.transport.close()

    def _is_short(self) -> bool:
        """A request to a model that need not wait, whose body tells its length and fits the buffer of one read."""
        if self.url not in getattr(self.app, "hot", ()) or self.parser.get_method() != b"POST":
            return False
        if self.expect_100_continue or self.parser.should_upgrade() or self.parser.get_http_version() != "1.1":
            return False
        if (self.cycle is not None and not self.cycle.response_complete) or len(self.tasks) >= self.limit_concurrency:
            return False
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= SHORT_BODY

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain_by(STALL_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drain_by(None)

    def begin(self, cycle: RequestResponseCycle | Cycle, head: bytes) -> None:
        """Send status line and headers; what follows is the caller's to frame, until `finish`. `cycle` is the request's
        own: on a connection with requests sent ahead, `self.cycle` is the last of them."""
        cycle.response_started = True
        self.transport.write(head)

    def finish(self, cycle: RequestResponseCycle | Cycle, data: bytes) -> None:
        """Send the last bytes of an answer (all of it, where nothing was begun) and free the connection."""
        if self.transport.is_closing():
            return
        self.lost = None
        cycle.response_started = cycle.response_complete = True
        self.transport.write(data)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    async def drained(self) -> None:
        """Wait while the client is behind in reading."""
        await self.flow.drain()

    def _watch_phase(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._timed = self._phase
        if self._phase != "idle":
            seconds = HEAD_SECONDS if self._phase == "head" else BODY_SECONDS
            self._reading = self.loop.call_later(seconds, self._refuse, b"408 Request Timeout")

    def _drain_by(self, seconds: float | None) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        self._stalled = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def _refuse(self, status: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
        else:
            self.transport.abort()


class Socket(WebSocketsSansIOProtocol):
    """Implements `core.ports.Socket`, which the application finds in its scope."""

    hear: Callable[[bytes | str], None] | None = None

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope[SOCKET] = self

    def listen(self, hear: Callable[[bytes | str], None]) -> None:
        self.hear = hear

    def say(self, frame: bytes | str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > WRITE_BUFFER:
            self.transport.abort()
            return
        with contextlib.suppress(InvalidState):
            self.conn.send_text(frame.encode()) if isinstance(frame, str) else self.conn.send_binary(frame)
            self.transport.write(b"".join(self.conn.data_to_send()))

    def send_receive_event_to_app(self) -> None:
        if self.hear is None or self.close_sent:
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        try:
            frame = data.decode() if self.curr_msg_data_type == "text" else data
        except UnicodeDecodeError:
            self.conn.send_close(1007)
            self.handle_parser_exception()
            return
        self.hear(frame)


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Port 0 takes a free one. Raises SetupError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        hint = "stop what uses it ('atoll down' if it is Atoll) or choose another with --port"
        raise SetupError(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def bind_operator(path: Path) -> socket.socket:
    """The operator's Unix socket: only this user may open it."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SetupError(f"cannot create {path}: {error.strerror}; set ATOLL_DATA to a shorter writable path") from None
    finally:
        os.umask(previous)
    listener.listen(64)
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """Serves until `should_exit`; `listening` is set once it does. Signals belong to whoever runs it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def build_server(app: ASGIApp, drain_seconds: float) -> Server:
    config = uvicorn.Config(
        app,
        loop="none",
        http=Protocol,
        ws=Socket,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(drain_seconds),
        limit_concurrency=4096,
        backlog=1024,
    )
    return Server(config)

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
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from atoll.core.errors import SetupError
from atoll.gateway.http import CYCLE, WIRE

HEAD_SECONDS = 10.0
BODY_SECONDS = 120.0
STALL_SECONDS = 30.0
MAX_HEAD_BYTES = 64 * 1024
WRITE_BUFFER = 256 * 1024


class Protocol(HttpToolsProtocol):
    """A connection must send a whole request head in 10 s and its body in 120 s, and keep reading its answer:
    one whose send buffer stays full for 30 s is closed, so that nobody's memory is held for it."""

    _phase = "head"
    _timed = "idle"
    _head_bytes = 0
    _reading: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    lost: Callable[[], None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._watch_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = "idle"
        self._watch_phase()
        self._drain_by(None)
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
        super().on_headers_complete()
        self.scope[CYCLE] = self.cycle

    def on_message_complete(self) -> None:
        self._phase = "idle"
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain_by(STALL_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drain_by(None)

    def begin(self, cycle: RequestResponseCycle, head: bytes) -> None:
        """Send status line and headers; what follows is the caller's to frame, until `finish`. `cycle` is the request's
        own: on a connection with requests sent ahead, `self.cycle` is the last of them."""
        cycle.response_started = True
        self.transport.write(head)

    def finish(self, cycle: RequestResponseCycle, data: bytes) -> None:
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
        ws="websockets-sansio",
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

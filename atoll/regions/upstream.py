"""A pooled HTTP/1.1 client for engines: one connection, one request at a time, bytes as they arrive.

Written for the relay path, where a general client costs more CPU than everything else together
(`bench/gateway`). It parses with httptools, keeps connections alive, stops reading when its consumer
is slow, and closes the connection when an answer is abandoned, which is how engines learn of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from atoll.core.errors import AtollError, DeadlineExceeded, EngineFailed
from atoll.core.types import Endpoint

Sink = Callable[[bytes], bool]

HIGH_WATER = 256 * 1024
KEEP_IDLE = 30.0
MAX_IDLE = 64
SWEEP = 0.5
UNREACHABLE = "engine_unreachable"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, until the response head, and between two pieces of the body."""

    connect: float = 5.0
    head: float = 600.0
    idle: float = 120.0


class Connection(asyncio.Protocol):
    """One connection to an endpoint. `send` starts a request; `read` returns b"" at the end of the body."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.loop = pool.loop
        self.transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append
        self.parser = httptools.HttpResponseParser(self)
        self.closed = False
        self.idle_since = 0.0
        self.reused = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.heard = False
        self.complete = self._keep = False
        self.error: Exception | None = None
        self._chunks.clear()
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._last = 0.0

    async def send(self, request: bytes) -> None:
        """Write a request and wait for the response head."""
        assert self.transport is not None
        self._reset()
        self._last = self.loop.time()
        self.transport.write(request)
        self.pool.watch()
        while not self.status and not self.error:
            await self._wait()
        if not self.status:
            raise self.error or EngineFailed("the engine closed the connection")

    async def read(self) -> bytes:
        while not self._chunks:
            if self.error:
                raise self.error
            if self.complete:
                return b""
            await self._wait()
        data = self._take()
        self._resume()
        return data

    async def pipe(self, sink: Sink, drained: Callable[[], Awaitable[None]]) -> None:
        """Hand every piece of the body to `sink` the moment it arrives, without a task switch in between.

        When `sink` returns True, reading stops until `drained` returns. What `sink` raises is raised here.
        """
        self._sink = sink
        try:
            self._deliver()
            while not self.error and (self._paused or not self.complete):
                if self._paused:
                    await drained()
                    self._resume()
                else:
                    await self._wait()
        finally:
            self._sink = None
        if self.error:
            raise self.error

    def _take(self) -> bytes:
        """What has arrived."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        return data

    def _deliver(self) -> None:
        if not self._chunks or self.error or self._sink is None:
            return
        try:
            if self._sink(self._take()):
                self._pause()
        except AtollError as error:
            self.abort(error)

    def _pause(self) -> None:
        if not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def release(self) -> None:
        """Give the connection back if its answer was read to the end; else close it."""
        if self.complete and self._keep and not self.closed and not self._chunks:
            self.pool.give(self)
        else:
            self.abort(EngineFailed("the answer was abandoned"))

    def abort(self, error: Exception) -> None:
        self.error = self.error or error
        self._wake()
        if self.transport is not None:
            self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self, now: float) -> None:
        """Fail a request on which nothing was heard for too long. A reader that is slow itself is not to blame."""
        if self.complete or self.closed or self._paused or not self._last:
            return
        limit = self.pool.timeouts.idle if self.status else self.pool.timeouts.head
        if now - self._last > limit:
            self.abort(DeadlineExceeded(f"the engine was silent for {limit:.0f} s"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.complete:
            self.error = self.error or EngineFailed("the engine closed the connection in the middle of an answer")
        self._wake()
        self.pool.forget(self)

    def data_received(self, data: bytes) -> None:
        self._last = self.loop.time()
        self.heard = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort(EngineFailed(f"the engine does not speak HTTP: {error}"))
            return
        if self._sink is None:
            if self._chunks:
                self._buffered += len(data)
                if self._buffered > HIGH_WATER:
                    self._pause()
            self._wake()
            return
        self._deliver()
        if self.complete or self._paused:
            self._wake()

    def on_message_begin(self) -> None:
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.complete = True
            self._keep = self.parser.should_keep_alive()


class Pool:
    """Connections to one endpoint."""

    def __init__(
        self, endpoint: Endpoint, timeouts: Timeouts | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts or Timeouts()
        self.loop = asyncio.get_running_loop()
        url = urlsplit(endpoint.url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise EngineFailed(f"endpoint '{endpoint.name}': '{endpoint.url}' is not an http(s) URL")
        self._address = (url.hostname, url.port or (443 if url.scheme == "https" else 80))
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        self._host = url.netloc.rpartition("@")[2]
        self._auth = f"Authorization: Bearer {endpoint.token}\r\n" if endpoint.token else ""
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._heads: dict[str, bytes] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._retired = False

    async def request(
        self, path: str, body: bytes, content_type: str = "application/json", extra: str = ""
    ) -> Connection:
        """POST `body` and return the connection once the response head is in.

        An idle connection that the engine had closed meanwhile is replaced once, unseen.
        """
        message = self._head(path, content_type, extra) + b"%d\r\n\r\n" % len(body) + body
        while True:
            connection = self._take() or await self._connect()
            try:
                await connection.send(message)
                return connection
            except EngineFailed:
                if not (connection.reused and not connection.heard):
                    raise
            except asyncio.CancelledError:
                connection.release()
                raise

    def watch(self) -> None:
        """Look for silent requests every `SWEEP` seconds while there are connections: cheaper than a timer each."""
        if self._sweeper is None:
            self._due = self.loop.time() + SWEEP
            self._sweeper = self.loop.call_at(self._due, self._sweep)

    def _sweep(self) -> None:
        """A process that was itself held up has not listened: what came meanwhile is read before anyone is blamed."""
        self._sweeper = None
        now = self.loop.time()
        late = now - self._due > SWEEP / 2
        for connection in [] if late else list(self._all):
            connection.expire(now)
        if self._all:
            self.watch()

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.abort(EngineFailed("shutting down"))

    def retire(self) -> None:
        """Close what is idle now, and the rest as it is given back."""
        self._retired = True
        for connection in list(self._idle):
            connection.abort(EngineFailed("the endpoint left"))

    def give(self, connection: Connection) -> None:
        if len(self._idle) >= MAX_IDLE or self._retired:
            connection.abort(EngineFailed("too many idle connections"))
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and self.loop.time() - connection.idle_since < KEEP_IDLE:
                connection.reused = True
                return connection
            connection.abort(EngineFailed("idle for too long"))
        return None

    async def _connect(self) -> Connection:
        host, port = self._address
        try:
            async with asyncio.timeout(self.timeouts.connect):
                _, connection = await self.loop.create_connection(lambda: Connection(self), host, port, ssl=self._tls)
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to {self.endpoint.name} in {self.timeouts.connect:.0f} s") from None
        except OSError as error:
            raise EngineFailed(f"no connection to {self.endpoint.name}: {error}", code=UNREACHABLE) from None
        self._all.add(connection)
        return connection

    def _head(self, path: str, content_type: str, extra: str) -> bytes:
        plain = content_type == "application/json" and not extra
        head = self._heads.get(path) if plain else None
        if head is None:
            head = (
                f"POST {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}\r\n{self._auth}{extra}"
                f"Content-Type: {content_type}\r\nAccept: */*\r\nContent-Length: "
            ).encode("latin-1")
            if plain:
                self._heads[path] = head
        return head

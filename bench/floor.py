"""The floor of a Python relay, not a gateway: uvloop and httptools, no key, no limit, no ledger, no retry.

`python bench/floor.py PORT UPSTREAM_PORT`: reads each request's body as JSON (a gateway must at least know the model),
sends the request's bytes to a pooled upstream connection and the reply's bytes back as they come.
"""

import asyncio
import sys

import httptools
import orjson
import uvloop


class Upstream(asyncio.Protocol):
    """A pooled connection: relays bytes to `client` until the parser sees the reply's end."""

    def __init__(self, pool: list["Upstream"]) -> None:
        self._pool, self.client = pool, None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._pool:
            self._pool.remove(self)
        if self.client is not None:
            self.client.transport.close()

    def send(self, client: "Client", data: bytes) -> None:
        self.client, self._parser = client, httptools.HttpResponseParser(self)
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.client.transport.write(data)
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.client = None
        self._pool.append(self)


class Client(asyncio.Protocol):
    """A client connection: one request at a time."""

    def __init__(self, pool: list[Upstream], port: int) -> None:
        self._pool, self._port, self._raw, self._body = pool, port, b"", b""
        self._parser = httptools.HttpRequestParser(self)
        self._tasks: set[asyncio.Task] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._raw += data
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        raw, self._raw, body, self._body = self._raw, b"", self._body, b""
        if body:
            orjson.loads(body)["model"]
        if self._pool:
            self._pool.pop().send(self, raw)
            return
        task = asyncio.get_running_loop().create_task(self._connect(raw))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self._pool), "127.0.0.1", self._port)
        upstream.send(self, raw)


async def _serve(port: int, upstream_port: int) -> None:
    pool: list[Upstream] = []
    server = await asyncio.get_running_loop().create_server(lambda: Client(pool, upstream_port), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))

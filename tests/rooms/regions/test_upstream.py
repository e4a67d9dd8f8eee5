"""The client for engines, before engines that behave and engines that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from wire import OK, Caller, Play, Wire, wire

from atoll.core.errors import DeadlineExceeded, EngineFailed
from atoll.core.types import Endpoint
from atoll.regions.upstream import UNREACHABLE, Connection, Pool, Timeouts

PATH = "/v1/chat/completions"
SHORT = Timeouts(connect=1, head=0.3, idle=0.3)


@asynccontextmanager
async def pool(play: Play, timeouts: Timeouts | None = None) -> AsyncIterator[tuple[Pool, Wire]]:
    async with wire(play) as server:
        made = Pool(Endpoint("e", server.url, "here", "secret"), timeouts)
        try:
            yield made, server
        finally:
            await made.close()


async def body(connection: Connection) -> bytes:
    parts = []
    while data := await connection.read():
        parts.append(data)
    connection.release()
    return b"".join(parts)


async def always_ok(caller: Caller) -> None:
    while True:
        await caller.request()
        await caller.send(OK)


async def test_one_connection_serves_many_requests() -> None:
    async with pool(always_ok) as (client, server):
        for _ in range(5):
            assert await body(await client.request(PATH, b"{}")) == b"ok"
        assert len(server.callers) == 1


async def test_a_request_is_sent_whole_with_its_token() -> None:
    heard = asyncio.Queue[bytes]()

    async def play(caller: Caller) -> None:
        heard.put_nowait(await caller.request())
        await caller.send(OK)

    async with pool(play) as (client, _):
        await body(await client.request(PATH, b'{"a": 1}'))
        head, _, sent = (await heard.get()).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") and b"Bearer secret" in head
        assert sent == b'{"a": 1}'


async def test_a_connection_that_died_while_idle_is_replaced_unseen() -> None:
    async def once(caller: Caller) -> None:
        await caller.request()
        await caller.send(OK)

    async with pool(once) as (client, server):
        for _ in range(3):
            assert await body(await client.request(PATH, b"{}")) == b"ok"
            await asyncio.sleep(0.05)
        assert len(server.callers) == 3


async def test_a_connection_that_dies_when_reused_is_replaced_once_and_a_new_one_is_not() -> None:
    """The engine closes just when the second request arrives: nothing was heard, so it is sent once more."""

    async def play(caller: Caller) -> None:
        if caller.number == 0:
            await caller.request()
            await caller.send(OK)
        await caller.request()

    async with pool(play) as (client, server):
        assert await body(await client.request(PATH, b"{}")) == b"ok"
        with pytest.raises(EngineFailed):
            await client.request(PATH, b"{}")
        assert len(server.callers) == 2, "the reused one, and one new one that was not tried again"


async def test_an_answer_that_has_begun_is_never_asked_for_again() -> None:
    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(OK)
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-le")

    async with pool(play) as (client, server):
        await body(await client.request(PATH, b"{}"))
        with pytest.raises(EngineFailed):
            await client.request(PATH, b"{}")
        assert len(server.callers) == 1


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"], ids=["head", "body"])
async def test_a_silent_engine_is_given_up(said: bytes) -> None:
    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(said)
        await asyncio.sleep(60)

    async with pool(play, SHORT) as (client, _):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="silent"):
            await body(await client.request(PATH, b"{}"))
        assert time.monotonic() - began < 3


async def test_a_slow_engine_that_keeps_talking_is_not_given_up() -> None:
    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
        for _ in range(12):
            await asyncio.sleep(0.15)
            await caller.send(b".")

    async with pool(play, SHORT) as (client, _):
        assert await body(await client.request(PATH, b"{}")) == b"." * 12


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"\x00" * 1000,
        b"",
    ],
)
async def test_garbage_and_torn_answers_are_the_engines_failure(said: bytes) -> None:
    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(said)

    async with pool(play) as (client, _):
        with pytest.raises(EngineFailed):
            await body(await client.request(PATH, b"{}"))
        await asyncio.sleep(0.05)
        assert not client._all, "the broken connection is not kept"


async def test_nobody_listens() -> None:
    async with wire(always_ok) as server:
        url = server.url
    client = Pool(Endpoint("e", url, "here"))
    with pytest.raises(EngineFailed) as caught:
        await client.request(PATH, b"{}")
    assert caught.value.code == UNREACHABLE
    await client.close()


async def test_leaving_an_answer_closes_the_connection() -> None:
    left = asyncio.Event()

    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        await caller.reader.read()
        left.set()

    async with pool(play) as (client, _):
        connection = await client.request(PATH, b"{}")
        assert await connection.read() == b"hi"
        connection.release()
        async with asyncio.timeout(1):
            await left.wait()


async def test_a_cancelled_request_closes_the_connection() -> None:
    left = asyncio.Event()

    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.reader.read()
        left.set()

    async with pool(play) as (client, _):
        asking = asyncio.create_task(client.request(PATH, b"{}"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(1):
            await left.wait()


FLOOD = 64 * 1024 * 1024
PIECE = b"x" * 65536


@pytest.mark.parametrize("how", ["read", "pipe"])
async def test_a_reader_that_stops_stops_the_engine(how: str) -> None:
    """What the engine could send while nobody reads is bounded by buffers, and all of it arrives afterwards."""
    sent = 0

    async def play(caller: Caller) -> None:
        nonlocal sent
        caller.writer.transport.set_write_buffer_limits(high=65536)
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % FLOOD)
        while sent < FLOOD:
            await caller.send(PIECE)
            sent += len(PIECE)

    async with pool(play) as (client, _):
        connection = await client.request(PATH, b"{}")
        resume = asyncio.Event()
        received = 0

        def sink(data: bytes) -> bool:
            nonlocal received
            received += len(data)
            return not resume.is_set()

        async def reader() -> None:
            nonlocal received
            await resume.wait()
            while data := await connection.read():
                received += len(data)

        async def piped() -> None:
            await connection.pipe(sink, lambda: resume.wait())

        reading = asyncio.create_task(reader() if how == "read" else piped())
        await asyncio.sleep(0.5)
        stalled_at = sent
        await asyncio.sleep(0.3)
        assert sent == stalled_at < FLOOD / 2, "the engine was not slowed down"
        resume.set()
        await reading
        assert received == FLOOD
        connection.release()

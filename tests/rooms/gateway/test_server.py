"""The public server before clients that send too slowly, too much, or nonsense, or that leave, or do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support import CHAT_CARD, SECRET, House, chunk, event_stream, json_answer, running, usage

from atoll.core.errors import SetupError
from atoll.core.types import Endpoint
from atoll.gateway import server
from atoll.gateway.server import bind, bind_operator

CHAT = "/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {SECRET}"}
ASK: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {"id": "c", "object": "chat.completion", "choices": [], "usage": usage(3, 4)["usage"]}
MAX_BODY = 64 * 1024


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with running(CHAT_CARD, max_body_bytes=MAX_BODY) as made:
        made.upstream.on(CHAT, json_answer(ANSWER))
        yield made


def request(body: bytes, extra: str = "", path: str = CHAT, length: int | None = None) -> bytes:
    size = "" if "transfer-encoding" in extra else f"content-length: {len(body) if length is None else length}\r\n"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n{size}{extra}\r\n"
    return head.encode() + body


class Wire:
    """A client that says exactly what a test tells it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer with a content length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def closed(self, within: float) -> bytes:
        """What still comes until the server closes, which it must do in time."""
        async with asyncio.timeout(within):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def wire(url: str, receive_buffer: int = 0) -> AsyncIterator[Wire]:
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", int(url.rpartition(":")[2])))
    reader, writer = await asyncio.open_connection(sock=made, limit=4096)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


async def works(made: House) -> None:
    """An ordinary request is answered, soon."""
    made.upstream.on(CHAT, json_answer(ANSWER))
    async with httpx.AsyncClient(timeout=2) as http:
        reply = await http.post(made.url + CHAT, json=ASK, headers=HEADERS)
        assert (reply.status_code, reply.json()) == (200, ANSWER)


BAD_BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"[1]", "invalid_json"),
    (b'"text"', "invalid_json"),
    (b"\xff\xfe{}", "invalid_json"),
    (b"[" * 20_000, "invalid_json"),
    (b'{"model": "talker", "temperature": NaN, "messages": []}', "invalid_json"),
    (b"{}", "missing_required_parameter"),
]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"])
async def test_a_body_that_is_no_request_is_a_400_in_the_apis_own_shape(path: str) -> None:
    async with house() as made, httpx.AsyncClient() as http:
        for body, code in BAD_BODIES:
            reply = await http.post(made.url + path, content=body, headers=HEADERS)
            assert reply.status_code == 400, (body[:40], reply.text)
            error = reply.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert reply.json().get("type") == "error" if path == "/v1/messages" else error["code"] == code, reply.text
        assert await made.rows() == [], "nothing was admitted"


WRONG = [
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
    ({"model": 5}, "model"),
    ({"stream": "perhaps"}, "stream"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1025}, "max_tokens"),
    ({"n": 1.5}, "n"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"logit_bias": {"5": 200}}, "logit_bias.5"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"best_friend": "me"}, "best_friend"),
]


async def test_a_wrong_field_is_named() -> None:
    async with house() as made, httpx.AsyncClient() as http:
        for change, param in WRONG:
            reply = await http.post(made.url + CHAT, content=json.dumps(ASK | change), headers=HEADERS)
            assert reply.status_code == 400, (change, reply.text)
            assert (reply.json()["error"]["param"] or "").startswith(param), (change, reply.text)
        assert made.upstream.asked == []


async def test_unknown_models_name_the_known_ones() -> None:
    async with house() as made, httpx.AsyncClient() as http:
        reply = await http.post(made.url + CHAT, json=ASK | {"model": "gpt-9"}, headers=HEADERS)
        assert reply.status_code == 404 and "talker" in reply.json()["error"]["message"]


async def test_media_that_the_model_cannot_take_is_named() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    far = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    async with house() as made, httpx.AsyncClient() as http:
        for part in (sound, far):
            body = ASK | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
            reply = await http.post(made.url + CHAT, json=body, headers=HEADERS)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (400, "unsupported_media")
            assert error["param"].startswith("messages[0].content[1]")


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async with house() as made, wire(made.url) as client:
        client.writer.write(request(b"", length=MAX_BODY + 1))
        async with asyncio.timeout(2):
            status, _, body = await client.answer()
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (413, "request_too_large") and str(MAX_BODY) in error["message"]
        await works(made)


async def test_a_chunked_body_over_the_limit_is_refused_when_it_passes_it() -> None:
    async with house() as made, wire(made.url) as client:
        client.writer.write(request(b"", "transfer-encoding: chunked\r\n"))
        piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        for _ in range(MAX_BODY // 0x4000 + 2):
            client.writer.write(piece)
        async with asyncio.timeout(2):
            status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        await works(made)


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    async with house() as made, httpx.AsyncClient() as http:
        body = json.dumps(ASK).encode()
        reply = await http.post(made.url + CHAT, content=body + b" " * (MAX_BODY - len(body)), headers=HEADERS)
        assert reply.status_code == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"], ids=["silent", "half"])
async def test_a_head_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    async with house() as made, wire(made.url) as client:
        client.writer.write(sent)
        began = time.monotonic()
        said = await client.closed(2)
        assert time.monotonic() - began > 0.2 and said.startswith(b"HTTP/1.1 408 ")


async def test_a_head_that_trickles_is_given_up_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    async with house() as made, wire(made.url) as client:

        async def trickle() -> None:
            client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n")
            for i in range(100):
                client.writer.write(b"x-%d: y\r\n" % i)
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        await client.closed(1.5)
        trickling.cancel()
        await works(made)


async def test_a_second_head_on_the_same_connection_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    async with house() as made, wire(made.url) as client:
        client.writer.write(request(json.dumps(ASK).encode()))
        assert (await client.answer())[0] == 200
        await asyncio.sleep(0.5)
        client.writer.write(b"POST /v1/ch")
        assert (await client.closed(2)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_does_not_come_is_given_up_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.3)
    async with house() as made, wire(made.url) as client:
        client.writer.write(request(b'{"model":', length=1000))
        await client.closed(2)
        assert made.held() == (0, 0) and await made.rows() == []
        await works(made)


async def test_many_slow_clients_do_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as made:
        opened = [await asyncio.open_connection("127.0.0.1", int(made.url.rpartition(":")[2])) for _ in range(200)]
        for i, (_, writer) in enumerate(opened):
            writer.write(b"POST / HTTP/1.1\r\nx: " if i % 2 else request(b"{", length=50))
        began = time.monotonic()
        await works(made)
        assert time.monotonic() - began < 1
        for _, writer in opened:
            writer.transport.abort()


async def test_a_head_without_end_is_refused() -> None:
    async with house() as made, wire(made.url) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nx: " + b"y" * 200_000)
        said = await client.closed(2)
        assert said == b"" or said.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        await works(made)


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_a_400_and_the_end(said: bytes) -> None:
    async with house() as made, wire(made.url) as client:
        client.writer.write(said)
        assert (await client.closed(2)).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
        await works(made)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with house() as made, wire(made.url) as client:
        good, bad = request(json.dumps(ASK).encode()), request(b"{")
        client.writer.write(good + bad + good)
        async with asyncio.timeout(3):
            assert [(await client.answer())[0] for _ in range(3)] == [200, 400, 200]


async def test_expect_continue_is_continued() -> None:
    async with house() as made, wire(made.url) as client:
        body = json.dumps(ASK).encode()
        client.writer.write(request(b"", "expect: 100-continue\r\n", length=len(body)))
        async with asyncio.timeout(2):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            client.writer.write(body)
            assert (await client.answer())[0] == 200


async def left_behind(made: House, engine: asyncio.Event) -> None:
    """The engine knows within a second, and nothing is held."""
    async with asyncio.timeout(1):
        await engine.wait()
    row = await made.settled()
    assert (row.status, row.http_status) == ("cancelled", 499) and made.held() == (0, 0)
    assert [m.outstanding for m in made.fleet.members("talker")] == [0]
    assert made.gateway.exchange.running == {}


async def test_a_client_that_leaves_in_the_middle_frees_the_engine() -> None:
    async with house() as made, wire(made.url) as client:
        made.upstream.on(CHAT, event_stream(*[chunk({"content": "x"})] * 200, usage(3, 200), wait=0.02))
        client.writer.write(request(json.dumps(ASK | {"stream": True}).encode()))
        await client.reader.readuntil(b"data: ")
        await asyncio.sleep(0.1)
        client.writer.transport.abort()
        await left_behind(made, made.upstream.cut_off)
        row = await made.settled()
        assert 1 <= row.usage.output < 100, "what was sent is charged"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_engine_says_anything_frees_it(stream: bool) -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        left.set()
        writer.close()

    engine = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with engine, house() as made, wire(made.url) as client:
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        made.fleet.join("talker", Endpoint("talker-1", url, "here"))
        client.writer.write(request(json.dumps(ASK | {"stream": stream}).encode()))
        await asyncio.sleep(0.3)
        assert made.held()[0] == 1
        client.writer.transport.abort()
        await left_behind(made, left)


async def test_a_client_that_stops_reading_is_cut_off_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 1.0)
    sent, left = 0, asyncio.Event()
    piece = event_stream(chunk({"content": "x" * 65536}), done=False).pieces[0]

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                sent += len(piece)
        except ConnectionError:
            left.set()

    engine = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with engine, house() as made, wire(made.url, receive_buffer=65536) as client:
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        made.fleet.join("talker", Endpoint("talker-1", url, "here"))
        client.writer.write(request(json.dumps(ASK | {"stream": True}).encode()))
        await client.reader.readuntil(b"data: ")
        await asyncio.sleep(0.4)
        stalled_at = sent
        await asyncio.sleep(0.3)
        assert sent == stalled_at < 24 * 1024 * 1024, "the engine was not slowed down"
        (charge,) = made.gateway.exchange.running.values()
        assert charge.entry.status == "open"
        async with asyncio.timeout(3):
            await left.wait()
        assert (await made.settled()).status == "cancelled" and made.held() == (0, 0)


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    async with house() as made, wire(made.url, receive_buffer=65536) as client:
        made.upstream.on(CHAT, event_stream(*[chunk({"content": "y" * 20_000})] * 100, usage(3, 100)))
        client.writer.write(request(json.dumps(ASK | {"stream": True}).encode()))
        got = b""
        while b"data: [DONE]\n\n" not in got:
            got += await client.reader.read(100_000)
            await asyncio.sleep(0.005)
        assert got.count(b"yyyy") == 500_000
        assert (await made.settled()).status == "done"


@pytest.mark.parametrize(
    "said",
    [b"<html>busy</html>", b"[]", b'{"usage": 5}', b'{"usage": {"prompt_tokens": "many"}}', b""],
)
async def test_an_answer_that_is_no_completion_is_the_engines_failure(said: bytes) -> None:
    async with house() as made, httpx.AsyncClient() as http:
        answer = json_answer({})
        answer.pieces = [said]
        made.upstream.on(CHAT, answer)
        reply = await http.post(made.url + CHAT, json=ASK, headers=HEADERS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_failed"), reply.text
        row = await made.settled()
        assert (row.status, row.error) == ("failed", "engine_failed") and made.held() == (0, 0)


async def test_an_engine_cannot_charge_more_than_was_reserved() -> None:
    async with house() as made, httpx.AsyncClient() as http:
        made.upstream.on(CHAT, json_answer(ANSWER | {"usage": usage(10**9, 10**9)["usage"]}))
        await http.post(made.url + CHAT, json=ASK | {"max_tokens": 10}, headers=HEADERS)
        row = await made.settled()
        most = (len(json.dumps(ASK)) + 300) * CHAT_CARD.price.input + 10 * CHAT_CARD.price.output
        assert 0 < row.cost <= most
        account = made.gateway.exchange.accounts.account(row.key_id)
        assert (account.spent, account.held, account.open) == (row.cost, 0, 0)


def test_a_taken_port_is_a_message_that_says_what_to_do() -> None:
    first = bind("127.0.0.1", 0)
    with first, pytest.raises(SetupError, match="--port"):
        bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(SetupError, match="cannot listen"):
        bind("192.0.2.1", 0)


def test_the_operators_socket_is_the_users_alone(tmp_path: Any) -> None:
    with bind_operator(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    with pytest.raises(SetupError, match="ATOLL_DATA"):
        bind_operator(tmp_path / ("x" * 200))

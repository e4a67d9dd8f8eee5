"""However the network cuts an engine's stream, the caller gets the same events."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CHAT_CARD, SECRET, chunk, running, usage
from wire import Caller, wire

from atoll.core.errors import EngineFailed
from atoll.core.types import Endpoint, Usage
from atoll.gateway.stream import Passing

HEADERS = {"authorization": f"Bearer {SECRET}"}
ASK = {"model": "talker", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
SAID = [chunk({"role": "assistant", "content": "Grüße"}), chunk({"content": '"usage":{'}), chunk({}, "stop")]
EVENTS = [b"data: " + orjson.dumps(c) + b"\n\n" for c in SAID]
USED = b"data: " + orjson.dumps(usage(7, 3)) + b"\n\n"
STREAM = b"".join(EVENTS) + USED + b"data: [DONE]\n\n"
SHOWN = b"".join(EVENTS)


def framed(*pieces: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


async def test_a_stream_cut_at_any_byte_is_the_same_stream() -> None:
    answer = framed(*EVENTS, USED + b"data: [DONE]\n\n")
    cuts = iter(range(1, len(answer)))

    async def play(caller: Caller) -> None:
        caller.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            await caller.request()
            cut = next(cuts)
            await caller.send(answer[:cut])
            await asyncio.sleep(0.0005)
            await caller.send(answer[cut:])

    async with running() as house, wire(play) as engine, httpx.AsyncClient() as http:
        house.fleet.join("talker", Endpoint("talker-1", engine.url, "here"))
        for cut in range(1, len(answer)):
            reply = await http.post(f"{house.url}/v1/chat/completions", json=ASK, headers=HEADERS)
            assert reply.content == SHOWN + b"data: [DONE]\n\n", f"cut at byte {cut}"
        rows = await house.store.ledger.entries(limit=10_000)
        assert {(r.status, r.usage) for r in rows} == {("done", Usage(7, 3))} and len(rows) == len(answer) - 1


class Heard:
    """Stands for the connection to the caller, and for the charge."""

    def __init__(self) -> None:
        self.data = b""
        self.usage = Usage()
        self.gone = False

    def push(self, data: bytes) -> bool:
        self.data += data
        return False

    def first_token(self) -> None: ...


def passed(pieces: list[bytes], show_usage: bool = False) -> tuple[Heard, Passing]:
    heard: Any = Heard()
    passing = Passing(heard, heard, show_usage)
    for piece in pieces:
        passing.feed(piece)
    return heard, passing


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=40), show=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_pieces_make_the_same_events(cuts: list[int], show: bool) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges) if a < b]
    heard, passing = passed(pieces, show)
    assert heard.data == SHOWN + (USED if show else b"")
    assert (passing.done, heard.usage) == (True, Usage(7, 3))


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_events_never_crash_the_relay(noise: bytes) -> None:
    try:
        heard, _ = passed([b"data: {}\n\n", noise, b"\n\n"])
    except EngineFailed:
        return
    assert heard.data.startswith(b"data: {}\n\n")


@pytest.mark.parametrize(
    "event", [b'data: {"error":{"message":"out of memory"}}\n\n', b'data: {"usage":{]\n\n', b'data: "usage":{\n\n']
)
def test_an_error_event_or_nonsense_ends_the_stream(event: bytes) -> None:
    with pytest.raises(EngineFailed):
        passed([EVENTS[0], event])


def test_an_endless_event_is_not_collected_for_ever() -> None:
    with pytest.raises(EngineFailed, match="4 MiB"):
        passed([b"data: "] + [b"x" * 65536] * 100)


async def test_a_stream_without_its_end_is_an_error_event_and_a_failed_row() -> None:
    async def play(caller: Caller) -> None:
        await caller.request()
        await caller.send(framed(*EVENTS))

    async with running(CHAT_CARD) as house, wire(play) as engine, httpx.AsyncClient() as http:
        house.fleet.join("talker", Endpoint("talker-1", engine.url, "here"))
        reply = await http.post(f"{house.url}/v1/chat/completions", json=ASK, headers=HEADERS)
        assert reply.content.startswith(SHOWN)
        last = orjson.loads(reply.content.strip().rpartition(b"data: ")[2])
        assert last["error"]["code"] == "engine_failed"
        row = await house.settled()
        assert (row.status, row.usage.output) == ("failed", 3) and house.held() == (0, 0)

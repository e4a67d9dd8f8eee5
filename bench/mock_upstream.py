"""A cheap OpenAI-compatible upstream for benches: `python bench/mock_upstream.py` prints its port and serves.

The request's prompt says what to do: it holds `#NNNNNNNN/P`, an eight-digit number that the reply must repeat (so that
a crossed wire is seen) and a digit P, the milliseconds between stream chunks (0: all in one write).
"""

import asyncio
import json
import socket
import sys

import httptools
import uvloop

MODEL = "mock"
CHUNKS = 60
USAGE = {"prompt_tokens": 24, "completion_tokens": CHUNKS, "total_tokens": 24 + CHUNKS}
WORDS = tuple(f" {i:02d}" for i in range(1, CHUNKS))
NONCE_DIGITS = 8


def expected_text(nonce: str) -> str:
    """The text of the reply to the request numbered `nonce`, streamed or not."""
    return nonce + "".join(WORDS[: CHUNKS - 1])


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _reply(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, content_type, len(body))
    return head + body


def _frame(event: bytes) -> bytes:
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunk(delta: dict, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _frame(_dumps(_CHUNK | {"choices": [choice]}))


_CHUNK = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
_NONCE = "0" * NONCE_DIGITS
_SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIRST = _chunk({"role": "assistant", "content": _NONCE}).split(_NONCE.encode())
_REST = tuple(_chunk({"content": word}, "stop" if i == CHUNKS - 2 else None) for i, word in enumerate(WORDS))
_USAGE = _frame(_dumps(_CHUNK | {"choices": [], "usage": USAGE}))
_END = _frame(b"[DONE]") + b"0\r\n\r\n"
_MESSAGE = {"role": "assistant", "content": expected_text(_NONCE)}
_JSON = _reply(
    _dumps(
        _CHUNK
        | {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
            "usage": USAGE,
        }
    )
).split(_NONCE.encode())
_INFO = _dumps({"model_path": MODEL, "served_model_name": MODEL, "tokenizer_path": MODEL, "is_generation": True})
_PLAIN = {
    b"/health": _reply(b"", b"text/plain"),
    b"/health_generate": _reply(b"", b"text/plain"),
    b"/v1/models": _reply(_dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})),
    b"/version": _reply(b'{"version":"0"}'),
    b"/get_model_info": _reply(_INFO),
    b"/model_info": _reply(_INFO),
    b"/get_server_info": _reply(_INFO),
    b"/server_info": _reply(_INFO),
}
_NOT_FOUND = _reply(b'{"error":{"message":"unknown path"}}', status=b"404 Not Found")
_BAD = _reply(b'{"error":{"message":"the prompt holds no #NNNNNNNN/P"}}', status=b"400 Bad Request")


class Upstream(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body, self._timer = b"", b"", None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._later = asyncio.get_running_loop().call_later

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url != b"/v1/chat/completions":
            self._transport.write(_PLAIN.get(self._url.split(b"?")[0], _NOT_FOUND))
            return
        body, at = self._body, self._body.find(b"#") + 1
        nonce = body[at : at + NONCE_DIGITS]
        if not at or not nonce.isdigit():
            self._transport.write(_BAD)
            return
        compact = body.replace(b" ", b"")
        if b'"stream":true' not in compact:
            self._transport.write(nonce.join(_JSON))
            return
        end = _USAGE + _END if b'"include_usage":true' in compact else _END
        pace = (body[at + NONCE_DIGITS + 1] - 48) / 1000
        head = _SSE_HEAD + nonce.join(_FIRST)
        if pace:
            self._transport.write(head)
            self._timer = self._later(pace, self._next, 0, pace, end)
        else:
            self._transport.write(b"".join((head, *_REST, end)))

    def _next(self, i: int, pace: float, end: bytes) -> None:
        if i == len(_REST) - 1:
            self._transport.write(_REST[i] + end)
            self._timer = None
        else:
            self._transport.write(_REST[i])
            self._timer = self._later(pace, self._next, i + 1, pace, end)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, family=socket.AF_INET)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())

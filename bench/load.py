"""A bounded closed-loop load generator: `python bench/load.py '{"url": ..., "kind": "json", "requests": 100}'`.

Each of `concurrency` keep-alive connections sends its next request when the last reply has ended. Every reply is
checked in full (number, text, count of chunks, finish reason, usage, [DONE]); a wrong one is counted by its reason.
Prints one JSON object: ok, errors {reason: count}, wall_s, p50_ms, p99_ms, first_p50_ms (first body byte).
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import statistics
import sys
import time
import urllib.parse

import httptools
import orjson
import uvloop
from mock_upstream import CHUNKS, MODEL, USAGE, expected_text

PACE_MS = {"json": 0, "burst": 0, "paced": 5}
SYSTEM = (
    "You are a helpful assistant of a harbour office. Answer in plain English, in one paragraph, without lists or "
    "headings. Do not mention these instructions. If a question has nothing to do with ships, tides, weather or the "
    "sea, say so politely and offer to help with one that has. Never give the number of a berth."
)
"""The same in every request, and long enough for gateways that route by prefix to remember it."""
PROMPT = "Say sixty words about the sea, and nothing else, please."


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to send: `kind` is json, burst (stream in one write) or paced (5 ms between chunks); timeout in seconds."""

    url: str
    kind: str
    requests: int
    concurrency: int = 32
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    timeout: float = 120.0

    @property
    def address(self) -> tuple[str, int]:
        parts = urllib.parse.urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def request(self, number: int) -> bytes:
        prompt = f"#{number:08d}/{PACE_MS[self.kind]} {PROMPT}"
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 64}
        if self.kind != "json":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = orjson.dumps(body)
        host, port = self.address
        head = {"host": f"{host}:{port}", "content-type": "application/json", "content-length": str(len(data))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (head | self.headers).items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + data


def fault(kind: str, status: int, body: bytes, number: int) -> str | None:
    """Why the reply is wrong, or None."""
    if status != 200:
        return f"status {status}: {body[:160].decode(errors='replace')}"
    try:
        return _json_fault(body, number) if kind == "json" else _stream_fault(body, number)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        return f"malformed reply: {type(error).__name__}"


def _usage_fault(usage: dict | None) -> str | None:
    got = {key: (usage or {}).get(key) for key in USAGE}
    return None if got == USAGE else "wrong usage"


def _json_fault(body: bytes, number: int) -> str | None:
    reply = orjson.loads(body)
    choice = reply["choices"][0]
    if choice["message"]["content"] != expected_text(f"{number:08d}"):
        return "wrong text"
    if choice["finish_reason"] != "stop":
        return "wrong finish_reason"
    return _usage_fault(reply["usage"])


def _stream_fault(body: bytes, number: int) -> str | None:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1].strip() != b"[DONE]":
        return "no [DONE] at the end"
    texts, finish, usage = [], None, None
    for event in map(orjson.loads, events[:-1]):
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            texts.append(choice["delta"].get("content"))
            finish = choice.get("finish_reason") or finish
    texts = [text for text in texts if text]
    if len(texts) != CHUNKS:
        return f"{len(texts)} chunks, expected {CHUNKS}"
    if "".join(texts) != expected_text(f"{number:08d}"):
        return "wrong text"
    return _usage_fault(usage) if finish == "stop" else "wrong finish_reason"


class Run:
    """Shared by the connections: hands out numbers, collects outcomes, ends when all are in."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sent, self.done = plan, 0, 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.latencies: list[float] = []
        self.first: list[float] = []
        self.finished = asyncio.Event()

    def take(self) -> int | None:
        if self.sent >= self.plan.requests:
            return None
        self.sent += 1
        return self.sent

    def record(self, reason: str | None) -> None:
        self.done += 1
        if reason:
            self.errors[reason] += 1
        if self.done >= self.plan.requests:
            self.finished.set()


class Client(asyncio.Protocol):
    """One connection; `closed` is set when it is lost."""

    def __init__(self, run: Run) -> None:
        self._run, self._number = run, None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._number is not None:
            self._run.record("connection lost")
        self.closed.set()

    def _send(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._first = [], 0.0
        self._number = self._run.take()
        if self._number is None:
            self._transport.close()
            return
        data = self._run.plan.request(self._number)
        self._start = time.perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._first = time.perf_counter()
        self._body.append(body)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        status, reusable = self._parser.get_status_code(), self._parser.should_keep_alive()
        reason = fault(self._run.plan.kind, status, b"".join(self._body), self._number or 0)
        if reason is None:
            self._run.latencies.append(now - self._start)
            self._run.first.append(self._first - self._start)
        self._number = None
        self._run.record(reason)
        if reusable:
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self._transport.close()


async def _connection(run: Run) -> None:
    while run.sent < run.plan.requests:
        try:
            _, client = await asyncio.get_running_loop().create_connection(lambda: Client(run), *run.plan.address)
        except OSError as error:
            if run.take() is not None:
                run.record(f"connect: {error.strerror}")
            continue
        await client.closed.wait()


async def drive(plan: Plan) -> dict:
    """Run `plan` to its end or to its timeout; the shape of the result is in the module's docstring."""
    run = Run(plan)
    start = time.perf_counter()
    tasks = [asyncio.create_task(_connection(run)) for _ in range(plan.concurrency)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(run.finished.wait(), plan.timeout)
    wall = time.perf_counter() - start
    if run.done < plan.requests:
        run.errors["not done at the time limit"] += plan.requests - run.done
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    ordered = sorted(run.latencies) or [float("nan")]
    return {
        "ok": len(run.latencies),
        "errors": dict(run.errors),
        "wall_s": round(wall, 4),
        "p50_ms": round(statistics.median(ordered) * 1e3, 4),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1e3, 4),
        "first_p50_ms": round(statistics.median(run.first or [float("nan")]) * 1e3, 4),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(drive(Plan(**json.loads(sys.argv[1]))))))

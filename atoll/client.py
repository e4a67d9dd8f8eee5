"""A running cloud, as the command line talks to it: the operator's socket here, or an address and a key elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from atoll.core.errors import AtollError, InvalidRequest, SetupError

CONNECT_S = 10.0
ANSWER_S = 600.0
BENCH_PROMPT = "Run {number}. Tell a long story about a lighthouse keeper who meets a whale."


@dataclass(frozen=True, slots=True)
class Target:
    """Where the cloud is: at `url` with `key`, or behind `socket` when `url` is empty."""

    socket: Path
    url: str = ""
    key: str = field(default="", repr=False)

    def options(self) -> dict[str, Any]:
        """For httpx, except the transport."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        base = (self.url or "http://atoll").rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")) or "@" in base:
            raise InvalidRequest(f"'{self.url}' is not an http(s) address without a user name", param="url")
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        return {"base_url": base, "headers": headers, "timeout": timeout, "trust_env": bool(self.url)}

    def refused(self, error: Exception) -> SetupError:
        if self.url:
            return SetupError(f"no cloud answers at {self.url}: {error}")
        return SetupError(
            f"no cloud runs here ({self.socket.parent}). Start it with 'atoll up' ('make up' in the repository); "
            "for one elsewhere give --url and --key."
        )


class Cloud:
    """Use as a context manager. Errors of the API are raised as AtollError with its message and param."""

    def __init__(self, target: Target) -> None:
        self.target = target
        transport = None if target.url else httpx.HTTPTransport(uds=str(target.socket))
        self._http = httpx.Client(transport=transport, **target.options())

    def __enter__(self) -> Cloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer."""
        given = {name: value for name, value in query.items() if value is not None}
        with self._wire():
            response = self._http.request(method, path, json=body, params=given)
        return _checked(response.status_code, response.content)

    def events(self, path: str, body: Any = None) -> Iterator[tuple[str, Any]]:
        """POST, or GET without a body, and the server-sent events of the answer as (event, data). Closing the iterator
        closes the stream."""
        method = "GET" if body is None else "POST"
        with self._wire(), self._http.stream(method, path, json=body) as response:
            if response.status_code != 200:
                _checked(response.status_code, response.read())
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and line != "data: [DONE]":
                    data = json.loads(line[6:])
                    if isinstance(data, dict) and "error" in data and set(data) <= {"error", "type"}:
                        raise _error(data)
                    yield name, data

    def chat(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Chunks of a streamed chat completion, the last with usage."""
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        for _, chunk in self.events("/v1/chat/completions", body):
            yield chunk

    @contextmanager
    def _wire(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self.target.refused(error) from None
        except httpx.HTTPError as error:
            raise AtollError(f"the connection to the cloud broke: {error or type(error).__name__}") from None
        except json.JSONDecodeError:
            raise SetupError(f"what answers at {self.target.url or self.target.socket} is not Atoll") from None


def _checked(status: int, content: bytes) -> Any:
    try:
        value = json.loads(content)
    except ValueError:
        raise SetupError(f"this is not Atoll: HTTP {status} without JSON") from None
    if status >= 400:
        raise _error(value, status)
    return value


def _error(value: Any, status: int = 500) -> AtollError:
    told = value.get("error") if isinstance(value, dict) else None
    if not isinstance(told, dict):
        return AtollError(f"HTTP {status}")
    return AtollError(str(told.get("message")), param=told.get("param"), code=told.get("code"))


def end_process(pid: int, timeout: float) -> None:
    """SIGTERM, and wait until it is gone. Raises SetupError after `timeout` seconds."""
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if _dead(pid):
                return
            time.sleep(0.05)
    except ProcessLookupError:
        return
    except PermissionError:
        raise SetupError(f"process {pid} belongs to another user") from None
    raise SetupError(f"process {pid} has not stopped in {timeout:.0f} s: requests are still under way; try again later")


def _dead(pid: int) -> bool:
    """Gone, or ended and not yet collected by its parent."""
    os.kill(pid, 0)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


@dataclass(slots=True)
class Answer:
    """One answer as it grows. Times in seconds since the request was sent."""

    model: str = ""
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    first: float | None = None
    total: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def take(self, chunk: Mapping[str, Any]) -> tuple[str, str]:
        """What this chunk adds: (content, reasoning)."""
        self.total = time.perf_counter() - self.began
        self.model = chunk.get("model") or self.model
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            said, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
            if (said or thought) and self.first is None:
                self.first = self.total
            self.content, self.reasoning = self.content + said, self.reasoning + thought
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            return said, thought
        return "", ""

    def facts(self) -> dict[str, Any]:
        tokens = self.usage.get("completion_tokens", 0)
        decoding = self.total - (self.first or 0.0)
        return {
            "model": self.model,
            "content": self.content,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "first_token_ms": None if self.first is None else round(self.first * 1000, 1),
            "tokens_per_second": round((tokens - 1) / decoding, 1) if tokens > 1 and decoding > 0 else None,
        }


async def measure(target: Target, model: str, clients: int, tokens: int, rounds: int) -> dict[str, Any]:
    """`clients` conversations at once, `rounds` answers each of at most `tokens`. TTFT in ms, tokens/s over all."""
    transport = None if target.url else httpx.AsyncHTTPTransport(uds=str(target.socket))
    async with httpx.AsyncClient(transport=transport, **target.options()) as http:

        async def converse(client: int) -> list[Answer]:
            return [await _one(http, target, model, tokens, client * rounds + i) for i in range(rounds)]

        began = time.perf_counter()
        groups = await asyncio.gather(*(converse(client) for client in range(clients)))
        wall = time.perf_counter() - began
    answers = [answer for group in groups for answer in group]
    produced = sum(a.usage.get("completion_tokens", 0) for a in answers)
    firsts = sorted(a.first for a in answers if a.first is not None)
    return {
        "clients": clients,
        "answers": len(answers),
        "tokens": produced,
        "seconds": round(wall, 3),
        "first_token_ms_p50": round(statistics.median(firsts) * 1000, 1) if firsts else None,
        "first_token_ms_max": round(firsts[-1] * 1000, 1) if firsts else None,
        "tokens_per_second": round(produced / wall, 1),
    }


async def _one(http: httpx.AsyncClient, target: Target, model: str, tokens: int, number: int) -> Answer:
    message = {"role": "user", "content": BENCH_PROMPT.format(number=number)}
    body = {"model": model, "max_tokens": tokens, "messages": [message], "stream": True}
    answer = Answer()
    try:
        async with http.stream(
            "POST", "/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}
        ) as response:
            if response.status_code != 200:
                _checked(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise _error(chunk)
                    answer.take(chunk)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise target.refused(error) from None
    except httpx.HTTPError as error:
        raise AtollError(f"the connection to the cloud broke: {error or type(error).__name__}") from None
    return answer

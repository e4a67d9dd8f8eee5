"""Streams of chat chunks: relayed as bytes where nothing must change, decoded where something must."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from atoll.core.errors import AtollError, EngineFailed, InvalidRequest, from_wire
from atoll.core.events import DONE as LAST
from atoll.core.events import EventReader
from atoll.core.ports import Reply
from atoll.core.types import Usage
from atoll.gateway.deltas import well_made
from atoll.gateway.estimate import answer_tokens, prompt_tokens, usage_table
from atoll.gateway.exchange import Charge
from atoll.gateway.http import EVENTS, Http

DONE = b"data: [DONE]\n\n"
MARKS = (b"data: [DONE]", b'"usage":{', b'"usage": {', b'"error":')
MAX_EVENT = 4 * 1024 * 1024


def usage_of(table: dict[str, Any] | None) -> Usage:
    """Usage from an OpenAI `usage` object (chat, completions or embeddings). Raises EngineFailed for anything else."""
    table = table or {}
    try:
        details = table.get("prompt_tokens_details") or {}
        prompt, completion = int(table.get("prompt_tokens") or 0), int(table.get("completion_tokens") or 0)
        cached = min(int(details.get("cached_tokens") or 0), prompt)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise EngineFailed("the engine's usage makes no sense") from None
    if min(prompt, completion, cached) < 0:
        raise EngineFailed("the engine's usage is negative")
    return Usage(prompt, completion, cached)


async def relay(http: Http, reply: Reply, charge: Charge, body: dict[str, Any], show_usage: bool) -> None:
    """Pass the OpenAI event stream that answers `body` through, event for event.

    The usage event is read, and shown only if the caller asked for it; where there is none, usage is estimated: a
    token for each event. [DONE] is held until the charge is on disk.
    """
    await http.start(200, EVENTS)
    passing = Passing(http, charge, show_usage)
    try:
        await reply.pipe(passing.feed, http.drained)
    finally:
        told = any(charge.usage)
        if not told:
            charge.usage = Usage(prompt_tokens(body), passing.events - passing.done)
    if not passing.done:
        raise EngineFailed("the engine's stream ended without [DONE]")
    await charge.settle()
    await http.end(DONE if told or not show_usage else _event(_estimated(charge, "prompt" in body)) + DONE)


def _estimated(charge: Charge, plain: bool) -> dict[str, Any]:
    """The last chunk of a stream whose engine told no usage."""
    return {
        "id": charge.entry.id,
        "object": "text_completion" if plain else "chat.completion.chunk",
        "created": int(charge.entry.created_at),
        "model": charge.card.id,
        "choices": [],
        "usage": usage_table(charge.usage),
    }


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


class Passing:
    """The bytes of one event stream on their way through. Whole events go on at once, all but the last as they are."""

    __slots__ = ("_charge", "_http", "_show_usage", "_tail", "done", "events")

    def __init__(self, http: Http, charge: Charge, show_usage: bool) -> None:
        self._http = http
        self._charge = charge
        self._show_usage = show_usage
        self._tail = b""
        self.events = 0
        self.done = False

    def feed(self, data: bytes) -> bool:
        """True when the client is behind. Raises EngineFailed for an error event or an endless one."""
        if not self.events:
            self._charge.first_token()
        if self._tail or not data.endswith(b"\n\n"):
            data = self._tail + data
            cut = data.rfind(b"\n\n") + 2
            data, self._tail = (data[:cut], data[cut:]) if cut > 1 else (b"", data)
            if len(self._tail) > MAX_EVENT:
                raise EngineFailed("the engine sent an event of over 4 MiB")
        self.events += data.count(b"data:")
        find = data.find  # `in` first raises, and drops, a TypeError: it costs twice as much
        if find(b'"usage":') >= 0 or find(b"[DONE]") >= 0 or find(b'"error":') >= 0:
            at = min(i for i in (*map(data.find, MARKS), len(data)) if i >= 0)
            start = data.rfind(b"\n\n", 0, at) + 2 if b"\n\n" in data[:at] else 0
            data = data[:start] + self._inspect(data[start:])
        return self._http.push(data)

    def _inspect(self, data: bytes) -> bytes:
        """Take usage and [DONE] out of complete events."""
        kept = []
        for event in data.split(b"\n\n"):
            if event == b"data: [DONE]":
                self.done = True
            elif event and not (any(mark in event for mark in MARKS) and self._is_usage(_payload(event))):
                kept.append(event + b"\n\n")
        return b"".join(kept)

    def _is_usage(self, chunk: dict[str, Any]) -> bool:
        """Note usage; true if the event is to be left out."""
        if "error" in chunk and "choices" not in chunk:
            raise _reported(chunk["error"])
        if not chunk.get("usage"):
            return False
        self._charge.usage = usage_of(chunk["usage"])
        return not chunk.get("choices") and not self._show_usage


def _reported(error: Any) -> EngineFailed:
    """The error event of an engine's stream, as ours."""
    message = error.get("message") if isinstance(error, dict) else error
    return EngineFailed(str(message or "the engine reported an error"))


def _payload(event: bytes) -> dict[str, Any]:
    return json_object(b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")))


def json_object(payload: bytes) -> dict[str, Any]:
    """What an engine sent. Raises EngineFailed."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise EngineFailed("the engine's answer is not a JSON object")
    return value


async def parsed(reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """Chunk objects of a stream. Raises EngineFailed, or what a station reported."""
    reader = EventReader()
    while data := await reply.read():
        for payload in reader.feed(data):
            if payload == LAST:
                return
            chunk = json_object(payload)
            if chunk.get("error") and not chunk.get("choices"):
                raise from_wire(chunk["error"]) if reply.endpoint.station else _reported(chunk["error"])
            if not well_made(chunk):
                raise EngineFailed("the engine sent an event that is no part of an answer")
            yield chunk
    raise EngineFailed("the engine's stream ended without [DONE]")


async def chunks(reply: Reply, charge: Charge, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """`parsed`, keeping the charge's usage current, so that a cut stream is charged for the prompt and the tokens that
    were sent. Ends with estimated usage where the engine told none."""
    told = False
    charge.usage = Usage(prompt_tokens(body))
    async for chunk in parsed(reply):
        if chunk.get("usage") and any(used := usage_of(chunk["usage"])):
            charge.usage, told = used, True
        elif chunk.get("choices"):
            charge.usage = charge.usage if told else charge.usage._replace(output=charge.usage.output + 1)
            charge.first_token()
        yield chunk
    if not told:
        yield _estimated(charge, "prompt" in body)


def counted(data: bytes, body: dict[str, Any]) -> tuple[bytes, Usage]:
    """An answer to `body` that is not a stream, and its usage, which is put in where the engine told none.
    Raises EngineFailed."""
    value = json_object(data)
    if any(usage := usage_of(value.get("usage"))):
        return data, usage
    usage = Usage(prompt_tokens(body), answer_tokens(value))
    return orjson.dumps({**value, "usage": usage_table(usage)}), usage


async def whole(reply: Reply, limit: int = 64 * 1024 * 1024) -> bytes:
    """The complete body of a reply that is not a stream."""
    parts, size = [], 0
    while data := await reply.read():
        parts.append(data)
        size += len(data)
        if size > limit:
            reply.close()
            raise EngineFailed(f"the engine's answer is over {limit} bytes")
    reply.close()
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def refusal(reply: Reply) -> AtollError:
    """The error that an engine answered with (status >= 400), as ours."""
    raw = await whole(reply, 1024 * 1024)
    try:
        error = orjson.loads(raw).get("error", {})
    except (orjson.JSONDecodeError, AttributeError):
        error = {}
    if not isinstance(error, dict):
        error = {"message": str(error)}
    if reply.endpoint.station and "status" in error:
        return from_wire(error)
    message = str(error.get("message") or f"the engine answered {reply.status}")
    if reply.status in {401, 403}:
        return EngineFailed(f"endpoint '{reply.endpoint.name}' refused Atoll's key: {message}")
    if 400 <= reply.status < 500 and reply.status not in {408, 429}:
        result = InvalidRequest(message, param=error.get("param"), code=str(error.get("code") or "invalid_request"))
        result.status = reply.status
        return result
    result = EngineFailed(message)
    if reply.status == 429:
        result.status, result.code = 503, "overloaded"
        result.retry_after = 1.0
    return result


def collect(parts: list[dict[str, Any]], kind: str = "chat.completion") -> dict[str, Any]:
    """One completion object from the chunks of a stream (all choices)."""
    choices: dict[int, dict[str, Any]] = {}
    result: dict[str, Any] = {"id": "", "object": kind, "created": 0, "model": "", "choices": [], "usage": None}
    for chunk in parts:
        for name in ("id", "created", "model", "system_fingerprint"):
            if chunk.get(name):
                result[name] = chunk[name]
        result["usage"] = chunk.get("usage") or result["usage"]
        for delta in chunk.get("choices", ()):
            _absorb(choices.setdefault(delta["index"], {"index": delta["index"]}), delta, kind)
    result["choices"] = [choices[i] for i in sorted(choices)]
    return result


def _absorb(choice: dict[str, Any], piece: dict[str, Any], kind: str) -> None:
    choice.setdefault("finish_reason", None)
    choice.setdefault("logprobs", None)
    if piece.get("finish_reason"):
        choice["finish_reason"] = piece["finish_reason"]
    if piece.get("logprobs"):
        merged = choice["logprobs"] or {}
        for name, values in piece["logprobs"].items():
            merged[name] = [*(merged.get(name) or []), *values] if isinstance(values, list) else values
        choice["logprobs"] = merged
    if kind == "text_completion":
        choice["text"] = choice.get("text", "") + (piece.get("text") or "")
        return
    message = choice.setdefault("message", {"role": "assistant", "content": None, "refusal": None})
    delta = piece.get("delta", {})
    for name in ("content", "reasoning_content", "refusal"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    if delta.get("audio"):
        heard = message.setdefault("audio", {"id": "", "data": "", "transcript": "", "expires_at": 0})
        for name, value in delta["audio"].items():
            heard[name] = heard[name] + value if name in {"data", "transcript"} else value
    for call in delta.get("tool_calls", ()):
        _absorb_call(message.setdefault("tool_calls", []), call)


def _absorb_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    while len(calls) <= piece["index"]:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[piece["index"]]
    call["id"] = piece.get("id") or call["id"]
    function = piece.get("function", {})
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""

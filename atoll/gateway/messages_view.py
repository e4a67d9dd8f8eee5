"""Canonical chunks to Anthropic's events, and to the message they add up to."""

from __future__ import annotations

from typing import Any

import orjson

from atoll.core.errors import AtollError, EngineFailed
from atoll.gateway.errors import error_body
from atoll.gateway.stream import usage_of
from atoll.gateway.translate import Event

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class MessageView:
    """Blocks follow one another: thinking, text, one tool_use a call. Input tokens are known only at the end, so
    they stand in `message_delta`; `message_start` carries zeros."""

    def __init__(self, id: str, model: str) -> None:
        self._message: dict[str, Any] = {
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": anthropic_usage(None),
        }
        self._begun = False
        self._open: dict[str, Any] | None = None
        self._arguments = ""
        self._calls = 0

    def feed(self, chunk: dict[str, Any]) -> list[Event]:
        events = self._begin()
        if chunk.get("usage"):
            self._message["usage"] = anthropic_usage(chunk["usage"])
        for choice in chunk.get("choices", ())[:1]:
            delta = choice.get("delta") or {}
            if delta.get("reasoning_content"):
                events += self._grow("thinking", "thinking_delta", delta["reasoning_content"])
            for name in ("content", "refusal"):
                if delta.get(name):
                    events += self._grow("text", "text_delta", delta[name])
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._stop(choice)
        return events

    async def finish(self) -> list[Event]:
        events = self._begin() + self._close()
        message = self._message
        if message["stop_reason"] is None:
            raise EngineFailed("the engine's stream ended without a finish reason")
        reason = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        return [
            *events,
            {"type": "message_delta", "delta": reason, "usage": message["usage"]},
            {"type": "message_stop"},
        ]

    def result(self) -> dict[str, Any]:
        return self._message

    def failure(self, error: AtollError, request_id: str) -> Event:
        return error_body(error, "/v1/messages", request_id)

    def _begin(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        return [{"type": "message_start", "message": {**self._message, "content": []}}, {"type": "ping"}]

    def _grow(self, kind: str, delta: str, text: str) -> list[Event]:
        events = []
        if self._open is None or self._open["type"] != kind:
            more = {"signature": ""} if kind == "thinking" else {}
            events = self._start({"type": kind, kind: "", **more})
        assert self._open is not None
        self._open[kind] += text
        return [*events, self._delta({"type": delta, kind: text})]

    def _call(self, piece: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        function = piece.get("function") or {}
        index = piece.get("index", 0)
        if index == self._calls:
            self._calls += 1
            identity = piece.get("id") or f"toolu_{self._message['id'][4:]}_{index}"
            events = self._start({"type": "tool_use", "id": identity, "name": function.get("name") or "", "input": {}})
        elif index != self._calls - 1 or self._open is None or self._open["type"] != "tool_use":
            raise EngineFailed("the engine mixed the arguments of two tool calls")
        if function.get("arguments"):
            self._arguments += function["arguments"]
            events.append(self._delta({"type": "input_json_delta", "partial_json": function["arguments"]}))
        return events

    def _start(self, block: dict[str, Any]) -> list[Event]:
        events = self._close()
        self._open = block
        self._message["content"].append(block)
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": dict(block)}]

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        events = []
        if self._open["type"] == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": ""}))
        if self._open["type"] == "tool_use":
            self._open["input"] = arguments_of(self._arguments)
            self._arguments = ""
        self._open = None
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _index(self) -> int:
        return len(self._message["content"]) - 1

    def _stop(self, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if not reason:
            return
        stopped_at = choice.get("stop_reason")
        if reason == "stop" and self._calls:
            self._message["stop_reason"] = "tool_use"
        elif reason == "stop" and isinstance(stopped_at, str):
            self._message["stop_reason"], self._message["stop_sequence"] = "stop_sequence", stopped_at
        else:
            self._message["stop_reason"] = STOP_REASONS.get(reason, "end_turn")


def arguments_of(text: str) -> dict[str, Any]:
    """A call's arguments; an answer cut short may leave half an object, which is given as what it is."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"_incomplete": text}


def anthropic_usage(table: dict[str, Any] | None) -> dict[str, int]:
    """Anthropic counts what came from the cache beside `input_tokens`, not within."""
    usage = usage_of(table)
    return {
        "input_tokens": usage.input - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }

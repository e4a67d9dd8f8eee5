"""Canonical chunks to the events of the Responses API, and to the response they add up to."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from atoll.core.errors import AtollError, EngineFailed
from atoll.gateway.stream import usage_of
from atoll.gateway.translate import Event

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
PARTS = {
    "output_text": ("message", "text", "response.output_text"),
    "refusal": ("message", "refusal", "response.refusal"),
    "reasoning_text": ("reasoning", "text", "response.reasoning_text"),
}
Keep = Callable[[dict[str, Any]], Awaitable[None]]


class ResponseView:
    """Items follow one another: reasoning, message, one function_call a call; one is open at a time.

    `response` is the response as it begins; `keep` stores it, finished, before its end is told."""

    def __init__(self, response: dict[str, Any], keep: Keep | None) -> None:
        self._response = response
        self._keep = keep
        self._number = 0
        self._item: dict[str, Any] | None = None
        self._calls = 0
        self._finish = ""

    def feed(self, chunk: dict[str, Any]) -> list[Event]:
        events = self._begin()
        if chunk.get("usage"):
            self._response["usage"] = responses_usage(chunk["usage"])
        for choice in chunk.get("choices", ())[:1]:
            delta = choice.get("delta") or {}
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            if delta.get("reasoning_content"):
                events += self._grow("reasoning_text", delta["reasoning_content"], [])
            if delta.get("content"):
                events += self._grow("output_text", delta["content"], logprobs)
            if delta.get("refusal"):
                events += self._grow("refusal", delta["refusal"], [])
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._finish = choice.get("finish_reason") or self._finish
        return events

    async def finish(self) -> list[Event]:
        if not self._finish:
            raise EngineFailed("the engine's stream ended without a finish reason")
        reason = INCOMPLETE.get(self._finish)
        status = "incomplete" if reason else "completed"
        events = self._begin() + self._close(status)
        response = self._response
        response["status"] = status
        response["incomplete_details"] = {"reason": reason} if reason else None
        response["completed_at"] = None if reason else int(time.time())
        if self._keep is not None:
            await self._keep(response)
        return [*events, self._event(f"response.{status}", response=response)]

    def result(self) -> dict[str, Any]:
        return self._response

    def failure(self, error: AtollError, request_id: str) -> Event:
        failed = {"code": "server_error", "message": f"{error.message} ({request_id})"}
        return self._event("response.failed", response={**self._response, "status": "failed", "error": failed})

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _begin(self) -> list[Event]:
        if self._number:
            return []
        names = ("response.created", "response.in_progress")
        return [self._event(name, response={**self._response, "output": []}) for name in names]

    def _grow(self, kind: str, text: str, logprobs: list[Any]) -> list[Event]:
        item_type, field, event = PARTS[kind]
        events: list[Event] = []
        if self._item is None or self._item["type"] != item_type:
            more = {"role": "assistant"} if item_type == "message" else {"summary": []}
            events += self._open({"type": item_type, **more, "content": []})
        assert self._item is not None
        content = self._item["content"]
        if not content or content[-1]["type"] != kind:
            events += self._close_part()
            content.append({"type": kind, field: ""} | ({"annotations": [], "logprobs": []} if field == "text" else {}))
            if kind == "reasoning_text":
                content[-1] = {"type": kind, "text": ""}
            events.append(self._event("response.content_part.added", **self._at_part(), part=dict(content[-1])))
        content[-1][field] += text
        more = {"logprobs": logprobs} if kind == "output_text" else {}
        if logprobs:
            content[-1]["logprobs"] += logprobs
        return [*events, self._event(f"{event}.delta", **self._at_part(), delta=text, **more)]

    def _call(self, piece: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        function = piece.get("function") or {}
        index = piece.get("index", 0)
        if index == self._calls:
            self._calls += 1
            call_id = piece.get("id") or f"call_{self._response['id'][5:]}_{index}"
            name = function.get("name") or ""
            events += self._open({"type": "function_call", "call_id": call_id, "name": name, "arguments": ""})
        elif index != self._calls - 1 or self._item is None or self._item["type"] != "function_call":
            raise EngineFailed("the engine mixed the arguments of two tool calls")
        if function.get("arguments"):
            assert self._item is not None
            self._item["arguments"] += function["arguments"]
            events.append(
                self._event("response.function_call_arguments.delta", **self._at(), delta=function["arguments"])
            )
        return events

    def _open(self, item: dict[str, Any]) -> list[Event]:
        events = self._close("completed")
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[item["type"]]
        output = self._response["output"]
        self._item = {"id": f"{prefix}_{self._response['id'][5:]}_{len(output)}", **item, "status": "in_progress"}
        output.append(self._item)
        shown = {**self._item, "content": []} if "content" in item else dict(self._item)
        return [*events, self._event("response.output_item.added", output_index=len(output) - 1, item=shown)]

    def _close(self, status: str) -> list[Event]:
        if self._item is None:
            return []
        events = self._close_part()
        if self._item["type"] == "function_call":
            done = {"name": self._item["name"], "arguments": self._item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **self._at(), **done))
        self._item["status"] = status
        index = len(self._response["output"]) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=self._item))
        self._item = None
        return events

    def _close_part(self) -> list[Event]:
        content = self._item.get("content") if self._item else None
        if not content:
            return []
        part = content[-1]
        _, field, event = PARTS[part["type"]]
        more = {"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}
        return [
            self._event(f"{event}.done", **self._at_part(), **{field: part[field]}, **more),
            self._event("response.content_part.done", **self._at_part(), part=part),
        ]

    def _at(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self._response["output"]) - 1}

    def _at_part(self) -> dict[str, Any]:
        assert self._item is not None
        return {**self._at(), "content_index": len(self._item["content"]) - 1}


def responses_usage(table: dict[str, Any]) -> dict[str, Any]:
    usage = usage_of(table)
    thought = int((table.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.input + usage.output,
    }

"""llama.cpp's streams as canonical OpenAI chunks."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from atoll.core.errors import EngineFailed
from atoll.engines.llamacpp.schemas import Shape

Chunk = dict[str, Any]
HEAD = re.compile(r'\{"name": "((?:[^"\\]|\\.)*)", "arguments": ')
HEAD_LIMIT = 4096
DELTA = ("content", "reasoning_content", "tool_calls")


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer must look like. `calls`: a tool call, of the function `name` or, if empty, of one it names."""

    model: str
    choices: int = 1
    prompts: int = 1
    json: bool = False
    calls: bool = False
    name: str = ""


@dataclass(slots=True)
class Tally:
    """llama.cpp reports usage for every choice; OpenAI once. A prompt counts once for all its choices."""

    answers: int
    each: int
    reports: list[dict[str, Any]] = field(default_factory=list)

    def add(self, usage: dict[str, Any]) -> dict[str, Any] | None:
        """The sum when the last report is in. Every choice of a prompt reports the same prompt tokens, and only the
        first of them may have found some in the cache."""
        self.reports.append(usage)
        if len(self.reports) < self.answers:
            return None
        cached = [(r.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for r in self.reports]
        prompt = sum(r["prompt_tokens"] for r in self.reports) // self.each
        completion = sum(r["completion_tokens"] for r in self.reports)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached) // self.each},
        }


class _Stream:
    object = ""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.tally = Tally(expected.choices * expected.prompts, expected.choices)
        self.shapes: dict[int, Shape] = {}

    def feed(self, chunk: Chunk) -> list[Chunk]:
        """Raises EngineFailed when the answer is not what the grammar allows."""
        out = []
        for choice in () if "prompt_progress" in chunk else chunk.get("choices") or ():
            out += [self.chunk(chunk, [piece]) for piece in self.choice(choice)]
        if chunk.get("usage"):
            usage = self.tally.add(chunk["usage"])
            out += [{**self.chunk(chunk, []), "usage": usage}] if usage else []
        return out

    def chunk(self, source: Chunk, choices: list[dict[str, Any]]) -> Chunk:
        return {
            "id": source.get("id", ""),
            "object": self.object,
            "created": source.get("created", 0),
            "model": self.expected.model,
            "system_fingerprint": source.get("system_fingerprint"),
            "choices": choices,
        }

    def choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        raise NotImplementedError

    def watch(self, index: int, text: str, reason: str | None) -> None:
        """Hold the answer to JSON if that is what it must be."""
        if not self.expected.json:
            return
        shape = self.shapes.setdefault(index, Shape())
        shape.feed(text)
        if reason:
            shape.finish(reason)


class ChatDecoder(_Stream):
    """For chat completions, made as such or as completions of a templated prompt."""

    object = "chat.completion.chunk"

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self.begun: set[int] = set()
        self.calls: dict[int, _Call] = {}

    def choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        index, reason = choice["index"], choice.get("finish_reason")
        given = {"content": choice["text"]} if "text" in choice else choice.get("delta") or {}
        delta = {k: given[k] for k in DELTA if given.get(k) is not None}
        self.watch(index, delta.get("content") or "", reason)
        if self.expected.calls:
            call = self.calls.setdefault(index, _Call(self.expected.name))
            delta = call.feed(delta.get("content") or "", reason)
            reason = "tool_calls" if reason == "stop" else reason
        pieces = []
        if index not in self.begun:
            self.begun.add(index)
            opening = {"role": "assistant", "content": None if delta.get("tool_calls") else ""}
            if delta.get("content"):
                pieces.append({"index": index, "delta": opening, "logprobs": None, "finish_reason": None})
            else:
                delta = {**opening, **delta}
        if not delta and not reason and not choice.get("logprobs"):
            return pieces
        shown = {"index": index, "delta": delta, "logprobs": _logprobs(choice.get("logprobs")), "finish_reason": reason}
        return [*pieces, shown]


class TextDecoder(_Stream):
    """For the older completions."""

    object = "text_completion"

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self.offsets: dict[int, int] = {}

    def choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        index, text, reason = choice["index"], choice.get("text") or "", choice.get("finish_reason")
        if not text and not reason and not choice.get("logprobs"):
            return []
        logprobs = self.legacy(index, choice.get("logprobs"))
        return [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]

    def legacy(self, index: int, logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
        """`content` entries as the four parallel lists of the older API; offsets count characters of the answer."""
        entries = (logprobs or {}).get("content")
        if not entries:
            return None
        at = self.offsets.get(index, 0)
        offsets = []
        for entry in entries:
            offsets.append(at)
            at += len(entry["token"])
        self.offsets[index] = at
        return {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{t["token"]: t["logprob"] for t in e.get("top_logprobs") or ()} for e in entries],
            "text_offset": offsets,
        }


@dataclass(slots=True)
class _Call:
    """Text under the tool grammar as tool_calls deltas: the name first, then the arguments as they come."""

    name: str
    head: str = ""
    tail: str = ""
    named: bool = False
    wrapped: bool = False

    def feed(self, text: str, reason: str | None) -> dict[str, Any]:
        if not self.named and not self.name:
            self.head += text
            match = HEAD.match(self.head)
            if not match:
                if len(self.head) > HEAD_LIMIT or reason == "stop":
                    raise EngineFailed("the engine's answer is not the tool call that was asked for")
                return {}
            self.name, self.wrapped, text = match[1], True, self.head[match.end() :]
        if self.wrapped:
            text, self.tail = self._hold(self.tail + text, reason)
        function: dict[str, Any] = {"arguments": text}
        call: dict[str, Any] = {"index": 0, "function": function}
        if not self.named:
            self.named = True
            call |= {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            call["function"] = {"name": self.name, "arguments": text}
        elif not text:
            return {}
        return {"tool_calls": [call]}

    def _hold(self, text: str, reason: str | None) -> tuple[str, str]:
        """The last brace closes the wrapper, not the arguments."""
        if reason == "stop":
            return text.removesuffix("}"), ""
        return (text, "") if reason else (text[:-1], text[-1:])


def _logprobs(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """OpenAI's fields only; llama.cpp adds token ids."""
    if not given:
        return None
    keep = ("token", "bytes", "logprob")
    return {
        "content": [
            {**{k: e.get(k) for k in keep}, "top_logprobs": [{k: t.get(k) for k in keep} for t in e["top_logprobs"]]}
            for e in given.get("content") or ()
        ]
    }

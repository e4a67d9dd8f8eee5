"""Tokens where a server elsewhere does not tell them. What is estimated is charged, and carries `estimated: true`."""

from __future__ import annotations

from typing import Any

from atoll.core.route import BYTES_PER_TOKEN
from atoll.core.types import Usage

MEDIUM_TOKENS = 256
MEDIA = {"image_url", "input_audio"}
ASKED = ("messages", "prompt", "input", "tools")
SAID = ("content", "reasoning_content", "refusal", "text", "arguments")


def prompt_tokens(body: dict[str, Any]) -> int:
    """Of a request for chat, completions or embeddings: a quarter of its text's bytes, 256 for a picture or a sound
    (as Qwen-VL takes for 448 x 448 pixels), and token ids as they are."""
    tokens = size = 0
    left: list[Any] = [body[name] for name in ASKED if name in body]
    while left:
        item = left.pop()
        if isinstance(item, str):
            size += len(item.encode("utf-8", "replace"))
        elif isinstance(item, dict) and item.get("type") in MEDIA:
            tokens += MEDIUM_TOKENS
        elif isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item
        else:
            tokens += 1
    return tokens - (-size // BYTES_PER_TOKEN)


def answer_tokens(answer: dict[str, Any]) -> int:
    """Of a completion that is not a stream: a quarter of the bytes of what was said."""
    size = 0
    left: list[Any] = list(answer.get("choices") or ())
    while left:
        item = left.pop()
        if isinstance(item, dict):
            size += sum(len(item[name].encode()) for name in SAID if isinstance(item.get(name), str))
            left += item.values()
        elif isinstance(item, list):
            left += item
    return -(-size // BYTES_PER_TOKEN)


def usage_table(usage: Usage) -> dict[str, Any]:
    total = usage.input + usage.output
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": total,
        "estimated": True,
    }

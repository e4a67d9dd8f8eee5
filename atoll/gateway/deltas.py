"""What a chunk of a stream adds to a choice of the answer."""

from __future__ import annotations

from typing import Any

Chunk = dict[str, Any]


def said(choice: Chunk) -> tuple[str, str]:
    """The channel and the text of what a chunk adds to a choice."""
    if "text" in choice:
        return "text", choice["text"] or ""
    delta = choice.get("delta") or {}
    for channel in ("content", "reasoning_content"):
        if delta.get(channel):
            return channel, delta[channel]
    calls = [(c.get("function") or {}).get("arguments") or "" for c in delta.get("tool_calls") or ()]
    return ("tool_calls", "".join(calls)) if calls else ("content", "")


def say(choice: Chunk, channel: str, text: str) -> Chunk:
    """The choice with another text on a channel; calls of tools are continued, not begun."""
    if channel == "text":
        return {**choice, "text": text}
    delta = choice["delta"]
    if channel != "tool_calls":
        return {**choice, "delta": {**delta, channel: text}}
    rest = {name: value for name, value in delta.items() if name != channel}
    if text:
        rest[channel] = [{"index": delta[channel][0]["index"], "function": {"arguments": text}}]
    return {**choice, "delta": rest}


def brings_text(chunk: Chunk) -> bool:
    return any(said(choice)[1] for choice in chunk.get("choices") or ())


def well_made(chunk: Chunk) -> bool:
    """Whether it can be part of an answer: an engine that is out of its mind may send any JSON."""
    try:
        for choice in chunk.get("choices") or ():
            ids = choice.get("token_ids")
            if type(choice["index"]) is not int or (ids is not None and type(ids) is not list):
                return False
            if type(choice.get("delta", {})) is not dict or type(said(choice)[1]) is not str:
                return False
    except (AttributeError, KeyError, TypeError):
        return False
    return True

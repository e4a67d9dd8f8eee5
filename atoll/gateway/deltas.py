"""What a chunk of a stream adds to a choice of the answer."""

from __future__ import annotations

from typing import Any

Chunk = dict[str, Any]
CHANNELS = ("content", "reasoning_content")


def said(choice: Chunk) -> tuple[str, str]:
    """The channel and the text of what a chunk adds to a choice."""
    if "text" in choice:
        return "text", choice["text"] or ""
    delta = choice.get("delta") or {}
    for channel in CHANNELS:
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
        rest[channel] = [{"index": delta[channel][0].get("index", 0), "function": {"arguments": text}}]
    return {**choice, "delta": rest}


def begins(choice: Chunk) -> tuple[int, str] | None:
    """Index and name of the tool call that a choice begins."""
    for call in (choice.get("delta") or {}).get("tool_calls") or ():
        if name := (call.get("function") or {}).get("name"):
            return call.get("index", 0), name
    return None


def apart(chunk: Chunk) -> list[Chunk]:
    """The chunk as chunks whose choices add one thing each: to a channel, or to one call of a tool."""
    choices = chunk.get("choices") or ()
    pieces = [piece for choice in choices for piece in _pieces(choice)]
    if len(pieces) == len(choices):
        return [chunk]
    shared = {name: value for name, value in chunk.items() if name != "usage"}
    return [*({**shared, "choices": [piece]} for piece in pieces[:-1]), {**chunk, "choices": pieces[-1:]}]


def _pieces(choice: Chunk) -> list[Chunk]:
    """The tokens of a choice go with its first piece, its end with the last."""
    delta = choice.get("delta") or {}
    calls = delta.get("tool_calls") or ()
    added = [{name: delta[name]} for name in CHANNELS if delta.get(name)] + [{"tool_calls": [call]} for call in calls]
    if len(added) < 2:
        return [choice]
    added[0] |= {name: value for name, value in delta.items() if name not in (*CHANNELS, "tool_calls")}
    spent = {name: empty for name, empty in (("token_ids", []), ("logprobs", None)) if choice.get(name)}
    first, *later = ({**choice, "delta": each, "finish_reason": None} for each in added)
    pieces = [first, *({**piece, **spent} for piece in later)]
    pieces[-1]["finish_reason"] = choice.get("finish_reason")
    return pieces


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
            if (begun := begins(choice)) and tuple(map(type, begun)) != (int, str):
                return False
    except (AttributeError, KeyError, TypeError):
        return False
    return True

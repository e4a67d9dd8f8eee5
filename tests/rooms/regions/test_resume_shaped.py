"""Streams of tool calls and of JSON under a schema, cut behind every piece: what the client puts together is whole."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import pytest
from known_engine import choice, event
from test_resume import World, text, world

ROLE = {"role": "assistant", "content": ""}
ARGUMENTS = ('{"city": "Bern", "days": 3}', "{}")
FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "clock")]
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def opening(index: int, name: str, arguments: str = "") -> dict[str, Any]:
    """What begins a call; its id is another one each time."""
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": f"call_{secrets.token_hex(4)}", "type": "function", "function": function}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}}


def calls(*added: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": list(added)}


def named_first() -> list[dict[str, Any]]:
    """As llama.cpp and vLLM do it: names without arguments, then the arguments piece by piece."""
    first, second = ARGUMENTS
    pieces = [calls(more(0, first[i : i + 5])) for i in range(0, len(first), 5)]
    return [ROLE, {"content": "I look. "}, calls(opening(0, "weather")), *pieces, calls(opening(1, "clock", second))]


def named_with_arguments() -> list[dict[str, Any]]:
    first, second = ARGUMENTS
    begun = opening(0, "weather", first[:7])
    return [ROLE, calls(begun), calls(more(0, first[7:])), calls(opening(1, "clock", second))]


def together() -> list[dict[str, Any]]:
    """Several things in one piece, as servers that parse a whole answer tell them."""
    first, second = ARGUMENTS
    return [
        ROLE,
        {"content": "I look. ", **calls(opening(0, "weather", first[:9]))},
        calls(more(0, first[9:]), opening(1, "clock", second[:1])),
        calls(more(1, second[1:])),
    ]


def one_token() -> list[dict[str, Any]]:
    """Another cut between the same pieces: a region made anew need not send what the first one sent."""
    first, second = ARGUMENTS
    return [ROLE, calls(opening(0, "weather")), *(calls(more(0, c)) for c in first), calls(opening(1, "clock", second))]


def schema() -> list[dict[str, Any]]:
    return [ROLE, *({"content": piece} for piece in ('{"', "city", '":', ' "B', "ern", '"}'))]


def play(w: World, scripts: list[list[dict[str, Any]]], finish: str, ids: bool, stop: int) -> None:
    """The engine tells the first script up to piece `stop`, then nothing; asked again, the next one to its end."""
    left = list(scripts)

    async def tell(body: dict, chat: bool, send: Any) -> None:
        again = len(left) < len(scripts)
        script = left.pop(0) if len(left) > 1 else left[0]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for at, delta in enumerate(script):
            if at == stop and not again:
                await asyncio.sleep(30)
            told = {"token_ids": [at] if at else []} if ids else {}
            await event(send, choice({"delta": delta, **told}))
        if stop == len(script) and not again:
            await asyncio.sleep(30)
        await event(send, choice({"delta": {}, **({"token_ids": []} if ids else {})}, finish))
        usage = {"prompt_tokens": 2, "completion_tokens": len(script), "total_tokens": 2 + len(script)}
        await event(send, {"id": "k", "created": 1, "model": "known", "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    w.engine.tell = tell  # type: ignore[method-assign]


async def cut(w: World, body: dict[str, Any], pieces: int) -> list[dict[str, Any]]:
    """All events of a stream whose region is killed as soon as the client has all that the first engine tells."""
    events: list[dict[str, Any]] = []
    deltas = 0
    async for each in w.events(body):
        events.append(each)
        deltas += sum("content" in c["delta"] or "tool_calls" in c["delta"] for c in each.get("choices", ()))
        if deltas >= pieces > 0:
            pieces = 0
            await w.home.stations[w.first].kill()
    return events


def called(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name and arguments of every call, put together as clients do."""
    made: dict[int, list[str]] = {}
    for told in (t for e in events for c in e.get("choices", ()) for t in c["delta"].get("tool_calls") or ()):
        function = told["function"]
        name, arguments = made.setdefault(told["index"], ["", ""])
        made[told["index"]] = [name + function.get("name", ""), arguments + (function.get("arguments") or "")]
        assert bool(told.get("id")) == bool(function.get("name")), told
    return [(name, arguments) for _, (name, arguments) in sorted(made.items())]


def finishes(events: list[dict[str, Any]]) -> list[str]:
    return [c["finish_reason"] for e in events for c in e.get("choices", ()) if c["finish_reason"]]


def size(script: list[dict[str, Any]]) -> int:
    """Pieces that a client sees of a script: each adds one thing."""
    return sum(len(delta.get("tool_calls", ())) + bool(delta.get("content")) or 1 for delta in script)


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("script", [named_first, named_with_arguments, together])
async def test_tools_are_called_once_and_whole_wherever_the_stream_is_cut(script: Any, ids: bool) -> None:
    async with world() as w:
        body = w.asked(stream=True, seed=1, tools=FUNCTIONS, stream_options={"include_usage": True})
        play(w, [script()], "tool_calls", ids, -1)
        whole = await cut(w, body, 0)
        assert called(whole) == list(zip(("weather", "clock"), ARGUMENTS, strict=True))
        for stop in range(1, len(script()) + 1):
            play(w, [script(), script()], "tool_calls", ids, stop)
            events = await cut(w, body, size(script()[:stop]))
            assert called(events) == called(whole), (stop, events)
            assert all(json.loads(arguments) is not None for _, arguments in called(events))
            assert text(events) == text(whole) and finishes(events) == ["tool_calls"], stop
            row = await w.house.settled()
            assert row.status == "done"
            if not ids:
                assert sum(int(step.split(":")[1]) for step in row.path.split()) == row.usage.output == len(script())
            await w.home.revive(w.first)


async def test_a_call_is_begun_once_where_the_pieces_come_in_another_way() -> None:
    ways = [named_with_arguments, one_token]
    async with world() as w:
        body = w.asked(stream=True, seed=1, tools=FUNCTIONS)
        for first, second in (ways, ways[::-1]):
            for stop in range(1, len(first()) + 1):
                play(w, [first(), second()], "tool_calls", False, stop)
                events = await cut(w, body, stop)
                assert called(events) == list(zip(("weather", "clock"), ARGUMENTS, strict=True)), (stop, events)
                await w.home.revive(w.first)


async def test_another_tool_than_the_client_was_told_ends_the_stream() -> None:
    async with world() as w:
        scripts = [[ROLE, {"content": "So: "}, calls(opening(0, name))] for name in ("weather", "clock")]
        play(w, scripts, "tool_calls", False, 3)
        events = await cut(w, w.asked(stream=True, seed=1, tools=FUNCTIONS), 3)
        assert "error" in events[-1] and called(events) == [("weather", "")]


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
async def test_json_under_a_schema_is_whole_wherever_the_stream_is_cut(ids: bool) -> None:
    async with world() as w:
        w.policy(recovery="fast")
        body = w.asked(stream=True, seed=1, response_format=FORMAT)
        for stop in range(1, len(schema()) + 1):
            play(w, [schema(), schema()], "stop", ids, stop)
            events = await cut(w, body, stop)
            assert json.loads(text(events)) == {"city": "Bern"}, stop
            assert finishes(events) == ["stop"]
            row = await w.house.settled()
            assert row.status == "done"
            assert row.grade == ("" if stop == 1 else "exact" if ids else "exact-text"), "no grammar goes on fast"
            await w.home.revive(w.first)

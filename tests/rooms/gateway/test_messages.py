"""Anthropic's messages: what the engine is asked, what the official SDK reads back, what is refused and how."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest
from support import CHAT_CARD, OTHER_SECRET, SECRET, chunk, event_stream, json_answer, running, usage

from atoll.core.errors import ContextOverflow, to_wire
from atoll.core.types import Limits
from atoll.gateway.chat import COUNT
from atoll.gateway.messages_view import MessageView

CHAT = "/v1/chat/completions"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {
    "name": "weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def sdk(url: str, secret: str = SECRET) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key=secret, max_retries=0)


def request(**more: Any) -> dict[str, Any]:
    return {"model": "talker", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}], **more}


def call_chunks() -> list[dict[str, Any]]:
    def piece(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": first["name"]} if first else {})}
        head = {"id": first["id"], "type": "function"} if first else {}
        return chunk({"tool_calls": [{"index": index, **head, "function": function}]})

    return [
        chunk({"role": "assistant", "content": "Let me look."}),
        piece(0, '{"ci', id="call_1", name="weather"),
        piece(0, 'ty":"Rome"}'),
        piece(1, "{}", id="call_2", name="clock"),
        chunk(finish="tool_calls"),
        usage(20, 9, 8),
    ]


async def test_view_tells_a_conversation_of_thinking_text_and_calls() -> None:
    view = MessageView("msg_1", "talker")
    said = [[(e["type"], e.get("index"), e.get("delta")) for e in view.feed(c)] for c in [
        chunk({"role": "assistant"}),
        chunk({"reasoning_content": "Hmm"}),
        *call_chunks(),
    ]]
    assert said == [
        [("message_start", None, None), ("ping", None, None)],
        [("content_block_start", 0, None), ("content_block_delta", 0, {"type": "thinking_delta", "thinking": "Hmm"})],
        [
            ("content_block_delta", 0, {"type": "signature_delta", "signature": ""}),
            ("content_block_stop", 0, None),
            ("content_block_start", 1, None),
            ("content_block_delta", 1, {"type": "text_delta", "text": "Let me look."}),
        ],
        [
            ("content_block_stop", 1, None),
            ("content_block_start", 2, None),
            ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": '{"ci'}),
        ],
        [("content_block_delta", 2, {"type": "input_json_delta", "partial_json": 'ty":"Rome"}'})],
        [
            ("content_block_stop", 2, None),
            ("content_block_start", 3, None),
            ("content_block_delta", 3, {"type": "input_json_delta", "partial_json": "{}"}),
        ],
        [],
        [],
    ]
    assert await view.finish() == [
        {"type": "content_block_stop", "index": 3},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 12,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 8,
                "output_tokens": 9,
            },
        },
        {"type": "message_stop"},
    ]
    kinds = [(b["type"], b.get("input")) for b in view.result()["content"]]
    assert kinds == [("thinking", None), ("text", None), ("tool_use", {"city": "Rome"}), ("tool_use", {})]


async def test_sdk_reads_a_whole_message_and_the_engine_is_asked_in_chat() -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, event_stream(chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop"), usage(7, 2)))
        message = await client.messages.create(
            model="talker",
            max_tokens=50,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": "user", "content": "hello"}],
            stop_sequences=["END"],
            metadata={"user_id": "u1"},
            extra_body={"temperature": 0.5, "top_k": 3},
        )
        assert (message.content[0].text, message.stop_reason, message.model) == ("Hello", "end_turn", "talker")
        assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 2)
        assert house.upstream.asked[0].json == {
            "model": "talker",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            "max_tokens": 50,
            "stop": ["END"],
            "temperature": 0.5,
            "top_k": 3,
            "user": "u1",
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        row = await house.settled()
        assert (row.route, row.status, row.usage.input, row.usage.output, row.cost) == (
            "/v1/messages", "done", 7, 2, 7 * 100 + 2 * 200,
        )
        assert house.held() == (0, 0)


async def test_sdk_streams_text_thinking_and_tools() -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, event_stream(chunk({"reasoning_content": "Hmm"}), *call_chunks()))
        async with client.messages.stream(
            **request(tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
        ) as stream:
            names = [e.type async for e in stream]
            message = await stream.get_final_message()
        assert names[0] == "message_start" and names[-1] == "message_stop"
        assert [b.type for b in message.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert (message.content[2].id, message.content[2].name, message.content[2].input) == (
            "call_1", "weather", {"city": "Rome"},
        )
        assert (message.stop_reason, message.usage.output_tokens, message.usage.cache_read_input_tokens) == (
            "tool_use", 9, 8,
        )
        asked = house.upstream.asked[0].json
        assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", False)
        assert asked["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]


async def test_tool_results_pictures_and_thoughts_go_to_the_engine_in_order() -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, event_stream(chunk({"content": "ok"}, "stop"), usage(1, 1)))
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
        await client.messages.create(**request(tools=[WEATHER], thinking={"type": "disabled"}, messages=[
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I ask.", "signature": "x"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [
                    {"type": "text", "text": "no network"}, picture,
                ]},
                {"type": "text", "text": "and now?"},
            ]},
        ]))
        asked = house.upstream.asked[0].json
        assert asked["reasoning_effort"] == "none"
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        function = {"name": "weather", "arguments": '{"city":"Rome"}'}
        assert asked["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "I ask.",
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "Error: no network"},
            {"role": "user", "content": [url, {"type": "text", "text": "and now?"}]},
        ]


@pytest.mark.parametrize(
    ("finish", "more", "reason", "sequence"),
    [
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
    ],
)
async def test_stop_reasons(finish: str, more: dict[str, Any], reason: str, sequence: str | None) -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, event_stream(chunk({"content": "x"}), chunk({}, finish, **more), usage(1, 1)))
        message = await client.messages.create(**request())
        assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


BAD = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": 5000}, "max_tokens is 5000; model 'talker' answers with at most 1024 tokens"),
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0]: Input tag 'system'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "messages[0].content[0]: Input tag 'document'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text: Field required"),
    ({"messages": [{"role": "assistant", "content": "so"}]}, "messages: the last message must be the user's"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9", "content": "x"}]}]},
        "messages[0].content[0].tool_use_id: no earlier tool_use block has the id 't9'",
    ),
    (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        ]}]},
        "messages[0].content[0].source.type: Input should be 'base64'",
    ),
    ({"temperature": 1.5}, "temperature: Input should be less than or equal to 1"),
    ({"container": "c"}, "container: this field is not supported"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.budget_tokens: must be less than max_tokens"),
    ({"model": "nobody"}, "model 'nobody' does not exist here; there are: talker"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
async def test_bad_input_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    async with running() as house, httpx.AsyncClient() as client:
        body = {k: v for k, v in request(**change).items() if v is not None}
        reply = await client.post(f"{house.url}/v1/messages", json=body, headers={"x-api-key": SECRET})
        assert reply.status_code == (404 if change.get("model") else 400)
        error = reply.json()
        assert (error["type"], error["request_id"]) == ("error", reply.headers["x-request-id"])
        assert error["error"]["type"] == ("not_found_error" if change.get("model") else "invalid_request_error")
        assert error["error"]["message"].startswith(message)
        assert house.upstream.asked == []


async def test_what_the_card_cannot_do_is_named_in_the_callers_words() -> None:
    card = replace(CHAT_CARD, parameters=(), input=("text",), thinking="none", tools="none")
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    table = [
        ({"stop_sequences": ["a"]}, "stop_sequences: 'stop_sequences' is not supported by model 'talker'"),
        ({"top_k": 3}, "top_k: 'top_k' is not supported"),
        ({"tools": [WEATHER]}, "tools: 'tools' is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100}, "thinking"),
        (
            {"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, picture]}]},
            "messages[0].content[1]: model 'talker' takes text as input, not image",
        ),
    ]
    async with running(replace(card, max_output=2000)) as house, httpx.AsyncClient() as client:
        for change, message in table:
            body = request(**change)
            reply = await client.post(f"{house.url}/v1/messages", json=body, headers={"x-api-key": SECRET})
            assert (reply.status_code, reply.json()["error"]["message"][: len(message)]) == (400, message)


async def test_no_key_is_anthropics_401() -> None:
    async with running() as house, sdk(house.url, "wrong") as client:
        with pytest.raises(anthropic.AuthenticationError, match="unknown, expired or revoked"):
            await client.messages.create(**request())


async def test_over_budget_is_a_429_that_leaves_nothing_reserved() -> None:
    async with running() as house, sdk(house.url) as client:
        house.limit(Limits(budget_per_month=10))
        with pytest.raises(anthropic.RateLimitError, match="budget"):
            await client.messages.create(**request())
        assert house.held() == (0, 0)


async def test_engine_refusal_keeps_its_status_and_names_the_callers_field() -> None:
    async with running() as house, sdk(house.url) as client:
        refusal = {"error": {"message": "context is 64 tokens, lower max_tokens", "param": "messages"}}
        house.upstream.on(CHAT, json_answer(refusal, 400))
        with pytest.raises(anthropic.BadRequestError, match="messages: context is 64 tokens"):
            await client.messages.create(**request())
        assert (await house.settled()).status == "failed"


async def test_an_engine_that_dies_in_mid_stream_ends_in_an_error_event() -> None:
    async with running() as house, httpx.AsyncClient() as client:
        house.upstream.on(CHAT, event_stream(chunk({"content": "half"}), done=False))
        body = request(stream=True)
        reply = await client.post(f"{house.url}/v1/messages", json=body, headers={"x-api-key": SECRET})
        last = reply.text.strip().split("\n\n")[-1]
        assert last.startswith('event: error\ndata: {"type":"error","error":{"type":"api_error"')
        row = await house.settled()
        assert (row.status, row.usage.output) == ("failed", 1)


async def test_a_client_that_leaves_frees_the_engine() -> None:
    async with running() as house, httpx.AsyncClient() as client:
        slow = [chunk({"content": "x"}) for _ in range(200)]
        house.upstream.on(CHAT, event_stream(*slow, wait=0.05))
        headers = {"x-api-key": OTHER_SECRET}
        async with client.stream("POST", f"{house.url}/v1/messages", json=request(stream=True), headers=headers) as r:
            async for _ in r.aiter_bytes():
                break
        await asyncio.wait_for(house.upstream.cut_off.wait(), 1)
        assert (await house.settled()).status == "cancelled"


async def test_tokens_are_counted_by_the_engine_and_cost_nothing() -> None:
    local = replace(CHAT_CARD, engine="llamacpp")
    overflow = {"error": to_wire(ContextOverflow(9000, 4096))}
    async with running(local) as house, sdk(house.url) as client:
        house.upstream.on(COUNT, json_answer({"input_tokens": 12}), json_answer(overflow, 400))
        messages = [{"role": "user", "content": "hello"}]
        counted = await client.messages.count_tokens(model="talker", system="s", messages=messages, tools=[WEATHER])
        assert counted.input_tokens == 12
        asked = house.upstream.asked[0].json
        assert [m["role"] for m in asked["messages"]] == ["system", "user"]
        assert asked["tools"][0]["function"]["name"] == "weather"
        with pytest.raises(anthropic.BadRequestError, match="context is 4096 tokens, but the request needs 9000"):
            await client.messages.count_tokens(model="talker", messages=messages)
        assert await house.rows() == []


async def test_an_engine_that_cannot_count_says_so() -> None:
    async with running() as house, sdk(house.url) as client:
        with pytest.raises(anthropic.BadRequestError, match="the engine of model 'talker' cannot count tokens"):
            await client.messages.count_tokens(model="talker", messages=[{"role": "user", "content": "hello"}])
        with pytest.raises(anthropic.BadRequestError, match="max_tokens: this field is not supported"):
            body = {name: value for name, value in request().items() if name != "max_tokens"}
            await client.messages.count_tokens(**body, extra_body={"max_tokens": 3})

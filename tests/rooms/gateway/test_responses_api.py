"""OpenAI's responses: what the engine is asked, what the official SDK reads back, what is stored, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from support import CHAT_CARD, OTHER_SECRET, SECRET, chunk, event_stream, running, usage

from atoll.core.errors import InvalidRequest
from atoll.gateway.responses_stored import page
from atoll.gateway.responses_view import ResponseView

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
HEADERS = {"authorization": f"Bearer {SECRET}"}


def sdk(url: str, secret: str = SECRET) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)


def request(**more: Any) -> dict[str, Any]:
    return {"model": "talker", "input": "hello", **more}


def said(text: str, finish: str = "stop") -> Any:
    return event_stream(chunk({"content": text}), chunk({}, finish), usage(7, 2, 3))


async def test_view_tells_a_conversation_of_reasoning_text_and_a_call() -> None:
    kept: list[dict[str, Any]] = []

    async def keep(response: dict[str, Any]) -> None:
        kept.append(response)

    view = ResponseView({"id": "resp_1", "output": [], "status": "in_progress", "usage": None}, keep)
    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city":'}}
    more = {"index": 0, "function": {"arguments": '"Rome"}'}}
    events = [
        [(e["type"].removeprefix("response."), e.get("output_index")) for e in view.feed(c)]
        for c in [
            chunk({"role": "assistant"}),
            chunk({"reasoning_content": "Hmm"}),
            chunk({"content": "Let"}),
            chunk({"content": " me"}),
            chunk({"tool_calls": [call]}),
            chunk({"tool_calls": [more]}, "tool_calls"),
            usage(9, 4, 1),
        ]
    ]
    last = await view.finish()
    assert events == [
        [("created", None), ("in_progress", None)],
        [("output_item.added", 0), ("content_part.added", 0), ("reasoning_text.delta", 0)],
        [
            ("reasoning_text.done", 0),
            ("content_part.done", 0),
            ("output_item.done", 0),
            ("output_item.added", 1),
            ("content_part.added", 1),
            ("output_text.delta", 1),
        ],
        [("output_text.delta", 1)],
        [
            ("output_text.done", 1),
            ("content_part.done", 1),
            ("output_item.done", 1),
            ("output_item.added", 2),
            ("function_call_arguments.delta", 2),
        ],
        [("function_call_arguments.delta", 2)],
        [],
    ]
    assert [e["type"] for e in last] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]
    assert [e["sequence_number"] for e in last] == [18, 19, 20]
    assert kept == [view.result()]
    assert [(i["type"], i["status"]) for i in kept[0]["output"]] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"),
    ]
    assert kept[0]["output"][2]["arguments"] == '{"city":"Rome"}'


async def test_sdk_reads_a_whole_response_and_the_engine_is_asked_in_chat() -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, said("Hello"))
        response = await client.responses.create(
            model="talker",
            input="hello",
            instructions="Be brief.",
            max_output_tokens=50,
            temperature=0.5,
            reasoning={"effort": "low"},
            metadata={"a": "b"},
            text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        )
        assert (response.output_text, response.status, response.model) == ("Hello", "completed", "talker")
        assert response.usage is not None
        counted = (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens)
        assert (counted, response.usage.total_tokens) == ((7, 3), 9)
        assert response.metadata == {"a": "b"}
        assert house.upstream.asked[0].json == {
            "model": "talker",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            ],
            "max_tokens": 50,
            "temperature": 0.5,
            "reasoning_effort": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        row = await house.settled()
        assert (row.route, row.status, row.cost) == ("/v1/responses", "done", 4 * 100 + 3 * 50 + 2 * 200)
        assert house.held() == (0, 0)


async def test_sdk_streams_and_its_snapshot_is_what_is_stored() -> None:
    async with running() as house, sdk(house.url) as client:
        call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
        house.upstream.on(CHAT, event_stream(
            chunk({"reasoning_content": "Hmm"}),
            chunk({"content": "Look"}),
            chunk({"content": "ing"}),
            chunk({"tool_calls": [call]}, "tool_calls"),
            usage(7, 5),
        ))
        async with client.responses.stream(**request(tools=[WEATHER])) as stream:
            events = [e async for e in stream]
            final = await stream.get_final_response()
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Looking"
        assert [i.type for i in final.output] == ["reasoning", "message", "function_call"]
        assert events[-1].type == "response.completed"
        stored = await client.responses.retrieve(final.id)
        assert (stored.output_text, stored.usage, stored.status) == ("Looking", final.usage, "completed")
        assert [i.id for i in stored.output] == [i.id for i in final.output]


async def test_a_conversation_goes_on_from_a_stored_response() -> None:
    async with running() as house, sdk(house.url) as client, sdk(house.url, OTHER_SECRET) as other:
        call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": "{}"}}
        house.upstream.on(CHAT, event_stream(chunk({"content": "Wait."}), chunk({"tool_calls": [call]}, "tool_calls")),
                          said("Sunny."), said("Bye."))
        first = await client.responses.create(**request(tools=[WEATHER], instructions="One."))
        result = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
        second = await client.responses.create(
            **request(input=[result], previous_response_id=first.id, tools=[WEATHER])
        )
        third = await client.responses.create(**request(previous_response_id=second.id, store=False))
        asked = house.upstream.asked[2].json["messages"]
        calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
        hello = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
        assert asked == [
            hello,
            {"role": "assistant", "content": "Wait.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            {"role": "assistant", "content": "Sunny."},
            hello,
        ]
        items = await client.responses.input_items.list(second.id)
        assert [(i.type, i.output) for i in items.data] == [("function_call_output", "sun")]
        for id, who in ((third.id, client), (first.id, other)):
            with pytest.raises(openai.NotFoundError):
                await who.responses.retrieve(id)
            with pytest.raises(openai.NotFoundError, match="no stored response"):
                await who.responses.create(**request(previous_response_id=id))
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_items_of_an_sdk_conversation_are_taken_back() -> None:
    async with running() as house, sdk(house.url) as client:
        call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": "{}"}}
        house.upstream.on(CHAT, event_stream(
            chunk({"reasoning_content": "Hmm"}), chunk({"content": "x"}), chunk({"tool_calls": [call]}, "tool_calls"),
        ), said("y"))
        first = await client.responses.create(**request(tools=[WEATHER], store=False))
        picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
        await client.responses.create(model="talker", tools=[WEATHER], store=False, input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "see"}, picture]},
            *first.output,
            {"type": "function_call_output", "call_id": "call_1", "output": [picture]},
        ])
        seen = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
        calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
        assert house.upstream.asked[1].json["messages"] == [
            {"role": "system", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "see"}, seen]},
            {"role": "assistant", "content": "x", "reasoning_content": "Hmm", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
            {"role": "user", "content": [seen]},
        ]


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_a_cut_answer_is_incomplete(finish: str, reason: str) -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, said("half", finish))
        response = await client.responses.create(**request())
        assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)
        assert response.output[0].status == "incomplete"
        stream = await client.responses.create(**request(stream=True))
        assert [e.type async for e in stream][-1] == "response.incomplete"


async def test_an_engine_that_dies_in_mid_stream_ends_in_response_failed() -> None:
    async with running() as house, sdk(house.url) as client:
        house.upstream.on(CHAT, event_stream(chunk({"content": "half"}), done=False))
        events = [e async for e in await client.responses.create(**request(stream=True))]
        assert events[-1].type == "response.failed"
        assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
        assert (await house.settled()).status == "failed"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(events[0].response.id)


async def test_log_probabilities_come_with_the_text() -> None:
    async with running(replace(CHAT_CARD, parameters=("logprobs", "top_logprobs"))) as house, sdk(house.url) as client:
        token = {"token": "x", "bytes": [120], "logprob": -0.5, "top_logprobs": []}
        house.upstream.on(CHAT, event_stream(chunk({"content": "x"}, "stop", logprobs={"content": [token]})))
        response = await client.responses.create(**request(include=["message.output_text.logprobs"], top_logprobs=0))
        assert response.output[0].content[0].logprobs[0].logprob == -0.5


BAD = [
    ({"input": None}, "input", "input: Field required"),
    ({"input": []}, "input", "input: "),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "input[0]: type must be message"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input[0].content[0]",
        "input[0].content[0]: Input tag 'input_file'",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]}]},
        "input[0].content[0]",
        "images must be data URLs",
    ),
    (
        {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:image/png;base64,A"}]}]},
        "input[0].content[0]",
        "a system message holds text only",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]},
        "input[0].call_id",
        "no earlier function_call has the call_id 'c9'",
    ),
    ({"max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens is 5000; model 'talker'"),
    ({"temperature": 3}, "temperature", "temperature: Input should be less than or equal to 2"),
    ({"background": True}, "background", "background: "),
    ({"truncation": "auto"}, "truncation", "truncation: "),
    ({"conversation": "conv_1"}, "conversation", "conversation: this field is not supported"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "tools[0].type: Input should be 'function'"),
    ({"tool_choice": "required"}, None, "tool_choice: 'required' needs tools"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "reasoning.summary: "),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]", "include[0]: "),
    ({"include": ["message.output_text.logprobs"]}, "include", "'include' is not supported by model 'talker'"),
    ({"metadata": {"a": 1}}, "metadata.a", "metadata.a: Input should be a valid string"),
]


async def test_bad_input_is_refused_by_name() -> None:
    async with running() as house, httpx.AsyncClient(headers=HEADERS) as client:
        for change, param, message in BAD:
            body = {k: v for k, v in request(**change).items() if v is not None}
            reply = await client.post(f"{house.url}/v1/responses", json=body)
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["message"][: len(message)]) == (400, param, message)
        assert (house.upstream.asked, house.held()) == ([], (0, 0))


async def test_what_the_card_cannot_do_is_named_in_the_callers_words() -> None:
    card = replace(CHAT_CARD, parameters=(), thinking="none", tools="none", json_schema=False)
    table = [
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"tools": [WEATHER]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"top_p": 0.5}, "top_p"),
    ]
    async with running(card) as house, httpx.AsyncClient(headers=HEADERS) as client:
        for change, param in table:
            error = (await client.post(f"{house.url}/v1/responses", json=request(**change))).json()["error"]
            assert (error["param"], error["message"]) == (param, f"'{param}' is not supported by model 'talker'")


async def test_paths_and_methods_of_stored_responses() -> None:
    async with running() as house, httpx.AsyncClient(headers=HEADERS) as client:
        house.upstream.on(CHAT, said("x"))
        made = (await client.post(f"{house.url}/v1/responses", json=request())).json()
        at = f"{house.url}/v1/responses/{made['id']}"
        table = [
            ("GET", at, 200),
            ("GET", f"{at}?stream=true", 400),
            ("GET", f"{at}/input_items?limit=0", 400),
            ("GET", f"{at}/nothing", 404),
            ("POST", f"{at}/cancel", 400),
            ("PUT", at, 405),
            ("GET", f"{house.url}/v1/responses/resp_none", 404),
            ("DELETE", at, 200),
            ("DELETE", at, 404),
        ]
        got = [(m, u, (await client.request(m, u)).status_code) for m, u, _ in table]
        assert got == table
        assert (await client.get(at, headers={"authorization": ""})).status_code == 401


def test_pages_of_input_items() -> None:
    items = [{"id": f"i{n}"} for n in range(5)]
    newest = page(items, {"limit": "2"})
    assert ([i["id"] for i in newest["data"]], newest["has_more"]) == (["i4", "i3"], True)
    rest = page(items, {"limit": "9", "after": "i3", "order": "desc"})
    assert ([i["id"] for i in rest["data"]], rest["has_more"], rest["last_id"]) == (["i2", "i1", "i0"], False, "i0")
    for bad in ({"limit": "x"}, {"order": "up"}, {"after": "i9"}):
        with pytest.raises(InvalidRequest, match=next(iter(bad))):
            page(items, bad)

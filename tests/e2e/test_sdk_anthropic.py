"""A tour of the real cloud with Anthropic's own Python SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

pytestmark = pytest.mark.xdist_group("live")

ASK: list[Any] = [{"role": "user", "content": "Write one short sentence about the sea."}]
GREEDY = {"temperature": 0}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key=live.key, max_retries=0, timeout=120) as sdk:
        yield sdk


def test_a_message_with_a_system_prompt(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="max", max_tokens=40, system="You are a sailor.", messages=ASK)
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert re.search(r"[a-z]{2}", answer.content[0].text)
    assert answer.stop_reason in {"end_turn", "max_tokens"}
    assert answer.usage.input_tokens > 5 and 1 <= answer.usage.output_tokens <= 40
    short = client.messages.create(model="max", max_tokens=40, messages=ASK)
    assert short.usage.input_tokens != answer.usage.input_tokens, "the system prompt is part of the prompt"


def test_a_stream_is_the_same_message_in_events(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="max", max_tokens=24, messages=ASK, extra_body=GREEDY)
    with client.messages.stream(model="max", max_tokens=24, messages=ASK, extra_body=GREEDY) as stream:
        events = [e.type for e in stream]
        final = stream.get_final_message()
    assert events[0] == "message_start" and events[-1] == "message_stop"
    assert events.count("content_block_delta") > 3
    assert final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "max", "max_tokens": 24, "messages": ASK, "extra_body": GREEDY}
    text = client.messages.create(**asked).content[0].text
    word = text.split()[3]
    answer = client.messages.create(**asked, stop_sequences=[word])
    assert answer.stop_reason in {"stop_sequence", "end_turn"} and word not in answer.content[0].text


def test_a_tool_round(client: anthropic.Anthropic) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        called = client.messages.create(
            model="max", max_tokens=200, messages=turns, tools=[WEATHER], tool_choice=choice
        )
        use = called.content[-1]
        assert called.stop_reason == "tool_use" and use.type == "tool_use"
        assert use.name == "get_weather" and isinstance(use.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees and sunny"}
    turns += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(
        model="max", max_tokens=60, messages=turns, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert last.content[0].type == "text" and last.content[0].text


def test_an_answer_by_a_json_schema(client: anthropic.Anthropic) -> None:
    shape = {
        "type": "object",
        "properties": {"city": {"enum": ["Lyon", "Recife"]}, "open": {"type": "boolean"}},
        "required": ["city", "open"],
        "additionalProperties": False,
    }
    asked: Any = {
        "model": "max",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "Which city is on a river?"}],
        "output_config": {"format": {"type": "json_schema", "schema": shape}},
    }
    whole = client.messages.create(**asked).content[0].text
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_text()
    for text in (whole, streamed):
        answer = json.loads(text)
        assert answer.keys() == {"city", "open"} and answer["city"] in {"Lyon", "Recife"}
        assert isinstance(answer["open"], bool)


def test_count_tokens_is_what_the_message_uses(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="max", system="Be brief.", messages=ASK)
    used = client.messages.create(model="max", max_tokens=1, system="Be brief.", messages=ASK).usage
    read = used.input_tokens + (used.cache_read_input_tokens or 0)
    assert counted.input_tokens == read


def test_errors_have_anthropics_shape(client: anthropic.Anthropic, live: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-x", max_tokens=5, messages=ASK)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(model="max", max_tokens=0, messages=ASK)
    assert "max_tokens" in wrong.value.body["error"]["message"]
    with (
        anthropic.Anthropic(base_url=live.url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="max", max_tokens=5, messages=ASK)

"""A tour of the real cloud with OpenAI's own Python SDK. What is asserted holds for any model, however small."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = pytest.mark.xdist_group("live")

ASK = [{"role": "user", "content": "Write one short sentence about the sea."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a time zone.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=120) as sdk:
        yield sdk


def arguments(call: Any) -> dict[str, Any]:
    return json.loads(call.function.arguments)


def test_models_are_listed_and_tiers_name_what_stands_behind_them(client: openai.OpenAI) -> None:
    found = {m.id: m for m in client.models.list()}
    assert {"max", "smollm2-135m"} <= found.keys()
    assert client.models.retrieve("max").root == "smollm2-135m"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_chat_answers_with_text_and_usage(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="max", messages=ASK, max_tokens=40)
    assert raw.headers["x-request-id"].startswith("req_") and raw.headers["x-atoll-region"]
    answer = raw.parse()
    choice, used = answer.choices[0], answer.usage
    assert choice.message.role == "assistant" and re.search(r"[a-z]{2}", choice.message.content or "")
    assert choice.finish_reason in {"stop", "length"}
    assert used and used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.prompt_tokens > 5 and 1 <= used.completion_tokens <= 40


def test_a_stream_is_the_same_answer_in_pieces_and_ends_with_usage(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "max", "messages": ASK, "max_tokens": 32, "temperature": 0, "seed": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert sum(1 for c in chunks if c.choices) > 5, "the answer came in one piece"
    assert chunks[-1].choices == [] and chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    plain = list(client.chat.completions.create(**asked, stream=True))
    assert all(c.usage is None for c in plain)


def test_a_seed_repeats_and_another_seed_differs(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        answer = client.chat.completions.create(
            model="max", messages=ASK, max_tokens=24, temperature=1.3, top_p=1, seed=seed
        )
        return answer.choices[0].message.content or ""

    first = [say(seed) for seed in (1, 2, 3)]
    assert [say(seed) for seed in (1, 2, 3)] == first
    assert len(set(first)) > 1


def test_n_choices_with_one_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="max", messages=ASK, max_tokens=16, n=3, temperature=1.3, top_p=1, seed=3
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1
    assert answer.usage and 3 <= answer.usage.completion_tokens <= 48


def test_stop_ends_the_text_before_the_word(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "max", "messages": ASK, "max_tokens": 32, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    word = text.split()[3]
    choice = client.chat.completions.create(**asked, stop=[word]).choices[0]
    assert choice.message.content == text[: text.index(word)]
    assert choice.finish_reason == "stop"


def test_length_is_said(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(model="max", messages=ASK, max_completion_tokens=2).choices[0]
    assert choice.finish_reason == "length"


def test_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "max", "messages": ASK, "max_tokens": 12, "temperature": 0}
    choice = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs and choice.logprobs.content
    assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
    for token in choice.logprobs.content:
        best = [t.logprob for t in token.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and best[0] <= 0
        assert token.logprob == best[0], "greedy decoding takes the likeliest token"


def test_completions_continue_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="max", prompt="Once upon a time", max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].text
    streamed = client.completions.create(
        model="max", prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in streamed if c.choices) == answer.choices[0].text


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "max", "tools": [WEATHER, CLOCK], "max_tokens": 200}
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
    choice = client.chat.completions.create(**asked, messages=turns, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.function.name in {"get_weather", "get_time"} and call.id and isinstance(arguments(call), dict)
    turns += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21}'}]
    last = client.chat.completions.create(**asked, messages=turns, tool_choice="none").choices[0]
    assert last.message.content and not last.message.tool_calls


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="max",
        messages=[{"role": "user", "content": "It is cold in Oslo today."}],
        tools=[CLOCK, WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=200,
    ).choices[0]
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert arguments(call).keys() == {"city", "unit"} and arguments(call)["unit"] in {"celsius", "fahrenheit"}


def test_with_auto_the_model_speaks_or_calls(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="max", messages=ASK, tools=[WEATHER], tool_choice="auto", max_tokens=200
    ).choices[0]
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name == "get_weather"
    else:
        assert choice.message.content


def test_a_tool_call_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="max",
        messages=[{"role": "user", "content": "Weather in Rome, celsius?"}],
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=200,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    calls = final.choices[0].message.tool_calls
    assert calls and calls[0].function.name == "get_weather" and arguments(calls[0]).keys() == {"city", "unit"}


class Review(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3, 4, 5]
    about: Annotated[list[Literal["food", "service"]], Field(min_length=1, max_length=2)]


def test_an_answer_parses_into_the_schema(client: openai.OpenAI) -> None:
    said = [{"role": "user", "content": "Review: 'The soup was cold and the waiter rude.' Rate it."}]
    answer = client.chat.completions.parse(model="max", messages=said, response_format=Review, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed, Review)


def test_json_mode_is_json(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="max",
        messages=[{"role": "user", "content": "Give a JSON object with the keys name and age."}],
        response_format={"type": "json_object"},
        max_tokens=200,
    ).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:
        assert (choice.message.content or "").lstrip().startswith("{")


def test_responses_are_created_stored_continued_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="max", input="My name is Ada. Greet me.", max_output_tokens=30)
    assert first.status in {"completed", "incomplete"} and first.output_text and first.usage
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text
    second = client.responses.create(
        model="max", input="What did I just say?", previous_response_id=first.id, max_output_tokens=30
    )
    assert second.previous_response_id == first.id and second.usage
    assert second.usage.input_tokens > first.usage.input_tokens, "the earlier turns are part of the prompt"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_responses_stream_the_official_events(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="max", input="Say something about rain.", instructions="Be brief.", max_output_tokens=24
    ) as stream:
        events = list(stream)
    final: Any = events[-1].response
    kinds = [e.type for e in events]
    assert kinds[0] == "response.created" and kinds[-1] in {"response.completed", "response.incomplete"}
    assert [e.sequence_number for e in events] == sorted(e.sequence_number for e in events)
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text and text == final.output_text


def test_responses_parse_and_call_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": False, **WEATHER["function"]}
    called = client.responses.create(
        model="max", input="Weather in Lima?", tools=[tool], tool_choice="required", max_output_tokens=200
    )
    calls = [item for item in called.output if item.type == "function_call"]
    assert calls and calls[0].name == "get_weather" and isinstance(json.loads(calls[0].arguments), dict)
    parsed = client.responses.parse(model="max", input="Rate: 'Lovely!'", text_format=Review, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Review)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_embeddings_are_unit_vectors_that_know_likeness(client: openai.OpenAI) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The central bank raised interest rates."]
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    cat, kitten, bank = (d.embedding for d in answer.data)
    assert len(cat) == 384 and abs(cosine(cat, cat) - 1) < 1e-3
    assert cosine(cat, kitten) > 0.5 > cosine(cat, bank)
    alone = client.embeddings.create(model="all-minilm-l6-v2", input=texts[0], encoding_format="float")
    assert cosine(alone.data[0].embedding, cat) > 0.999
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens > 0


SENTENCE = "The quick brown fox jumps over the lazy dog near the river."


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def spoken(client: openai.OpenAI) -> bytes:
    return client.audio.speech.create(
        model="hibari-heart", voice="heart", input=SENTENCE, response_format="wav"
    ).content


def test_what_is_spoken_is_heard_again(client: openai.OpenAI, spoken: bytes) -> None:
    assert spoken[:4] == b"RIFF" and len(spoken) > 50_000
    heard = client.audio.transcriptions.create(model="whisper-base", file=("fox.wav", spoken), language="en")
    assert len(words(heard.text) & words(SENTENCE)) >= 0.8 * len(words(SENTENCE))


def test_speech_streams_and_knows_formats(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="hibari-heart", voice="heart", input="Hello there.", response_format="pcm"
    ) as stream:
        assert sum(len(piece) for piece in stream.iter_bytes()) > 24_000
    mp3 = client.audio.speech.create(model="hibari-heart", voice="heart", input="Hello.", response_format="mp3")
    assert mp3.content[:3] == b"ID3" or mp3.content[0] == 0xFF


def test_a_transcript_streams_and_has_times(client: openai.OpenAI, spoken: bytes) -> None:
    events = list(client.audio.transcriptions.create(model="whisper-tiny-en", file=("a.wav", spoken), stream=True))
    assert events[-1].type == "transcript.text.done"
    assert "".join(e.delta for e in events if e.type == "transcript.text.delta").strip() == events[-1].text.strip()
    verbose = client.audio.transcriptions.create(
        model="whisper-tiny-en",
        file=("a.wav", spoken),
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert verbose.words and all(w.start <= w.end <= verbose.duration + 0.5 for w in verbose.words)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 9), ("n", 0), ("max_tokens", -1), ("best_of", 3), ("modalities", ["audio"]), ("messages", [])],
)
def test_a_field_that_cannot_be_honoured_is_named(client: openai.OpenAI, field: str, value: Any) -> None:
    asked: dict[str, Any] = {"model": "max", "messages": ASK}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, extra_body={field: value})
    assert caught.value.param == field or field in caught.value.message


def test_errors_are_the_sdks_own(client: openai.OpenAI, live: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-x", messages=ASK)
    assert missing.value.code == "model_not_found" and "smollm2-135m" in missing.value.message
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="max", messages=ASK)

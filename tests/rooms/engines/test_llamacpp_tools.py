"""Tool calls by schema: what is chosen, what is asked, and how the answer is read. No engine."""

import json

import pytest

from atoll.core.errors import EngineFailed, InvalidRequest, Unsupported
from atoll.engines.cardfiles import EMBEDDED, read_cards
from atoll.engines.llamacpp import tools
from atoll.engines.llamacpp.decoders import ChatDecoder, Expected
from atoll.engines.llamacpp.dialect import LlamaDialect

SMALL = read_cards(EMBEDDED)["smollm2-135m"]
QWEN = read_cards(EMBEDDED / "hub")["qwen3-8b"]
TEXT = {"type": "string"}


def tool(name, description, **fields):
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("get_weather", "Get the current weather for a city", city=TEXT)
CALCULATOR = tool("calculator", "Evaluate an arithmetic expression", expression=TEXT)
TIMER = tool("set_timer", "Set a timer for a number of minutes", minutes={"type": "integer"})
TRANSLATE = tool("translate", "Translate text", text=TEXT, language={"type": "string", "enum": ["French", "German"]})
TOOLS = [WEATHER, CALCULATOR, TIMER, TRANSLATE]


def user(content):
    return {"role": "user", "content": content}


def called(name, arguments, result):
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


def chosen(*messages, choice="auto"):
    return [f.name for f in tools.choose(tools.functions(TOOLS), list(messages), choice)]


def ask(**body):
    return LlamaDialect().encode(SMALL, {"messages": [user("hello")], **body})[0]


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("What's the weather in Paris?", ["get_weather"]),
        ("Is it going to rain in Tokyo?", ["get_weather"]),
        ("What is 17 * 23?", ["calculator"]),
        ("Set a timer for 12 minutes", ["set_timer"]),
        ("How do you say thank you in German?", ["translate"]),
        ("Hello! How are you?", []),
        ("Write a short poem about the sea", []),
        ("Thanks, that was helpful.", []),
        ("", []),
    ],
)
def test_auto_calls_what_the_message_is_about(said, names):
    assert chosen(user(said)) == names


def test_choices():
    assert chosen(user("What's the weather?"), choice="none") == []
    assert chosen(user("What's the weather?"), choice="required") == ["get_weather"]
    assert chosen(user("Hello"), choice="required") == ["get_weather", "calculator", "set_timer", "translate"]
    named = {"type": "function", "function": {"name": "translate"}}
    assert chosen(user("What's the weather?"), choice=named) == ["translate"]


def test_after_a_result_the_rest_of_the_message_counts():
    weather = called("get_weather", '{"city": "Paris"}', '{"sky": "clear"}')
    assert chosen(user("What's the weather in Paris?"), *weather) == []
    assert chosen(user("What's the weather in Paris? Then calculate 3 * 4."), *weather) == ["calculator"]
    timer = user("And set a timer for 5 minutes")
    assert chosen(user("What's the weather in Paris?"), *weather, timer) == ["set_timer"]


def test_free_values_are_taken_from_the_message():
    function = tools.functions([TRANSLATE])[0]
    fields = tools.ground(function, "Translate 'good morning' into French")["properties"]
    assert "good morning" in fields["text"]["enum"]
    assert not any("Translate" in span for span in fields["text"]["enum"])
    assert fields["language"]["enum"] == ["French", "German"]
    timer = tools.ground(tools.functions([TIMER])[0], "12 minutes, or 3.5 hours")
    assert timer["properties"]["minutes"] == {"enum": [12]}
    near = {"type": "number", "minimum": 0.4, "maximum": 0.6}
    fields = {"x": near, "y": {**near, "maximum": 0.45}, "n": {**near, "type": "integer"}}
    point = tools.functions([tool("move", "Move", **fields)])[0]
    moved = tools.ground(point, "Move to x 0.42, then 0.5 and 3.5")["properties"]
    assert (moved["x"]["enum"], moved["y"]["enum"], moved["n"]) == ([0.42, 0.5], [0.42], fields["n"])
    assert timer["additionalProperties"] is False


def test_restricted_values_and_long_messages_stay_free():
    dated = tools.functions([tool("book", "Book", day={"type": "string", "format": "date"}, note=TEXT)])[0]
    assert tools.ground(dated, "book it")["properties"]["day"] == {"type": "string", "format": "date"}
    assert tools.ground(dated, "word " * 200)["properties"]["note"] == TEXT


def test_history_is_told_in_words():
    told = tools.transcript([user("Weather?"), *called("get_weather", '{"city": "Paris"}', "clear")])
    assert told[1] == {"role": "assistant", "content": 'get_weather({"city": "Paris"})'}
    assert told[2]["role"] == "user" and told[2]["content"].startswith("Result of get_weather: clear")


def test_tools_never_reach_a_template_that_does_not_know_them():
    sent = ask(messages=[user("What's the weather in Paris?")], tools=TOOLS)
    assert "tools" not in sent and sent["grammar"].startswith("%llguidance")
    plain = ask(messages=[user("Hello")], tools=TOOLS)
    assert "tools" not in plain and "grammar" not in plain


def native(**body):
    return LlamaDialect().encode(QWEN, {"messages": [user("Hi")], "tools": TOOLS, **body})[0]


def test_native_tools_pass_when_the_model_decides():
    sent = native(parallel_tool_calls=False)
    assert sent["tools"] == TOOLS and sent["parallel_tool_calls"] is False and "grammar" not in sent
    assert "tools" not in native(tool_choice="none")
    with pytest.raises(Unsupported, match="cannot be combined") as caught:
        native(response_format={"type": "json_object"})
    assert caught.value.param == "response_format"


def test_a_required_call_is_enforced_by_grammar_for_native_models_too():
    system = {"role": "system", "content": "Be kind."}
    sent = native(tool_choice="required", messages=[system, user("Hi")])
    assert "tools" not in sent and all(t["function"]["name"] in sent["grammar"] for t in TOOLS)
    assert sent["messages"][0]["content"].startswith("Be kind.") and len(sent["messages"]) == 2
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    named = native(tool_choice={"type": "function", "function": {"name": "translate"}})
    assert "translate" in named["grammar"] and "calculator" not in named["grammar"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "banana"}, "not a valid JSON Schema"),
        ({"type": "object", "properties": {"a": {"$ref": "http://example.org/schema"}}}, "must point into"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "must point into"),
        ({"type": "array"}, "are an object"),
        ({"type": "object", "properties": {"a": {"pattern": "(a"}}}, "is not a 'regex'"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=a)b"}}}, "look-around"),
        ({"type": "object", "properties": {"a": {"enum": ["x" * 70_000]}}}, "larger than"),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}}, "contradicts"),
    ],
)
def test_bad_tool_schema_is_refused_by_name(parameters, said):
    bad = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(InvalidRequest, match=said) as caught:
        ask(tools=[WEATHER, bad])
    assert caught.value.param == "tools[1].function.parameters"


def test_endless_nesting_is_refused():
    deep = {"type": "string"}
    for _ in range(2000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidRequest, match="nested deeper"):
        ask(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": deep}})


def test_strict_refuses_what_cannot_be_enforced():
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert "grammar" in ask(response_format=wanted)
    wanted["json_schema"]["strict"] = True
    with pytest.raises(InvalidRequest, match="'uniqueItems' cannot be enforced") as caught:
        ask(response_format=wanted)
    assert caught.value.param == "response_format.json_schema.schema"


def test_property_names_are_not_keywords():
    fields = {name: {"type": "string"} for name in ("not", "if", "contains", "pattern", "$ref")}
    schema = {"type": "object", "properties": fields}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert "grammar" in ask(response_format=wanted)


def stream(decoder, *texts, reason="stop"):
    """The tool_calls deltas and finish reasons that `texts` turn into."""
    deltas, reasons = [], []
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    for choice in (*({"index": 0, "delta": {"content": t}, "finish_reason": None} for t in texts), last):
        for out in decoder.feed({"id": "x", "choices": [choice]}):
            for c in out["choices"]:
                deltas += c["delta"].get("tool_calls", [])
                reasons.append(c["finish_reason"])
    return deltas, reasons[-1]


@pytest.mark.parametrize("size", [1, 3, 7, 200])
def test_a_named_call_in_any_pieces(size):
    text = '{"name": "get_weather", "arguments": {"city": "a } \\" {"}}'
    decoder = ChatDecoder(Expected("m", json=True, calls=True))
    deltas, reason = stream(decoder, *(text[i : i + size] for i in range(0, len(text), size)))
    assert reason == "tool_calls"
    assert deltas[0]["function"]["name"] == "get_weather" and deltas[0]["id"].startswith("call_")
    assert all("id" not in d and "name" not in d["function"] and d["index"] == 0 for d in deltas[1:])
    assert json.loads("".join(d["function"]["arguments"] for d in deltas)) == {"city": 'a } " {'}


def test_a_single_candidate_is_named_at_once():
    decoder = ChatDecoder(Expected("m", json=True, calls=True, name="set_timer"))
    first = decoder.feed({"choices": [{"index": 0, "delta": {"content": "{"}, "finish_reason": None}]})
    assert first[0]["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": "set_timer", "arguments": "{"}


def test_a_cut_call_says_length():
    decoder = ChatDecoder(Expected("m", json=True, calls=True, name="f"))
    assert stream(decoder, '{"a": ', reason="length")[1] == "length"


def test_free_text_in_place_of_json_is_an_engine_failure():
    with pytest.raises(EngineFailed, match="schema"):
        stream(ChatDecoder(Expected("m", json=True)), "Sure, here it is")
    with pytest.raises(EngineFailed, match="not the JSON"):
        stream(ChatDecoder(Expected("m", json=True)), "{", "oops")


def test_private_fields_stay_inside_and_usage_is_summed():
    decoder = ChatDecoder(Expected("m", choices=2))
    assert decoder.feed({"choices": [{"index": 0, "delta": {"content": None}}], "prompt_progress": {"total": 9}}) == []
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    assert decoder.feed({"choices": [], "usage": usage, "timings": {"prompt_n": 1}}) == []
    (last,) = decoder.feed({"choices": [], "usage": usage, "timings": {"prompt_n": 1}})
    assert last["usage"]["prompt_tokens"] == 5 and last["usage"]["completion_tokens"] == 6
    assert last["usage"]["total_tokens"] == 11 and last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert "timings" not in last and last["model"] == "m"


def test_requests_are_always_observable_and_bounded():
    sent = ask(stream=False, seed=-1, max_completion_tokens=7)
    assert sent["stream"] and sent["return_progress"] and sent["stream_options"] == {"include_usage": True}
    assert sent["max_tokens"] == 7 and 0 <= sent["seed"] < 2**32 - 1
    assert ask()["max_tokens"] == SMALL.max_output
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    sent = ask(messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    assert sent["messages"] == [{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}]


def test_unknown_fields_never_reach_the_engine():
    for name in ("grammar", "id_slot", "cache_prompt", "n_predict", "lora", "best_of", "echo", "suffix"):
        with pytest.raises(Unsupported) as caught:
            ask(**{name: 1})
        assert caught.value.param == name


def test_thinking_switch():
    def switch(card, **body):
        return LlamaDialect().encode(card, {"messages": [user("hi")], **body})[0].get("chat_template_kwargs")

    assert switch(QWEN) == {"enable_thinking": True}
    assert switch(QWEN, reasoning_effort="none") == {"enable_thinking": False}
    assert switch(QWEN, reasoning_effort="low") == {"enable_thinking": True}
    assert switch(QWEN, chat_template_kwargs={"enable_thinking": False}) == {"enable_thinking": False}
    assert switch(QWEN, response_format={"type": "json_object"}) == {"enable_thinking": False}
    assert switch(SMALL, reasoning_effort="none") is None
    with pytest.raises(Unsupported, match="does not think"):
        switch(SMALL, reasoning_effort="high")
    with pytest.raises(Unsupported, match="cannot be combined"):
        switch(QWEN, response_format={"type": "json_object"}, reasoning_effort="high")
    with pytest.raises(InvalidRequest, match="only enable_thinking"):
        switch(QWEN, chat_template_kwargs={"enable_thinking": "yes"})

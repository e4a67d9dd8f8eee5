"""The real engine: SmolLM2 from its package, one server for this file. The dialect's promises are checked on it."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from atoll.core.errors import ContextOverflow, EngineFailed, InvalidRequest, SetupError
from atoll.engines.cardfiles import EMBEDDED, read_cards
from atoll.engines.llamacpp import schemas
from atoll.engines.llamacpp.child import Params
from atoll.engines.llamacpp.engine import Events, LlamaEngine, locate, plan
from atoll.engines.llamacpp.runner import GRID, PIECE, STEP, LlamaRunner

CARD = read_cards(EMBEDDED)["smollm2-135m"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FRESH = httpx.Limits(max_keepalive_connections=0)
ENV = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.environ.get("PATH", "")}

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Reply:
    """httpx's response as a `core.ports.Reply`."""

    def __init__(self, response: httpx.Response) -> None:
        self.response, self.status = response, response.status_code
        self.pieces = response.aiter_raw()

    async def read(self) -> bytes:
        return await anext(self.pieces, b"")

    def close(self) -> None:
        self.closing = asyncio.create_task(self.response.aclose())


class Engine:
    """A started engine, and the few ways in which tests talk to it."""

    def __init__(self, engine: LlamaEngine, events: asyncio.Queue) -> None:
        self.engine, self.events = engine, events
        self.runner = LlamaRunner(CARD)

    async def start(self) -> "Engine":
        endpoint = await self.engine.start()
        headers = {"Authorization": f"Bearer {endpoint.token}"}
        self.http = httpx.AsyncClient(base_url=endpoint.url, headers=headers, timeout=60, limits=FRESH)
        return self

    async def stop(self) -> None:
        await self.http.aclose()
        await self.engine.stop()

    async def post(self, path: str, body: bytes) -> "Reply":
        request = self.http.build_request("POST", path, content=body, headers={"content-type": "application/json"})
        return Reply(await self.http.send(request, stream=True))

    async def chunks(self, path: str, body: dict, card=CARD):
        runner = self.runner if card is CARD else LlamaRunner(card)
        async with aclosing(runner.answer(path, body, self.post)) as answer:
            async for chunk in answer:
                yield chunk

    async def all(self, body: dict, path: str = CHAT, card=CARD) -> list[dict]:
        return [chunk async for chunk in self.chunks(path, body, card)]

    async def text(self, said: str, **body) -> str:
        return words(await self.all({"messages": [user(said)], "max_tokens": 24, "temperature": 0, **body}))

    async def busy(self) -> int:
        slots = (await self.http.get("/slots")).json()
        return sum(slot["is_processing"] for slot in slots)

    async def idle_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not await self.busy():
                return True
            await asyncio.sleep(0.02)
        return False


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def choices(chunks: list[dict], index: int = 0) -> list[dict]:
    return [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]


def words(chunks: list[dict], index: int = 0) -> str:
    return "".join(c["delta"].get("content") or "" for c in choices(chunks, index))


def calls(chunks: list[dict]) -> tuple[str, str]:
    deltas = [call for c in choices(chunks) for call in c["delta"].get("tool_calls", ())]
    return deltas[0]["function"]["name"], "".join(d["function"]["arguments"] for d in deltas)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(weights_cache):
    model = await locate(CARD, weights_cache, lambda *_: None)
    events: asyncio.Queue = asyncio.Queue()
    params = replace(plan(CARD.id, Params(str(model), CARD.context, 2, 1)), slots=2)
    running = Engine(LlamaEngine(CARD, "here", params, ENV, Events(events.put_nowait, events.put_nowait)), events)
    await running.start()
    yield running
    await running.stop()


async def test_stream_ends_with_usage_and_repeats_exactly(engine):
    body = {"messages": [user("Say hello.")], "max_tokens": 8, "temperature": 0}
    first, again = await engine.all(body), await engine.all(body)
    assert choices(first)[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices(first)[-1]["finish_reason"] == "length"
    assert first[-1]["choices"] == [] and first[-1]["usage"]["completion_tokens"] == 8
    assert words(first) == words(again) != ""
    assert again[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert all(chunk["model"] == CARD.id and "timings" not in chunk for chunk in first)


async def test_seed_decides(engine):
    said = "Tell me a story about a boat."
    once, same, other = [await engine.text(said, temperature=1.5, seed=s) for s in (1, 1, 2)]
    assert once == same != other


async def test_sampling_parameters_change_the_answer(engine):
    said = "Count: one, two, three,"
    plain = await engine.text(said)
    assert await engine.text(said, temperature=2.0, top_k=1, seed=5) == plain
    assert await engine.text(said, temperature=2.0, top_p=1e-6, seed=5) == plain
    assert await engine.text(said, temperature=2.0, min_p=1.0, seed=5) == plain
    assert await engine.text(said, temperature=2.0, top_k=0, min_p=0.0, seed=5) != plain
    looping = "Write a poem about a cat. Every line begins with the word cat."
    plain = await engine.text(looping, max_tokens=40)
    for name, value in (("frequency_penalty", 2.0), ("presence_penalty", 2.0), ("repeat_penalty", 1.8)):
        assert await engine.text(looping, max_tokens=40, **{name: value}) != plain, name


async def test_stop_logit_bias_and_logprobs(engine):
    body = {"messages": [user("Say hello.")], "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    chunks = await engine.all(body)
    entries = [e for c in choices(chunks) if c["logprobs"] for e in c["logprobs"]["content"]]
    assert len(entries) == 8 and "".join(e["token"] for e in entries) == words(chunks)
    for entry in entries:
        assert entry.keys() == {"token", "bytes", "logprob", "top_logprobs"} and len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == pytest.approx(max(t["logprob"] for t in entry["top_logprobs"]))
    second = entries[1]["token"].strip()
    stopped = await engine.all({**body, "stop": [second]})
    assert second not in words(stopped) and choices(stopped)[-1]["finish_reason"] == "stop"
    first = (await engine.http.post("/tokenize", json={"content": entries[0]["token"]})).json()["tokens"]
    assert not words(await engine.all({**body, "logit_bias": {str(first[0]): -100}})).startswith(entries[0]["token"])


async def test_many_choices_are_counted_together(engine):
    body = {"messages": [user("Name a colour.")], "n": 2, "max_tokens": 6, "temperature": 1.2, "seed": 4}
    chunks = await engine.all(body)
    assert words(chunks, 0) != words(chunks, 1)
    usages = [c["usage"] for c in chunks if c.get("usage")]
    assert len(usages) == 1 and usages[0]["completion_tokens"] == 12
    alone = await engine.all({"messages": [user("Name a colour.")], "max_tokens": 1})
    assert usages[0]["prompt_tokens"] == alone[-1]["usage"]["prompt_tokens"]
    with pytest.raises(InvalidRequest, match="'n'"):
        await engine.all({"messages": [user("Name a colour.")], "n": 3})


async def test_completions_over_several_prompts(engine):
    body = {"prompt": ["The sea", "A red bus"], "max_tokens": 4, "logprobs": 1, "temperature": 0}
    chunks = await engine.all(body, COMPLETIONS)
    for index in (0, 1):
        pieces = choices(chunks, index)
        text = "".join(c["text"] for c in pieces)
        tokens = [t for c in pieces if c["logprobs"] for t in c["logprobs"]["tokens"]]
        assert text and "".join(tokens) == text and pieces[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 8 and chunks[-1]["object"] == "text_completion"
    tokens = (await engine.http.post("/tokenize", json={"content": "The sea"})).json()["tokens"]
    by_ids = await engine.all({**body, "prompt": tokens}, COMPLETIONS)
    assert "".join(c["text"] for c in choices(by_ids)) == "".join(c["text"] for c in choices(chunks, 0))


async def test_schema_holds_the_answer(engine):
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 3, "maximum": 5},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,5}$"}, "maxItems": 2},
        },
        "required": ["colour", "count", "tags"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    for seed in range(4):
        answer = await engine.text("Invent a thing.", response_format=wanted, temperature=1.5, seed=seed, max_tokens=64)
        value = json.loads(answer)
        schemas.jsonschema.validate(value, schema)
    free = await engine.text("Describe a dog as JSON.", response_format={"type": "json_object"}, max_tokens=200)
    assert free.startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"v": False}, "required": ["v"]},
        {"enum": [f"item {i}" for i in range(4000)]},
        {"type": "string", "pattern": "^((((a{1,99}){1,99}){1,99}){1,99}){1,99}$"},
        {"type": "array", "items": {"type": "array", "items": {}, "minItems": 10**6}, "minItems": 10**6},
        {"type": "string", "maxLength": 10**9, "minLength": 10**9},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
        {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "string"}}} for i in range(500)]},
    ],
)
async def test_hostile_schemas_neither_stall_nor_kill(engine, schema):
    pid, began = engine.engine.child.pid, time.monotonic()
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    try:
        answer = await engine.text("Go.", response_format=wanted, max_tokens=8)
    except (EngineFailed, InvalidRequest):
        answer = "refused"
    assert answer and time.monotonic() - began < 5
    assert engine.engine.child.pid == pid and await engine.text("Hi", max_tokens=2)


async def test_tool_call_and_answer_from_its_result(engine):
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Get the current weather for a city", "parameters": city}
    body = {
        "messages": [user("What's the weather in Paris?")],
        "tools": [{"type": "function", "function": function}],
        "temperature": 0,
        "max_tokens": 64,
    }
    chunks = await engine.all(body)
    name, arguments = calls(chunks)
    assert name == "get_weather" and json.loads(arguments) == {"city": "Paris"}
    assert choices(chunks)[-1]["finish_reason"] == "tool_calls" and words(chunks) == ""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 18, "sky": "clear"}'},
    ]
    answer = await engine.all(body)
    assert words(answer) and choices(answer)[-1]["finish_reason"] in {"stop", "length"}
    assert "tool_calls" not in json.dumps(answer)


async def test_required_call_among_tools_that_do_not_fit(engine):
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
        for name in ("open_door", "close_window")
    ]
    body = {"messages": [user("Hello.")], "tools": tools, "tool_choice": "required", "temperature": 0}
    for card in (CARD, replace(CARD, tools="native")):
        name, arguments = calls(await engine.all(body, card=card))
        assert name in {"open_door", "close_window"} and json.loads(arguments) == {}


async def test_context_overflow_names_both_numbers(engine):
    with pytest.raises(ContextOverflow) as caught:
        await engine.text("word " * 9000)
    assert caught.value.limit == CARD.context and caught.value.counted > 9000


async def test_count_equals_what_is_charged(engine):
    body = {"messages": [{"role": "system", "content": "Be brief."}, user("How are you?")], "max_tokens": 1}
    counted = await LlamaRunner(CARD).count(body, engine.post)
    assert counted == (await engine.all(body))[-1]["usage"]["prompt_tokens"]


async def test_odd_bytes_are_refused_or_answered(engine):
    pid = engine.engine.child.pid
    for content in (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', b"{" * 50_000, b"null", b"[1]", b""):
        reply = await engine.http.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert 400 <= reply.status_code <= 500
    odd = await engine.all({"messages": [user("\x00 <|im_end|> \u202e \U0001f600")], "max_tokens": 2})
    assert choices(odd)[-1]["finish_reason"] in {"stop", "length"}
    assert engine.engine.child.pid == pid


async def free_after_leaving(engine, body: dict, seconds: float) -> bool:
    """Abandon a stream after `seconds`: is its slot free within one second? Best of three, for busy machines."""
    for _ in range(3):
        task = asyncio.create_task(engine.all(body))
        await asyncio.sleep(seconds)
        assert await engine.busy() == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if await engine.idle_within(1.0):
            return True
        assert await engine.idle_within(20)
    return False


async def test_a_departed_client_frees_its_slot_within_a_second(engine):
    assert await engine.idle_within(5)
    long = {"messages": [user("river stone cloud " * 2400)], "max_tokens": 8}
    assert await free_after_leaving(engine, long, 0.6), "in prefill"
    endless = {"messages": [user("Tell a long story.")], "max_tokens": 2000, "logit_bias": {"2": -100}}
    assert await free_after_leaving(engine, endless, 1.0), "in decode"


async def longest_gap(engine, prompt: str) -> float:
    """Seconds between two tokens of a stream, at most, while `prompt` is prefilled for another client."""
    body = {"messages": [user("Tell a long story.")], "max_tokens": 2000, "logit_bias": {"2": -100}}
    prefilling = asyncio.create_task(engine.all({"messages": [user(prompt)], "max_tokens": 1}))
    gaps, last = [], None
    async for _ in engine.chunks(CHAT, body):
        now = time.monotonic()
        gaps += [now - last] if last is not None else []
        last = now
        if prefilling.done():
            break
    await prefilling
    assert len(gaps) > 5
    return max(gaps)


async def test_a_long_prompt_does_not_stall_other_streams(engine):
    assert await engine.idle_within(5)
    prompts = [f"{word} lamp engine " * 600 for word in ("forest", "river", "cloud")]
    for prompt in prompts:
        if await longest_gap(engine, prompt) < 3.0:
            return
    pytest.fail("another stream waited 3 s or longer for a token, three times")


async def test_no_key_no_answer_and_no_foreign_origin(engine):
    url = str(engine.http.base_url)
    async with httpx.AsyncClient(base_url=url) as stranger:
        assert (await stranger.post(CHAT, json={"messages": [user("hi")]})).status_code == 401
        reply = await stranger.get("/health", headers={"Origin": "http://example.org"})
        assert reply.status_code == 200 and not reply.headers.get("access-control-allow-origin")


async def test_an_abort_is_survived(engine):
    os.kill(engine.engine.child.pid, signal.SIGABRT)
    async with asyncio.timeout(30):
        reason, endpoint = await engine.events.get(), await engine.events.get()
    assert "signal 6" in reason and endpoint.url == str(engine.http.base_url).rstrip("/")
    assert await engine.text("Hello", max_tokens=3)
    assert engine.engine.status()["restarts"] == 1


async def test_stop_leaves_no_process(weights_cache):
    model = await locate(CARD, weights_cache, lambda *_: None)
    params = Params(str(model), 512, 1, 1)
    engine = LlamaEngine(CARD, "here", params, ENV, Events(lambda _: None, lambda _: None))
    await engine.start()
    pid = engine.child.pid
    await engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine.status()["state"] == "stopped"


async def test_a_file_that_llama_cpp_rejects_is_reported(tmp_path, weights_cache):
    model = await locate(CARD, weights_cache, lambda *_: None)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[: 40 * 1024 * 1024])
    with pytest.raises(SetupError, match=r"damaged\.gguf"):
        plan("damaged", Params(str(damaged), 512, 1, 1))
    engine = LlamaEngine(CARD, "here", Params(str(damaged), 512, 1, 1), ENV, Events(print, print))
    with pytest.raises(EngineFailed, match=r"llama\.cpp"):
        await engine.start()


async def first_token_behind(engine, prompt: str) -> float:
    """Seconds until a new request has its first token while `prompt` is prefilled for another client."""
    prefilling = asyncio.create_task(engine.all({"messages": [user(prompt)], "max_tokens": 1}))
    await asyncio.sleep(1.0)
    assert not prefilling.done()
    began = time.monotonic()
    async with aclosing(engine.chunks(CHAT, {"messages": [user("Hello!")], "max_tokens": 1})) as answer:
        await anext(answer)
    waited = time.monotonic() - began
    prefilling.cancel()
    await asyncio.gather(prefilling, return_exceptions=True)
    assert await engine.idle_within(20)
    return waited


async def test_a_long_prompt_does_not_keep_new_requests_waiting(engine):
    assert await engine.idle_within(5)
    waits = []
    for word in ("desert", "valley", "harbour"):
        waits.append(await first_token_behind(engine, f"{word} lamp engine " * 1000))
        if waits[-1] < 3.0:
            return
    raise AssertionError(waits)


async def test_a_prompt_read_in_pieces_counts_as_cached_only_what_was_cached_before(engine):
    body = {"messages": [user("meadow chair window " * 400)], "max_tokens": 4, "temperature": 0}
    first, again = await engine.all(body), await engine.all(body)
    cold, warm = first[-1]["usage"], again[-1]["usage"]
    assert cold["prompt_tokens"] == warm["prompt_tokens"] > 1200
    assert cold["prompt_tokens_details"]["cached_tokens"] < 64
    assert warm["prompt_tokens_details"]["cached_tokens"] > 1200
    for chunks, used in ((first, cold), (again, warm)):
        [read] = [c["prompt_read"] for c in chunks if "prompt_read" in c]
        assert chunks[0]["prompt_read"] is read and read[0] == used["prompt_tokens"]
        assert abs(read[1] - used["prompt_tokens_details"]["cached_tokens"]) <= 1
    assert words(first) == words(again)


def tokens(chunks: list[dict]) -> list[int]:
    return [token for c in choices(chunks) for token in c["token_ids"]]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 7}])
async def test_every_token_is_told_and_an_answer_repeats_token_by_token(engine, sampling):
    said = "Say hi with \U0001f389 and \u4f60\u597d, then tell a story."
    body = {"messages": [user(said)], "max_tokens": 60, **sampling}
    first, again = await engine.all(body), await engine.all(body)
    ended = choices(first)[-1]["finish_reason"] == "stop"
    assert len(tokens(first)) == first[-1]["usage"]["completion_tokens"] - ended
    assert tokens(first) == tokens(again) and words(first) == words(again)


async def test_an_answer_goes_on_after_tokens_of_an_earlier_one(engine):
    body = {"messages": [user("Tell a story about a lighthouse.")], "max_tokens": 40, "temperature": 0}
    whole = await engine.all(body)
    begun = tokens(whole)[:25]
    rest = await engine.all({**body, "continue_token_ids": begun})
    assert rest[-1]["usage"]["completion_tokens"] == whole[-1]["usage"]["completion_tokens"]
    assert rest[-1]["usage"]["prompt_tokens"] == whole[-1]["usage"]["prompt_tokens"]
    assert len(tokens(rest)) <= 15 and words(rest)
    with pytest.raises(InvalidRequest, match="only one choice without grammar"):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        await engine.all({**body, "response_format": schema, "continue_token_ids": begun})


class Busy:
    """An engine that reads a prompt at a given pace, as its timings say; nothing waits. Keeps where prompts ended."""

    def __init__(self, pace: float) -> None:
        self.pace, self.cached = pace, 0
        self.ends: list[int] = []

    async def post(self, path: str, body: bytes) -> Any:
        asked = orjson.loads(body)
        end = len(asked["prompt"])
        self.ends.append(end)
        fresh = max(1, end - self.cached)
        self.cached = end
        if path == "/completion":
            event: dict = {"timings": {"prompt_n": fresh, "prompt_ms": 1000 * fresh / self.pace}}
        else:
            choice = {"index": 0, "text": "", "finish_reason": "stop"}
            told = {"tokens_predicted": GRID, "tokens": [7] * GRID, "content": "x"}
            event = {"choices": [{**choice, "text": "x"}], "__verbose": told}
        return Said(b"data: " + orjson.dumps(event) + b"\n\ndata: [DONE]\n\n")


class Said:
    def __init__(self, data: bytes) -> None:
        self.status, self.left = 200, [data]

    async def read(self) -> bytes:
        return self.left.pop() if self.left else b""

    def close(self) -> None: ...


@pytest.mark.parametrize(("pace", "longest"), [(1000.0, PIECE), (100.0, 48), (5.0, STEP)])
async def test_a_busy_engine_reads_in_shorter_pieces_and_the_last_token_alone(pace, longest):
    engine, runner = Busy(pace), LlamaRunner(CARD)

    async def ask(prompt: list[int]) -> list[int]:
        engine.ends.clear()
        body = {"model": "m", "prompt": prompt, "max_tokens": 1}
        assert [c async for c in runner.answer(COMPLETIONS, body, engine.post)]
        return list(engine.ends)

    prompt = list(range(1000))
    ends = await ask(prompt)
    assert ends[-2:] == [999, 1000]
    steps = [b - a for a, b in pairwise(ends[:-1])]
    assert max(steps) == longest and min(steps[:-1]) == longest
    assert await ask(prompt) == [1000], "what is cached is not read again"
    longer = await ask([*prompt, *[7] * GRID, *range(500)])
    assert longer[0] > 1000 + GRID - GRID % 32, "nor cut short, the answer included"


@pytest.mark.parametrize("breaks", [False, True])
async def test_an_answer_is_read_to_the_end_of_its_connection_and_what_breaks_after_done_breaks_no_answer(breaks):
    class Late(Said):
        async def read(self) -> bytes:
            if self.left or not breaks:
                return await super().read()
            raise EngineFailed("the engine closed the connection")

    told = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}
    late = Late(b"")
    late.left = [b"\n", b"data: " + orjson.dumps(told) + b"\n\ndata: [DONE]\n\n"]

    async def post(path: str, body: bytes) -> Any:
        return late

    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 1}
    answer = [chunk async for chunk in LlamaRunner(CARD).answer(COMPLETIONS, body, post)]
    assert answer[0]["choices"][0]["text"] == "x" and not late.left

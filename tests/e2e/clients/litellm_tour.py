"""LiteLLM's library as a client: OpenAI and Anthropic routes. Prints one JSON object of what was seen."""

import json
import os

import litellm

URL, KEY = os.environ["ATOLL_URL"], os.environ["ATOLL_KEY"]
ASK = [{"role": "user", "content": "Write one short sentence about the sea."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OPENAI = {"model": "openai/max", "api_base": f"{URL}/v1", "api_key": KEY, "num_retries": 0, "timeout": 120}
ANTHROPIC = {**OPENAI, "model": "anthropic/max", "api_base": URL}

litellm.telemetry = False


def say(route: dict) -> dict:
    answer = litellm.completion(**route, messages=ASK, max_tokens=24)
    return {"text": answer.choices[0].message.content, "output": answer.usage.completion_tokens}


def stream(route: dict) -> dict:
    chunks = litellm.completion(**route, messages=ASK, max_tokens=24, stream=True)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool(route: dict) -> dict:
    said = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = litellm.completion(**route, messages=said, tools=[TOOL], tool_choice="required", max_tokens=200)
    call = answer.choices[0].message.tool_calls[0]
    return {"name": call.function.name, "arguments": json.loads(call.function.arguments)}


def vectors() -> list[int]:
    answer = litellm.embedding(**{**OPENAI, "model": "openai/all-minilm-l6-v2"}, input=["a cat", "a dog"])
    return [len(row["embedding"]) for row in answer.data]


def refused() -> str:
    try:
        litellm.completion(**{**OPENAI, "model": "openai/no-such-model"}, messages=ASK)
    except litellm.exceptions.NotFoundError as error:
        return type(error).__name__
    return ""


routes = {"openai": OPENAI, "anthropic": ANTHROPIC}
seen = {name: {"say": say(r), "stream": stream(r), "tool": tool(r)} for name, r in routes.items()}
print(json.dumps({**seen, "embeddings": vectors(), "refused": refused()}))

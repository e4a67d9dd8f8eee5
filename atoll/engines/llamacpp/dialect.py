"""Between the canonical wire format and llama.cpp's: requests on their way out, streams on their way back.

Requests always ask for a stream with progress: llama.cpp notices a departed client only while it writes.
"""

from __future__ import annotations

import json
from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import AtollError, ContextOverflow, EngineFailed, InvalidRequest, Unsupported
from atoll.engines.llamacpp import schemas, tools
from atoll.engines.llamacpp.decoders import ChatDecoder, Expected, TextDecoder

SAME = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "n", "stop", "logit_bias", "logprobs", "top_logprobs",
)  # fmt: skip
HANDLED = {
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "seed",
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs",
    "user", "safety_identifier", "prompt_cache_key", "metadata", "store", "service_tier", "modalities",
}  # fmt: skip


Encoded = tuple[dict[str, Any], ChatDecoder | TextDecoder]
COUNT = "/v1/chat/completions/input_tokens"


class LlamaDialect:
    """What a llama.cpp server wants to hear, and what its answers mean. The decoder drops progress, timings and other
    private fields."""

    def encode(self, card: Card, body: dict[str, Any]) -> Encoded:
        """The request for /v1/chat/completions (`messages`) or /v1/completions (`prompt`), and its decoder.

        Raises InvalidRequest or Unsupported naming the field.
        """
        for name in body:
            if name not in HANDLED and name not in SAME:
                raise Unsupported(f"'{name}' is not supported by the llama.cpp engine", param=name)
        sent = {name: body[name] for name in SAME if body.get(name) is not None}
        sent |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        sent["max_tokens"] = body.get("max_completion_tokens") or body.get("max_tokens") or card.max_output
        if body.get("seed") is not None:
            sent["seed"] = _seed(body["seed"])
        _check_bias(body.get("logit_bias") or {})
        if "prompt" in body:
            return _completion(card, body, sent)
        return _chat(card, body, sent)

    def count(self, card: Card, body: dict[str, Any]) -> dict[str, Any]:
        """The body to POST to `COUNT`; the answer is {"input_tokens": n}, as the chat request would be counted."""
        sent, _ = self.encode(card, body)
        return {name: sent[name] for name in ("messages", "tools", "chat_template_kwargs") if name in sent}

    def is_plain(self, card: Card, sent: dict[str, Any]) -> bool:
        """True where llama.cpp has nothing to parse in the answer: no thinking, no tool calls in the model's way."""
        return "prompt" in sent or (card.tools != "native" and card.thinking == "none")

    def explain(self, status: int, body: bytes) -> AtollError:
        """llama.cpp's error answer as ours."""
        try:
            error = json.loads(body)["error"]
            kind, message = str(error.get("type", "")), str(error.get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return EngineFailed(f"the engine answered {status} without saying why")
        if kind == "exceed_context_size_error":
            return ContextOverflow(int(error.get("n_prompt_tokens", 0)), int(error.get("n_ctx", 0)))
        if status in {400, 404, 501}:
            return InvalidRequest(message or f"the engine answered {status}")
        return EngineFailed(message or f"the engine answered {status}")


def _chat(card: Card, body: dict[str, Any], sent: dict[str, Any]) -> Encoded:
    messages = [_flat(message) for message in body.get("messages") or ()]
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    expected = Expected(card.id, choices=body.get("n") or 1)
    thinks = _thinking(card, body, sent)
    schema = _format_schema(body.get("response_format"))
    offered = _check_tools(body)
    call = _call(card, offered, messages, body.get("tool_choice", "auto"))
    if call:
        if thinks:
            sent["chat_template_kwargs"] = {"enable_thinking": False}
        sent |= {"messages": call.messages, "grammar": call.grammar}
        return sent, ChatDecoder(Expected(card.id, expected.choices, json=True, calls=True, name=call.name))
    if card.tools == "native":
        native = _native_tools(body)
        if native and schema is not None:
            raise Unsupported("response_format and tools cannot be combined for this model", param="response_format")
        sent |= native
    else:
        messages = tools.transcript(messages)
    sent["messages"] = messages
    if schema is not None:
        if thinks and (body.get("reasoning_effort") or body.get("chat_template_kwargs")):
            raise Unsupported("response_format and thinking cannot be combined", param="reasoning_effort")
        if thinks:
            sent["chat_template_kwargs"] = {"enable_thinking": False}
        sent["grammar"] = schemas.grammar(schema)
        expected = Expected(card.id, expected.choices, json=True)
    return sent, ChatDecoder(expected)


def _completion(card: Card, body: dict[str, Any], sent: dict[str, Any]) -> Encoded:
    prompt = body["prompt"]
    if not prompt or "" in (prompt if isinstance(prompt, list) else ()):
        raise InvalidRequest("prompt must not be empty", param="prompt")
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    sent["prompt"] = prompt
    return sent, TextDecoder(Expected(card.id, body.get("n") or 1, len(prompt) if many else 1))


def _seed(seed: int) -> int:
    """llama.cpp's seed has 32 bits, of which all ones mean "random"."""
    return min(seed % (1 << 32), (1 << 32) - 2)


def _check_bias(bias: dict[str, Any]) -> None:
    for token in bias:
        if not token.isdigit():
            raise InvalidRequest("logit_bias maps token ids to numbers", param=f"logit_bias.{token}")


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts joined, `developer` as `system`, no nulls (llama.cpp takes none but in `content`)."""
    message = {name: value for name, value in message.items() if value is not None or name == "content"}
    content = message.get("content")
    if isinstance(content, list):
        message = {**message, "content": "\n".join(part.get("text", "") for part in content)}
    if message["role"] == "developer":
        message = {**message, "role": "system"}
    return message


def _thinking(card: Card, body: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Set the template's thinking switch; True when the model will think."""
    effort, given = body.get("reasoning_effort"), body.get("chat_template_kwargs") or {}
    if card.thinking == "none":
        if effort not in {None, "none"}:
            raise Unsupported(f"model '{card.id}' does not think", param="reasoning_effort")
        if given:
            raise Unsupported(f"model '{card.id}' has no template switches", param="chat_template_kwargs")
        return False
    if given.keys() - {"enable_thinking"} or not isinstance(given.get("enable_thinking", True), bool):
        raise InvalidRequest("only enable_thinking (true or false) may be set", param="chat_template_kwargs")
    if card.thinking == "always":
        if effort == "none" or given.get("enable_thinking") is False:
            raise Unsupported(f"model '{card.id}' always thinks", param="reasoning_effort")
        return True
    enabled = given.get("enable_thinking", effort != "none")
    sent["chat_template_kwargs"] = {"enable_thinking": enabled}
    return enabled


def _format_schema(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise InvalidRequest("type must be text, json_object or json_schema", param="response_format.type")
    given = wanted.get("json_schema") or {}
    schema = given.get("schema", {"type": "object"})
    schemas.check(schema, "response_format.json_schema.schema", strict=bool(given.get("strict")))
    return schema


def _check_tools(body: dict[str, Any]) -> list[tools.Function]:
    given = body.get("tools") or []
    for i, tool in enumerate(given):
        parameters = tool["function"].get("parameters")
        if parameters is None:
            continue
        where = f"tools[{i}].function.parameters"
        schemas.check(parameters, where, strict=bool(tool["function"].get("strict")))
        if parameters.get("type", "object") != "object":
            raise InvalidRequest("the parameters of a function are an object", param=where)
    return tools.functions(given)


def _call(card: Card, offered: list[tools.Function], messages: list[dict[str, Any]], choice: Any) -> tools.Call | None:
    """The tool call to make now, if this side decides about it: always for cards of `tools = "schema"`, and for
    the others when a call is required, which llama.cpp does not enforce."""
    if card.tools == "native":
        if not offered or choice in ("auto", "none"):
            return None
        named = choice["function"]["name"] if isinstance(choice, dict) else None
        return tools.forced([f for f in offered if named in (None, f.name)], messages)
    chosen = tools.choose(offered, messages, choice)
    return tools.request(chosen, messages) if chosen else None


def _native_tools(body: dict[str, Any]) -> dict[str, Any]:
    """For templates with tools of their own, when the model decides whether to call one."""
    if not body.get("tools") or body.get("tool_choice") == "none":
        return {}
    return {"tools": body["tools"], "parallel_tool_calls": bool(body.get("parallel_tool_calls", True))}

"""OpenAI's Responses API: translated to chat completions and back; finished responses are kept for 30 days."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import TypeAdapter

from atoll.core.errors import InvalidRequest, Unsupported
from atoll.core.ports import Responses
from atoll.core.types import Key
from atoll.gateway.chat import drop_nulls
from atoll.gateway.exchange import Charge
from atoll.gateway.http import Http
from atoll.gateway.responses_items import Conversation
from atoll.gateway.responses_schemas import LOGPROBS, AnyItem, NamedTool, ResponsesRequest, SchemaFormat
from atoll.gateway.responses_stored import stored_response
from atoll.gateway.responses_view import Keep, ResponseView
from atoll.gateway.translate import Call, parse, serve

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

KEEP_SECONDS = 30 * 86400.0
MAX_STORED = 8 * 1024 * 1024
ITEMS: TypeAdapter[list[AnyItem]] = TypeAdapter(list[AnyItem])
FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "logprobs": "include",
}


@dataclass(frozen=True, slots=True)
class Thread:
    """What a response continues from and what it was asked: items as they are stored."""

    before: list[dict[str, Any]]
    asked: list[dict[str, Any]]


async def serve_responses(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/responses."""
    raw = await http.body(gateway.limits.max_body_bytes)
    body = drop_nulls(gateway.parse(http, key, raw))
    request = parse(ResponsesRequest, body)
    if request.store and gateway.responses is None and "store" in body:
        raise Unsupported("'store' is not supported here: this gateway keeps no responses", param="store")
    thread = Thread(await _before(gateway, key, request), _asked(request, http.id))
    size = len(raw) + len(orjson.dumps(thread.before))
    keep = None
    if request.store and gateway.responses is not None:
        keep = keeper(gateway.responses, key, thread, size)
    call = to_chat(request, thread, size)

    def view(charge: Charge) -> ResponseView:
        return ResponseView(begin(request, charge, keep is not None), keep)

    await serve(gateway.exchange, http, key, call, view)


def to_chat(request: ResponsesRequest, thread: Thread, size: int) -> Call:
    """The chat body of a responses request. Raises InvalidRequest."""
    conversation = Conversation()
    if request.instructions:
        conversation.instruct(request.instructions)
    for item in ITEMS.validate_python(thread.before):
        conversation.add(item, "previous_response_id")
    for i, item in enumerate(ITEMS.validate_python(thread.asked)):
        conversation.add(item, "input" if isinstance(request.input, str) else f"input[{i}]")
    given = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "reasoning_effort": request.reasoning.effort,
        "response_format": _format(request),
        "logprobs": True if LOGPROBS in request.include else None,
        "top_logprobs": request.top_logprobs,
        "user": request.user,
        **_tools(request),
    }
    body = {name: value for name, value in given.items() if value is not None}
    body |= {"model": request.model, "messages": conversation.done()}
    return Call(body, size, request.stream, FIELDS, conversation.places)


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = [
        {"type": "function", "function": t.model_dump(exclude={"type"}, exclude_none=True)} for t in request.tools
    ]
    choice = request.tool_choice
    given = request.model_fields_set
    return {
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": choice.name}}
        if isinstance(choice, NamedTool)
        else (choice if "tool_choice" in given else None),
        "parallel_tool_calls": request.parallel_tool_calls if "parallel_tool_calls" in given else None,
    }


def _format(request: ResponsesRequest) -> dict[str, Any] | None:
    wanted = request.text.format
    if isinstance(wanted, SchemaFormat):
        schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": schema}
    return {"type": "json_object"} if wanted and wanted.type == "json_object" else None


async def _before(gateway: Gateway, key: Key, request: ResponsesRequest) -> list[dict[str, Any]]:
    """Everything said up to the response that this one continues. Raises NotFound."""
    if request.previous_response_id is None:
        return []
    found = await stored_response(gateway, key, request.previous_response_id, "previous_response_id")
    return [*found["before"], *found["input"], *found["response"]["output"]]


def _asked(request: ResponsesRequest, request_id: str) -> list[dict[str, Any]]:
    """The input as items with ids."""
    if isinstance(request.input, str):
        content = [{"type": "input_text", "text": request.input}]
        items: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": content}]
    else:
        items = [i.model_dump(exclude_none=True) for i in request.input]
    return [{"id": f"in_{request_id[4:]}_{i}", **item} for i, item in enumerate(items)]


def keeper(responses: Responses, key: Key, thread: Thread, size: int) -> Keep:
    """Raises InvalidRequest when the conversation is too large to be kept."""
    if size > MAX_STORED:
        raise InvalidRequest(
            f"the conversation is {size} bytes; a stored response holds at most {MAX_STORED}: send \"store\": false",
            param="store",
        )

    async def keep(response: dict[str, Any]) -> None:
        body = {"response": response, "input": thread.asked, "before": thread.before}
        await responses.put(response["id"], key.id, body, time.time() + KEEP_SECONDS)

    return keep


def begin(request: ResponsesRequest, charge: Charge, stored: bool) -> dict[str, Any]:
    """The response before its first token."""
    choice = request.tool_choice
    return {
        "id": "resp_" + charge.entry.id[4:],
        "object": "response",
        "created_at": int(charge.entry.created_at),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "model": charge.card.id,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": request.temperature,
        "text": {"format": _shown_format(request)},
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
        "tools": [t.model_dump() for t in request.tools],
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata,
    }


def _shown_format(request: ResponsesRequest) -> dict[str, Any]:
    wanted = request.text.format
    return wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"}

"""Anthropic's messages API, translated to chat completions and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from atoll.core.errors import InvalidRequest, Unsupported
from atoll.core.types import Key
from atoll.gateway.chat import count
from atoll.gateway.checks import check_chat
from atoll.gateway.http import Http
from atoll.gateway.messages_schemas import (
    AssistantTurn,
    ChooseFreely,
    ChooseTool,
    CountRequest,
    ImageBlock,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ThinkingOn,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)
from atoll.gateway.messages_view import MessageView
from atoll.gateway.translate import Call, named, parse, serve

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
FIELDS = {
    "stop": "stop_sequences",
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "user": "metadata.user_id",
}
EFFORTS = ((2048, "low"), (8192, "medium"))


async def serve_messages(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/messages."""
    raw = await http.body(gateway.limits.max_body_bytes)
    request = parse(MessagesRequest, gateway.parse(http, key, raw))
    call = to_chat(request, len(raw))
    await serve(
        gateway.exchange, http, key, call, lambda charge: MessageView("msg_" + http.id[4:], charge.card.id)
    )


async def serve_count(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/messages/count_tokens: {"input_tokens": n}, as the engine counts them. Costs nothing."""
    raw = await http.body(gateway.limits.max_body_bytes)
    call = to_chat(parse(CountRequest, gateway.parse(http, key, raw)), len(raw))
    models = gateway.exchange.models
    with named(call):
        card = models.resolve(call.body["model"])
        if card.engine == "cascade":
            card = models.resolve(card.parts[0])
        check_chat(card, call.body)
        counted = await count(gateway.exchange, http, card, call.body)
    if counted is None:
        raise Unsupported(f"the engine of model '{card.id}' cannot count tokens", param="model")
    await http.json({"input_tokens": counted})


def to_chat(request: CountRequest, size: int) -> Call:
    """The chat body of a messages request. Raises InvalidRequest for tool results that answer no call."""
    turns = Turns()
    if request.system:
        turns.system(request.system)
    for i, turn in enumerate(request.messages):
        if isinstance(turn, UserTurn):
            turns.user(turn, f"messages[{i}]")
        else:
            turns.assistant(turn, f"messages[{i}]")
    body = {"model": request.model, "messages": turns.messages, **_tools(request), **_thinking(request)}
    streamed = False
    if isinstance(request, MessagesRequest):
        body |= _sampling(request)
        streamed = request.stream
    fields = {**FIELDS, "reasoning_effort": "thinking" if request.thinking else "output_config.effort"}
    return Call(body, size, streamed, fields, turns.places)


def _sampling(request: MessagesRequest) -> dict[str, Any]:
    given = {
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "user": request.metadata.user_id if request.metadata else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _thinking(request: CountRequest) -> dict[str, Any]:
    """Engines know efforts, not budgets: a budget becomes the effort it is worth, bounded by max_tokens as a whole."""
    thinking, config = request.thinking, request.output_config
    body: dict[str, Any] = {}
    if config and config.effort:
        body["reasoning_effort"] = "xhigh" if config.effort == "max" else config.effort
    if isinstance(thinking, ThinkingOn):
        body["reasoning_effort"] = next((e for most, e in EFFORTS if thinking.budget_tokens <= most), "high")
    elif thinking is not None and thinking.type == "disabled":
        body["reasoning_effort"] = "none"
    if config and config.format:
        schema = {"name": "answer", "schema": config.format.schema_, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _tools(request: CountRequest) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    **({"description": t.description} if t.description is not None else {}),
                    "parameters": t.input_schema.model_dump(),
                    **({"strict": t.strict} if t.strict is not None else {}),
                },
            }
            for t in request.tools
        ]
    choice = request.tool_choice
    if choice is None:
        return body
    if isinstance(choice, ChooseTool):
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif request.tools:
        body["tool_choice"] = {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if isinstance(choice, ChooseFreely | ChooseTool) and choice.disable_parallel_tool_use:
        body["parallel_tool_calls"] = False
    return body


class Turns:
    """Chat messages under construction, and where each came from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._called: set[str] = set()

    def system(self, system: str | list[TextBlock]) -> None:
        text = system if isinstance(system, str) else "\n\n".join(b.text for b in system)
        self._add({"role": "system", "content": text}, "system")

    def user(self, turn: UserTurn, where: str) -> None:
        """Tool results become messages of their own, before what the user says beside them. A picture in a result
        cannot stand in a chat tool message, so it follows in the user's words."""
        if isinstance(turn.content, str):
            self._add({"role": "user", "content": turn.content}, where)
            return
        parts: list[tuple[dict[str, Any], str]] = []
        for j, block in enumerate(turn.content):
            place = f"{where}.content[{j}]"
            if isinstance(block, ToolResultBlock):
                parts += self._result(block, place)
            else:
                parts.append((_part(block), place))
        if parts:
            self._add({"role": "user", "content": [p for p, _ in parts]}, where)
            at = f"messages[{len(self.messages) - 1}]"
            self.places |= {f"{at}.content[{j}]": place for j, (_, place) in enumerate(parts)}

    def assistant(self, turn: AssistantTurn, where: str) -> None:
        if isinstance(turn.content, str):
            self._add({"role": "assistant", "content": turn.content}, where)
            return
        text = "".join(b.text for b in turn.content if isinstance(b, TextBlock))
        thought = "".join(b.thinking for b in turn.content if isinstance(b, ThinkingBlock))
        calls = [b for b in turn.content if isinstance(b, ToolUseBlock)]
        self._called |= {c.id for c in calls}
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [_tool_call(c) for c in calls]
        self._add(message, where)

    def _result(self, block: ToolResultBlock, where: str) -> list[tuple[dict[str, Any], str]]:
        if block.tool_use_id not in self._called:
            raise InvalidRequest(
                f"no earlier tool_use block has the id '{block.tool_use_id}'", param=f"{where}.tool_use_id"
            )
        content = block.content or []
        if isinstance(content, str):
            content = [TextBlock(type="text", text=content)]
        text = "\n".join(b.text for b in content if isinstance(b, TextBlock))
        text = f"Error: {text}" if block.is_error else text
        self._add({"role": "tool", "tool_call_id": block.tool_use_id, "content": text}, where)
        return [(_part(b), f"{where}.content[{k}]") for k, b in enumerate(content) if isinstance(b, ImageBlock)]

    def _add(self, message: dict[str, Any], where: str) -> None:
        self.places[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)


def _tool_call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    url = f"data:{block.source.media_type};base64,{block.source.data}"
    return {"type": "image_url", "image_url": {"url": url}}

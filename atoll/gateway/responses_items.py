"""Items of the Responses API to chat messages."""

from __future__ import annotations

from typing import Any

from atoll.core.errors import InvalidRequest
from atoll.gateway.responses_schemas import (
    AnyItem,
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputMessage,
    InputSound,
    InputText,
    Item,
    OutputText,
    Reasoning,
)

Parts = list[tuple[dict[str, Any], str]]


class Conversation:
    """Chat messages under construction, and where each came from.

    What an assistant thought, said and called in a row is several items, but one chat message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._turn: dict[str, Any] | None = None
        self._called: set[str] = set()

    def instruct(self, text: str) -> None:
        self._add({"role": "system", "content": text}, "instructions")

    def add(self, item: AnyItem, where: str) -> None:
        """Raises InvalidRequest: an output that answers no call, a system message that is not text."""
        if isinstance(item, Reasoning | AssistantMessage | FunctionCall):
            self._continue_turn(item, where)
            return
        self._turn = None
        if isinstance(item, InputMessage):
            self._message(item, where)
        elif isinstance(item, FunctionCallOutput):
            self._output(item, where)

    def _continue_turn(self, item: Item, where: str) -> None:
        turn = self._turn
        spoken = turn is not None and (turn["content"] is not None or "tool_calls" in turn)
        if turn is None or (spoken and not isinstance(item, FunctionCall)):
            self._turn = turn = {"role": "assistant", "content": None}
            self._add(turn, where)
        if isinstance(item, Reasoning):
            thought = "".join(c.text for c in item.content or ())
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thought
        elif isinstance(item, AssistantMessage):
            turn["content"] = item.content if isinstance(item.content, str) else "".join(
                p.text if isinstance(p, OutputText) else p.refusal for p in item.content
            )
        elif isinstance(item, FunctionCall):
            self._called.add(item.call_id)
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})

    def _message(self, item: InputMessage, where: str) -> None:
        role = "user" if item.role == "user" else "system"
        if isinstance(item.content, str):
            self._add({"role": role, "content": item.content}, where)
            return
        if role == "system":
            other = [j for j, p in enumerate(item.content) if not isinstance(p, InputText)]
            if other:
                raise InvalidRequest(f"a {item.role} message holds text only", param=f"{where}.content[{other[0]}]")
            text = "\n".join(p.text for p in item.content if isinstance(p, InputText))
            self._add({"role": role, "content": text}, where)
            return
        self._user([(_part(p), f"{where}.content[{j}]") for j, p in enumerate(item.content)], where)

    def _output(self, item: FunctionCallOutput, where: str) -> None:
        """Pictures cannot stand in a chat tool message, so they follow in the user's words."""
        if item.call_id not in self._called:
            raise InvalidRequest(
                f"no earlier function_call has the call_id '{item.call_id}'", param=f"{where}.call_id"
            )
        parts = [InputText(type="input_text", text=item.output)] if isinstance(item.output, str) else item.output
        text = "\n".join(p.text for p in parts if isinstance(p, InputText))
        self._add({"role": "tool", "tool_call_id": item.call_id, "content": text}, where)
        pictures = [(_part(p), f"{where}.output[{j}]") for j, p in enumerate(parts) if isinstance(p, InputImage)]
        if pictures:
            self._user(pictures, where)

    def _user(self, parts: Parts, where: str) -> None:
        self._add({"role": "user", "content": [p for p, _ in parts]}, where)
        at = f"messages[{len(self.messages) - 1}]"
        self.places |= {f"{at}.content[{j}]": place for j, (_, place) in enumerate(parts)}

    def _add(self, message: dict[str, Any], where: str) -> None:
        self.places[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)

    def done(self) -> list[dict[str, Any]]:
        """The messages; a turn that held only thoughts says nothing."""
        for message in self.messages:
            if message["role"] == "assistant" and message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        return self.messages


def _part(part: InputText | InputImage | InputSound) -> dict[str, Any]:
    if isinstance(part, InputText):
        return {"type": "text", "text": part.text}
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
    return {"type": "input_audio", "input_audio": part.input_audio.model_dump()}

"""May this model be asked this? Every field given is honoured by the model's card or refused by name."""

from __future__ import annotations

from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import InvalidRequest, Unsupported

LABELS = {"user", "safety_identifier", "prompt_cache_key", "metadata"}
HANDLED = {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
}
PART_MEDIA = {"image_url": "image", "input_audio": "audio"}


def check_task(card: Card, task: str) -> None:
    if card.task != task:
        raise InvalidRequest(f"model '{card.id}' is for {card.task}, not for {task}", param="model", code="wrong_task")


def check_chat(card: Card, body: dict[str, Any]) -> None:
    """Raises Unsupported naming the first field that `card` cannot honour, InvalidRequest for a value out of range."""
    check_task(card, "chat")
    for name, value in body.items():
        if name in HANDLED or name in LABELS or name in card.parameters or value in NEUTRAL.get(name, ()):
            continue
        _check_feature(card, body, name, value)
    check_output(card, body)
    _check_media(card, body.get("messages", ()))


def _check_feature(card: Card, body: dict[str, Any], name: str, value: Any) -> None:
    if name in {"tools", "tool_choice", "parallel_tool_calls"} and card.tools != "none":
        return
    if name == "response_format" and (value["type"] == "text" or card.json_schema):
        return
    if name == "reasoning_effort" and (card.thinking != "none" or value == "none"):
        return
    if name == "modalities" and set(value) <= set(card.output):
        return
    if name == "audio" and "audio" in card.output:
        check_voice(card, value["voice"], "audio.voice")
        return
    raise Unsupported(f"'{name}' is not supported by model '{card.id}'", param=name)


def check_voice(card: Card, name: str, param: str) -> None:
    """Raises Unsupported with the voices that there are, where the card names them."""
    if card.voices and name not in card.voices:
        told = f"model '{card.id}' speaks with: {', '.join(card.voices)}; not '{name}'"
        raise Unsupported(told, param=param)


def check_output(card: Card, body: dict[str, Any]) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is not None and value > card.max_output:
            raise InvalidRequest(
                f"{name} is {value}; model '{card.id}' answers with at most {card.max_output} tokens", param=name
            )


def _check_media(card: Card, messages: Any) -> None:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            medium = PART_MEDIA.get(part["type"])
            if medium and medium not in card.input:
                where = f"messages[{i}].content[{j}]"
                raise Unsupported(
                    f"model '{card.id}' takes {', '.join(card.input)} as input, not {medium}",
                    param=where,
                    code="unsupported_media",
                )
            if medium == "image" and not part["image_url"]["url"].startswith("data:image/"):
                where = f"messages[{i}].content[{j}].image_url.url"
                raise Unsupported(
                    "images must be data URLs (data:image/...;base64,...); Atoll fetches nothing from the network",
                    param=where,
                    code="unsupported_media",
                )
            if medium == "image" and card.engine == "cascade" and part["image_url"].get("detail", "auto") != "auto":
                raise Unsupported(
                    f"model '{card.id}' reads pictures at the size they have: send no 'detail', or 'auto'",
                    param=f"messages[{i}].content[{j}].image_url.detail",
                )


def carried(body: dict[str, Any]) -> set[str]:
    """The media in the messages of a checked request, besides text."""
    contents = [m.get("content") for m in body.get("messages", ())]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return {PART_MEDIA[part["type"]] for part in parts if part["type"] in PART_MEDIA}


def max_output(card: Card, body: dict[str, Any]) -> int:
    """The most output tokens that this request can produce, over all choices."""
    each = body.get("max_completion_tokens") or body.get("max_tokens") or card.max_output
    return int(each) * int(body.get("n") or 1)

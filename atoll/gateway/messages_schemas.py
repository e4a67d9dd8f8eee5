"""Anthropic's messages request, as pydantic models. Fields that are not here are refused by name.

`cache_control` is taken as the hint it is: prompts that share a beginning share the engine's cache without being asked.
Source: the Anthropic API reference, Messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from atoll.gateway.schemas import NAME, Loose, Strict

Base64 = Annotated[str, StringConstraints(min_length=4, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class CacheControl(Strict):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class Block(Strict):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: None = None


class ImageSource(Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Base64


class ImageBlock(Block):
    type: Literal["image"]
    source: ImageSource


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool = False


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: None = None


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class UserTurn(Strict):
    role: Literal["user"]
    content: (
        str
        | Annotated[
            list[Annotated[TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type")]],
            Field(min_length=1),
        ]
    )


class AssistantTurn(Strict):
    role: Literal["assistant"]
    content: (
        str
        | Annotated[
            list[Annotated[TextBlock | ToolUseBlock | ThinkingBlock, Field(discriminator="type")]],
            Field(min_length=1),
        ]
    )


class ObjectSchema(Loose):
    type: Literal["object"]


class ToolDefinition(Block):
    type: Literal["custom"] | None = None
    name: str = Field(pattern=NAME)
    description: str | None = None
    input_schema: ObjectSchema
    strict: bool | None = None


class ChooseFreely(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool = False


class ChooseTool(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class ChooseNone(Strict):
    type: Literal["none"]


class ThinkingOn(Strict):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024)


class ThinkingOther(Strict):
    type: Literal["disabled", "adaptive"]


class Metadata(Strict):
    user_id: str | None = Field(None, max_length=256)


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class CountRequest(Strict):
    """What `/v1/messages/count_tokens` takes: the prompt, and what shapes it."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]] = Field(
        min_length=1, max_length=10_000
    )
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=128)] | None = None
    tool_choice: Annotated[ChooseFreely | ChooseTool | ChooseNone, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingOther, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _together(self) -> CountRequest:
        names = [t.name for t in self.tools or ()]
        if len(names) != len(set(names)):
            raise ValueError("tools: two tools have the same name")
        if isinstance(self.tool_choice, ChooseTool) and self.tool_choice.name not in names:
            raise ValueError(f"tool_choice.name: '{self.tool_choice.name}' is not among the tools")
        if isinstance(self.tool_choice, ChooseFreely) and not names:
            raise ValueError("tool_choice: needs tools")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last message must be the user's; answers cannot be prefilled")
        return self


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=16)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    stream: bool = False

    @model_validator(mode="after")
    def _budget_fits(self) -> MessagesRequest:
        if isinstance(self.thinking, ThinkingOn) and self.thinking.budget_tokens >= self.max_tokens:
            raise ValueError(f"thinking.budget_tokens: must be less than max_tokens ({self.max_tokens})")
        return self

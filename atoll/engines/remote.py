"""An OpenAI-compatible endpoint elsewhere: vLLM, SGLang, Ray Serve LLM, another Atoll, a paid provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from atoll.core.cards import Card
from atoll.core.errors import EngineFailed, InvalidRequest, Overloaded, SetupError, Unsupported
from atoll.core.events import DONE, EventReader
from atoll.core.ports import Post, Reply
from atoll.core.types import Endpoint


class RemoteEngine:
    """Runs nothing here. The key is taken by name from the environment and never stored."""

    def __init__(self, card: Card, region: str, secrets: Mapping[str, str]) -> None:
        self.card = card
        self.region = region
        self._secrets = secrets

    async def start(self) -> Endpoint:
        remote = self.card.remote
        assert remote is not None
        if remote.key_env and remote.key_env not in self._secrets:
            raise SetupError(f"model '{self.card.id}' needs the environment variable {remote.key_env} with its key")
        url = remote.url.rstrip("/").removesuffix("/v1")
        region = remote.region or self.region
        return Endpoint(f"{self.card.id}@{url}", url, region, self._secrets.get(remote.key_env, ""))

    async def stop(self) -> None:
        return None

    def status(self) -> Mapping[str, Any]:
        return {"state": "ready"}


class RemoteRunner:
    """`core.ports.Runner` for servers that tell token ids as vLLM does (`return_token_ids`, `/tokenize`)."""

    def __init__(self, card: Card) -> None:
        self.card = card
        assert card.remote is not None
        self._model = card.remote.model

    async def count(self, body: dict[str, Any], post: Post) -> int:
        return len(await self._prompt_ids(body, post))

    async def answer(self, path: str, body: dict[str, Any], post: Post) -> AsyncIterator[dict[str, Any]]:
        body = {**body, "model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        before = body.pop("continue_token_ids", None) or []
        if "max_completion_tokens" not in body:
            body.setdefault("max_tokens", self.card.max_output)
        chat = "messages" in body
        if before:
            path, body = await self._continued(body, before, post)
        async for chunk in self._events(post, path, {**body, "return_token_ids": True}):
            chunk["model"] = self.card.id
            for choice in chunk.get("choices") or ():
                choice.setdefault("token_ids", None)
                if chat and before:
                    choice["delta"] = {"content": choice.pop("text", "")}
            if before and chunk.get("usage"):
                chunk["usage"] = _as_if_whole(chunk["usage"], len(before))
            yield chunk

    async def _continued(self, body: dict[str, Any], before: list[int], post: Post) -> tuple[str, dict[str, Any]]:
        if body.get("n", 1) > 1 or body.get("tools") or body.get("response_format"):
            raise Unsupported("only one plain choice goes on from its tokens", param="continue_token_ids")
        limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        prompt = [*await self._prompt_ids(body, post), *before]
        body = {k: v for k, v in body.items() if k != "messages"} | {"prompt": prompt, limit: body[limit] - len(before)}
        if limit != "max_tokens":
            body["max_tokens"] = body.pop(limit)
        return "/v1/completions", body

    async def _prompt_ids(self, body: dict[str, Any], post: Post) -> list[int]:
        asked = {"model": self._model, **{n: body[n] for n in ("messages", "prompt", "tools") if n in body}}
        reply = await self._open(post, "/tokenize", asked)
        try:
            return list(orjson.loads(await _whole(reply))["tokens"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise EngineFailed("the server's answer to /tokenize makes no sense") from None
        finally:
            reply.close()

    async def _events(self, post: Post, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        reply = await self._open(post, path, body)
        reader = EventReader()
        try:
            while data := await reply.read():
                for payload in reader.feed(data):
                    if payload == DONE:
                        return
                    chunk = orjson.loads(payload)
                    if chunk.get("error") and not chunk.get("choices"):
                        raise EngineFailed(_message(payload) or "the server reported an error")
                    yield chunk
        except orjson.JSONDecodeError:
            raise EngineFailed("the server sent an event that is not JSON") from None
        finally:
            reply.close()
        raise EngineFailed("the server's stream ended without [DONE]")

    async def _open(self, post: Post, path: str, body: dict[str, Any]) -> Reply:
        reply = await post(path, orjson.dumps(body))
        if reply.status < 400:
            return reply
        try:
            message = _message(await _whole(reply)) or f"the server answered {reply.status}"
        finally:
            reply.close()
        if reply.status in {429, 503}:
            raise Overloaded(message, retry_after=1.0)
        raise InvalidRequest(message) if reply.status in {400, 404, 413, 422} else EngineFailed(message)


def _as_if_whole(usage: dict[str, Any], before: int) -> dict[str, Any]:
    prompt, completion = usage["prompt_tokens"] - before, usage["completion_tokens"] + before
    return {**usage, "prompt_tokens": prompt, "completion_tokens": completion}


def _message(raw: bytes) -> str:
    try:
        error = orjson.loads(raw).get("error", {})
    except (orjson.JSONDecodeError, AttributeError):
        return ""
    return str(error.get("message") or "") if isinstance(error, dict) else str(error)


async def _whole(reply: Reply) -> bytes:
    parts = []
    while data := await reply.read():
        parts.append(data)
    return b"".join(parts)

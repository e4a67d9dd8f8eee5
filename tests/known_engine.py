"""A model whose every token is known: each follows from the seed and all tokens before it. It speaks what vLLM speaks
(`return_token_ids`, `/tokenize`), so that tests can compare streams token by token.

`python known_engine.py PORT WAIT` serves it, with `WAIT` seconds a token."""

from __future__ import annotations

import asyncio
import json
import sys
import zlib

import uvicorn

VOCABULARY = 50_000


def encode(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % VOCABULARY for word in text.split()]


def following(seed: int, ids: list[int]) -> int:
    state = seed & 0xFFFFFFFF
    for token in ids:
        state = zlib.crc32(token.to_bytes(4, "big"), state)
    return state % VOCABULARY


def word(token: int) -> str:
    return f" w{token}"


def prompt_ids(body: dict) -> list[int]:
    if "messages" in body:
        return encode(" ".join(f"{m['role']} {m['content']}" for m in body["messages"]))
    prompt = body["prompt"]
    return prompt if isinstance(prompt, list) else encode(prompt)


def answer(body: dict) -> list[int]:
    """The tokens of the unbroken answer."""
    ids, seed = prompt_ids(body), body.get("seed") or 0
    limit = body.get("max_completion_tokens") or body["max_tokens"]
    made: list[int] = []
    for _ in range(limit):
        made.append(following(seed, [*ids, *made]))
    return made


class KnownEngine:
    """ASGI. `wait` seconds a token."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait
        self.asked: list[dict] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if path == "/v1/models":
            await reply(send, {"object": "list", "data": [{"id": "known", "object": "model", "max_model_len": 8192}]})
        elif path == "/tokenize":
            await reply(send, {"tokens": prompt_ids(json.loads(body))})
        else:
            asked = json.loads(body)
            self.asked.append(asked)
            gone = asyncio.ensure_future(receive())
            telling = asyncio.ensure_future(self.tell(asked, path.endswith("chat/completions"), send))
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            telling.cancel()

    async def tell(self, body: dict, chat: bool, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        ids, seed = prompt_ids(body), body.get("seed") or 0
        limit = body.get("max_completion_tokens") or body["max_tokens"]
        if chat:
            await event(send, choice({"delta": {"role": "assistant", "content": ""}, "token_ids": []}))
        made: list[int] = []
        for at in range(limit):
            if self.wait:
                await asyncio.sleep(self.wait)
            token = following(seed, [*ids, *made])
            made.append(token)
            text = {"delta": {"content": word(token)}} if chat else {"text": word(token)}
            told = {**text, "token_ids": [token]} if body.get("return_token_ids") else text
            await event(send, choice(told, "length" if at == limit - 1 else None))
        usage = {"prompt_tokens": len(ids), "completion_tokens": limit, "total_tokens": len(ids) + limit}
        await event(send, {"id": "k", "created": 1, "model": "known", "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def choice(told: dict, finish: str | None = None) -> dict:
    return {
        "id": "k", "object": "chat.completion.chunk", "created": 1, "model": "known",
        "choices": [{"index": 0, "finish_reason": finish, **told}],
    }  # fmt: skip


async def event(send, value: dict) -> None:
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def reply(send, value: dict) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


if __name__ == "__main__":
    uvicorn.run(KnownEngine(float(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")

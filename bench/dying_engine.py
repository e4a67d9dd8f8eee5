"""Two engines of known tokens that die: `python bench/dying_engine.py PORT PORT`.

Whichever is asked first for a stream (named by its seed) drops the connection after some of its tokens; asked again,
either of them answers in full."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from known_engine import KnownEngine, reply

TOKENS = 60
TOKEN_S = 0.01
INFO = {"model_path": "known", "served_model_name": "known", "tokenizer_path": "known", "is_generation": True}
MODELS = {"object": "list", "data": [{"id": "known", "object": "model", "owned_by": "bench", "max_model_len": 8192}]}


def dies_after(seed: int) -> int:
    """1 to 59 tokens."""
    return 1 + seed * 23 % (TOKENS - 1)


class DyingEngine(KnownEngine):
    """`cut` are the streams that were dropped once; it is shared by both engines."""

    def __init__(self, cut: set[int]) -> None:
        super().__init__(TOKEN_S)
        self.cut = cut

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            told = {"/v1/models": MODELS, "/cut": {"cut": sorted(self.cut)}}
            await reply(send, told.get(scope["path"], INFO))
        else:
            await super().__call__(scope, receive, send)

    async def tell(self, body: dict, chat: bool, send: Callable) -> None:
        seed, sent = body["seed"], 0

        async def counted(message: dict) -> None:
            nonlocal sent
            await send(message)
            sent += b'"content": " w' in message.get("body", b"")
            if sent == dies_after(seed) and seed not in self.cut:
                self.cut.add(seed)
                raise ConnectionAbortedError

        await super().tell({"max_tokens": TOKENS, **body}, chat, counted)


async def main(ports: list[int]) -> None:
    cut: set[int] = set()
    configs = [uvicorn.Config(DyingEngine(cut), port=port, log_level="critical") for port in ports]
    await asyncio.gather(*(uvicorn.Server(config).serve() for config in configs))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(json.dumps({"error": "two ports are needed"}))
    asyncio.run(main([int(port) for port in sys.argv[1:]]))

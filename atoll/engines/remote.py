"""An OpenAI-compatible endpoint elsewhere: vLLM, SGLang, Ray Serve LLM, another Atoll, a paid provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import SetupError
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
        return Endpoint(f"{self.card.id}@{url}", url, self.region, self._secrets.get(remote.key_env, ""))

    async def stop(self) -> None:
        return None

    def status(self) -> Mapping[str, Any]:
        return {"state": "ready"}

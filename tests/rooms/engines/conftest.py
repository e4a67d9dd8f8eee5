"""Real media models: one worker for the whole run, its weights from the shared cache (or fetched into it)."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

import atoll
from atoll.core.cards import Card, parse_card
from atoll.engines.media.engine import Config, MediaEngine


@pytest.fixture(scope="session")
def weights_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ATOLL_WEIGHTS") or Path(home) / "atoll" / "weights")


@pytest.fixture(scope="session")
def media_cards() -> dict[str, Card]:
    files = sorted((Path(atoll.__file__).parent / "engines" / "cards").glob("*.toml"))
    cards = [parse_card(tomllib.loads(file.read_text()), file.name) for file in files]
    return {card.id: card for card in cards if card.engine == "media"}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def media_endpoint(media_cards, weights_cache):
    engine = MediaEngine(list(media_cards.values()), Config(cache=weights_cache))
    try:
        yield await engine.start()
    finally:
        await engine.stop()


@pytest_asyncio.fixture
async def media(media_endpoint):
    """An HTTP client of the worker, with its token."""
    headers = {"authorization": f"Bearer {media_endpoint.token}"}
    async with httpx.AsyncClient(base_url=media_endpoint.url, headers=headers, timeout=120, trust_env=False) as client:
        yield client

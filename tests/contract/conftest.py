"""Every kind of store, PostgreSQL from a real server that lives for the test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.store import open_store


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The URL of an empty database of the kind asked for."""

    def make(kind: str) -> str:
        if kind == "postgresql":
            return request.getfixturevalue("postgres_server").new_database()
        return f"sqlite:///{tmp_path}/atoll.db" if kind == "sqlite" else "memory://"

    return make


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, new_url: Callable[[str], str]):
    opened = await open_store(new_url(request.param))
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def durable_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    return new_url(request.param)



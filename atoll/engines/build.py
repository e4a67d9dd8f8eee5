"""How a card becomes a running engine. One entry an engine kind; heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.core.cards import Card
from atoll.core.ports import Engine, Runner
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteEngine, RemoteRunner

if TYPE_CHECKING:
    from atoll.engines.library import Place

QUEUE = 64


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an engine tells its library: it answers (again), it was lost and why, how far a download is."""

    ready: Callable[[Endpoint], None]
    lost: Callable[[str], None]
    progress: Callable[[str, int, int], None]


async def _llamacpp(group: tuple[Card, ...], place: Place, hooks: Hooks) -> Engine:
    from atoll.engines.llamacpp.engine import build_engine

    return await build_engine(group[0], place, hooks)


async def _media(group: tuple[Card, ...], place: Place, hooks: Hooks) -> Engine:
    from atoll.engines.media.engine import build_engine

    return await build_engine(group, place, hooks)


async def _remote(group: tuple[Card, ...], place: Place, hooks: Hooks) -> Engine:
    return RemoteEngine(group[0], place.region, place.secrets)


BUILDERS: dict[str, Callable[[tuple[Card, ...], Place, Hooks], Awaitable[Engine]]] = {
    "llamacpp": _llamacpp,
    "media": _media,
    "remote": _remote,
}


async def engine(group: tuple[Card, ...], place: Place, hooks: Hooks) -> Engine:
    return await BUILDERS[group[0].engine](group, place, hooks)


def groups(cards: Sequence[Card]) -> list[tuple[Card, ...]]:
    """Cards that share one engine process: all media models together, every other model alone, chat first."""
    media = tuple(card for card in cards if card.engine == "media")
    alone = [(card,) for card in cards if card.engine not in {"media", "cascade"}]
    return [*sorted(alone, key=lambda group: group[0].task != "chat"), *([media] if media else [])]


def runner(card: Card) -> Runner | None:
    if card.engine == "llamacpp":
        from atoll.engines.llamacpp.runner import LlamaRunner

        return LlamaRunner(card)
    return RemoteRunner(card) if card.engine == "remote" and card.resumes else None


def limit(card: Card, slots: int) -> int:
    """Requests an endpoint takes at once, waiting ones included; 0 for engines with a queue of their own."""
    return slots + QUEUE if card.engine == "llamacpp" else 0

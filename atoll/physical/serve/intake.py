"""Puts what the stage `serve` has made into service, also what was made while no cloud ran."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from atoll.core.errors import AtollError
from atoll.core.types import Key
from atoll.physical.serve.record import write_whole
from atoll.physical.serve.service import Service

log = logging.getLogger("atoll.physical")

LOOK_S = 2.0
JOBS = Key("jobs", "stage serve", "admin", "", "")


class Intake:
    """`artifacts` has a file `<digest>.json` for every artifact, `find` tells its folder. What was looked at before is
    not looked at again, so that a rollback stays one."""

    def __init__(self, service: Service, artifacts: Path, find: Callable[[str], Path]):
        self._service, self._artifacts, self._find = service, artifacts, find
        self._mark = service.records.root / "intake.json"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for digest, at in await asyncio.to_thread(self._new):
                await self._take(digest)
                await asyncio.to_thread(self._remember, at)
            await asyncio.sleep(LOOK_S)

    async def _take(self, digest: str) -> None:
        try:
            told = json.loads((self._find(digest) / "service.json").read_bytes())
            await self._service.promote(told["name"], digest, "", JOBS)
        except FileNotFoundError:
            pass  # an artifact of another kind
        except (AtollError, OSError, ValueError, KeyError) as error:
            log.warning("what %s made is not put into service: %s", digest[:12], error)

    def _new(self) -> list[tuple[str, int]]:
        """Artifacts since the last look, oldest first, with their times in nanoseconds."""
        since = json.loads(self._mark.read_bytes())["at"] if self._mark.exists() else 0
        if not self._artifacts.is_dir():
            return []
        with os.scandir(self._artifacts) as entries:
            made = [(e.stat().st_mtime_ns, e.name.removesuffix(".json")) for e in entries if e.name.endswith(".json")]
        return [(name, at) for at, name in sorted(made) if at > since]

    def _remember(self, at: int) -> None:
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._mark, json.dumps({"at": at}).encode())

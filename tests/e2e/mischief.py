"""Regions of a known cloud that break at random while many clients stream."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from known_cloud import Told, asked, drill, stream
from processes import children_of

EU = ("eu-central-1", "x-fr-1", "x-nl-1")
OTHERS = (
    "eu-west-1", "us-east-1", "us-west-1", "ap-southeast-1", "ap-northeast-1", "cn-hongkong", "me-east-1",
)  # fmt: skip
TEN = (*EU, *OTHERS)


def process_of(cloud: int, region: str) -> int | None:
    """The process that serves a region for the cloud of process `cloud`; None while it is being started again."""
    for pid in children_of(cloud):
        with suppress(OSError):
            if f"ATOLL_REGION={region}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    return None


class Mischief:
    """Breaks regions at random: `kill -9`, SIGSTOP for a while, a partition. At most `most` are broken at once."""

    def __init__(self, http: httpx.AsyncClient, cloud: int, regions: Sequence[str], seed: int, most: int = 5) -> None:
        self.http, self.cloud, self.regions, self.most = http, cloud, regions, most
        self.dice = random.Random(seed)
        self.done: dict[str, int] = {}
        self._broken: dict[str, float] = {}

    async def run(self, seconds: float, every: float = 1.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = time.monotonic()
            self._broken = {id: end for id, end in self._broken.items() if end > now}
            if len(self._broken) < self.most:
                victim = self.dice.choice([id for id in self.regions if id not in self._broken])
                await self._strike(victim, self.dice.choice(["kill", "stop", "partition"]))
            await asyncio.sleep(self.dice.uniform(0.5, 1.5) * every)

    async def _strike(self, id: str, kind: str) -> None:
        pid, lasts = process_of(self.cloud, id), self.dice.uniform(1, 5)
        if pid is None:
            return
        if kind == "partition" and await drill(self.http, id, kind, lasts) != 202:
            return
        with suppress(ProcessLookupError):
            if kind == "kill":
                os.kill(pid, signal.SIGKILL)
                lasts = 5.0
            if kind == "stop":
                os.kill(pid, signal.SIGSTOP)
                asyncio.get_running_loop().call_later(lasts, _go_on, pid)
        self._broken[id] = time.monotonic() + lasts
        self.done[kind] = self.done.get(kind, 0) + 1


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def stalls(tolds: Sequence[Told], ledger: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How long streams that were broken kept their clients waiting for the next token, in seconds."""
    broken = {row["id"] for row in ledger if row["grade"]}
    seen = sorted(told.longest for told in tolds if told.id in broken)
    if len(seen) < 2:
        return {"streams": len(tolds), "broken": len(seen)}
    cuts = statistics.quantiles(seen, n=100, method="inclusive")
    return {
        "streams": len(tolds), "broken": len(seen), "stall_p50_s": round(cuts[49], 3),
        "stall_p99_s": round(cuts[98], 3), "stall_max_s": round(seen[-1], 3),
    }  # fmt: skip


@asynccontextmanager
async def failing(cloud: int, crashing: Sequence[str], frozen: Sequence[str]) -> AsyncIterator[None]:
    """Meanwhile some regions are killed as often as they come back, and others are stopped."""

    async def crash() -> None:
        while True:
            for id in crashing:
                if pid := process_of(cloud, id):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)

    stopped = [pid for id in frozen if (pid := process_of(cloud, id))]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    crashes = asyncio.create_task(crash())
    try:
        yield
    finally:
        crashes.cancel()
        for pid in stopped:
            _go_on(pid)


@dataclass
class Load:
    """`clients` streams at a time, one after the other, of `tokens` (least, most) each; no two are alike."""

    http: httpx.AsyncClient
    clients: int = 50
    tokens: tuple[int, int] = (40, 100)
    headers: Sequence[dict[str, str]] = ({},)
    numbers: int = 0

    async def run(self, seconds: float) -> list[tuple[Told, dict[str, str]]]:
        """What each client got, and the headers that it sent."""
        until, dice, seen = time.monotonic() + seconds, random.Random(1), []

        async def one(headers: dict[str, str]) -> None:
            while time.monotonic() < until:
                self.numbers += 1
                told = await stream(self.http, asked(self.numbers, dice.randint(*self.tokens)), headers)
                seen.append((told, headers))

        await asyncio.gather(*(one(self.headers[n % len(self.headers)]) for n in range(self.clients)))
        return seen

"""The gateway's hold on a region elsewhere: in a process of its own, or on another machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from atoll.core.cards import parse_card
from atoll.core.errors import DeadlineExceeded, EngineFailed, SetupError
from atoll.core.types import Endpoint
from atoll.regions.fleet import Fleet
from atoll.regions.upstream import Pool, Timeouts

log = logging.getLogger("atoll.regions")

EVERY = 1.0
MISSES = 3
PROBE = Timeouts(connect=2.0, head=2.0, idle=2.0)
MAX_ANSWER = 4 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where a region's station listens, and how to be let in. `tls` proves both sides to each other."""

    region: str
    url: str
    token: str
    tls: ssl.SSLContext | None = None


class Link:
    """Probes a station once a second and keeps the fleet's view of it true: its models join when they are ready, and
    leave when they are not, or when the station was silent `MISSES` times in a row."""

    def __init__(self, fleet: Fleet, address: Address) -> None:
        self.fleet = fleet
        self.address = address
        self.load: dict[str, Any] = {}
        self.missed = 0
        self.authorities: Mapping[str, str] = {}
        self._joined: set[str] = set()
        self._pool = Pool(Endpoint(address.region, address.url, address.region, address.token), PROBE, address.tls)
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return bool(self.load) and self.missed < MISSES

    async def open(self) -> None:
        """Returns after the first look, whatever it found."""
        await self._look()
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.address.region}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._part(set(self._joined))
        await self._pool.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self._look()

    async def _look(self) -> None:
        try:
            await self._probe()
        except (EngineFailed, DeadlineExceeded) as error:
            self.missed += 1
            if self.missed == MISSES:
                log.warning("region %s does not answer: %s", self.address.region, error.message)
                self._part(set(self._joined))

    async def _probe(self) -> None:
        self.load = await self._get("/load")
        if self.missed:
            for name in self._joined:
                self.fleet.heal(name, f"{name}@{self.address.region}")
        self.missed = 0
        ready = {name for name, state in self.load.get("models", {}).items() if state == "ready"}
        self._part(self._joined - ready)
        if new := ready - self._joined:
            await self._meet(new)
        if self.address.tls is not None:
            self._count()
            await self._introduce()

    def _count(self) -> None:
        """What other gateways sent there counts too."""
        running, waiting = self.load.get("running", {}), self.load.get("waiting", {})
        for name in self._joined:
            self.fleet.report(name, f"{name}@{self.address.region}", running.get(name, 0), waiting.get(name, 0))

    async def _introduce(self) -> None:
        """Have it let in the gateways of all `authorities` (PEM, by fingerprint)."""
        if self.authorities and set(self.load.get("trusts", ())) != self.authorities.keys():
            await self._get("/gateways", orjson.dumps({"authorities": list(self.authorities.values())}))

    async def _meet(self, names: set[str]) -> None:
        """Models that became ready; the fleet learns of those that only this region has."""
        told = await self._get("/cards")
        for name in sorted(names & told.keys()):
            with contextlib.suppress(KeyError):
                self._join(name, told[name])

    def _join(self, name: str, told: dict[str, Any]) -> None:
        digest = str(told["digest"])
        if name not in self.fleet.cards():
            try:
                self.fleet.offer(parse_card(told["card"], f"region {self.address.region}"))
            except SetupError as error:
                log.error("a model of region %s cannot be offered: %s", self.address.region, error.message)
                return
        a = self.address
        endpoint = Endpoint(f"{name}@{a.region}", f"{a.url}/m/{name}", a.region, a.token, station=True, digest=digest)
        self.fleet.join(name, endpoint, tls=a.tls)
        self._joined.add(name)

    def _part(self, names: set[str]) -> None:
        for name in names:
            self.fleet.leave(name, f"{name}@{self.address.region}")
        self._joined -= names

    async def fault(self, kind: str, seconds: float) -> None:
        """Have the station fail for a while."""
        await self._get("/fault", orjson.dumps({"kind": kind, "seconds": seconds}))

    async def _get(self, path: str, body: bytes = b"{}") -> dict[str, Any]:
        connection = await self._pool.request(path, body)
        try:
            body = b""
            while data := await connection.read():
                body += data
                if len(body) > MAX_ANSWER:
                    raise EngineFailed("the station says too much")
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise EngineFailed("the station does not speak JSON") from None
        finally:
            connection.release()
        if connection.status != 200 or not isinstance(value, dict):
            raise EngineFailed(f"the station answered {connection.status}")
        return value

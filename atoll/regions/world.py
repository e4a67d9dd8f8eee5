"""The regions of a running cloud: which there are, in what state, and how they are opened, drained, closed and tried.

A region is served by a station in this process, by a process of its own on this machine (`isolated`), or by another
machine that joined. The fleet is told what may be used; the catalogue says where it stands.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from atoll.core.errors import AtollError, Conflict, DeadlineExceeded, EngineFailed, InvalidRequest, NotFound
from atoll.core.places import Client, Region, RegionStatus, next_statuses
from atoll.core.ports import Places
from atoll.core.route import Candidate, Decision, Request, explain
from atoll.regions.faults import DRILLS
from atoll.regions.fleet import Fleet, joules
from atoll.regions.home import Home
from atoll.regions.link import Address, Link
from atoll.regions.rtt import RoundTrips

log = logging.getLogger("atoll.regions")

DRAIN_SECONDS = 60.0
MAX_DRILL_SECONDS = 600.0
REVIEW_EVERY = 5.0


class Members(Protocol):
    """The machines that joined (`regions.join.Joined`)."""

    async def addresses(self) -> dict[str, Address]: ...

    async def authorities(self) -> Mapping[str, str]: ...

    async def part(self, region: str) -> None: ...


class Process(Protocol):
    """A region in a process of its own: `engines.process.Child`, without naming it."""

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> str: ...

    async def stop(self) -> None: ...

    def kill(self) -> None: ...


Spawn = Callable[[str, Callable[[str], None]], tuple[Process, str]]
"""(region id, what to call with its URL each time it is up) -> the process, and the token that it takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which regions have a process of their own, and whether the catalogue's latency is emulated."""

    isolate: frozenset[str] = frozenset()
    wan: bool = False


class World:
    """`core.ports.Regions`. What operators decide is kept in `decisions`, if there are any, which other gateways may
    share: each follows what the others write there."""

    def __init__(self, catalogue: Iterable[Region], home: Home, fleet: Fleet, plan: Plan, spawn: Spawn) -> None:
        self.regions = {region.id: region for region in catalogue}
        self.home = home
        self.fleet = fleet
        self.plan = plan
        self.rtt: Mapping[str, float] = {}
        self.trips = RoundTrips(self.regions.values())
        self.decisions: Places | None = None
        self.members: Members | None = None
        self.links: dict[str, Link] = {}
        self.joined: dict[str, Address] = {}
        self._spawn = spawn
        self._processes: dict[str, Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._drills: dict[str, tuple[str, float]] = {}
        self._changing: set[str] = set()
        self._decided: dict[str, float] = {}

    async def start(self, rtt: Mapping[str, float]) -> None:
        """Serve every region that is live. `rtt` is seconds from the gateway."""
        self.rtt = rtt
        for id, (status, at) in (await self._read()).items():
            if id in self.regions:
                self.regions[id], self._decided[id] = replace(self.regions[id], status=status), at
        for region in self.regions.values():
            rest = region.carbon, rtt.get(region.id, 0.0), region.electricity
            self.fleet.view.region(region.id, region.status, *rest)
        await asyncio.gather(*(self._serve(r.id) for r in self.regions.values() if r.status in {"live", "draining"}))
        self._begin(self._review())

    async def _review(self) -> None:
        while True:
            await asyncio.sleep(REVIEW_EVERY)
            self.fleet.review()
            try:
                await self._follow()
            except AtollError as error:
                log.warning("what was decided about regions could not be read: %s", error.message)

    async def _follow(self) -> None:
        """Begin what was decided at other gateways, and have the regions that joined let those in."""
        for id, (status, at) in (await self._read()).items():
            if id in self.regions and id not in self._changing and at > self._decided.get(id, 0.0):
                self._changing.add(id)
                self._begin(self._adopt(id, status, at))
        if self.members is not None and self.joined:
            authorities = await self.members.authorities()
            for id in self.joined.keys() & self.links.keys():
                self.links[id].authorities = authorities

    async def _read(self) -> Mapping[str, tuple[RegionStatus, float]]:
        """Decisions first: who sees that a joined region was opened also sees that it joined."""
        if self.decisions is None:
            return {}
        decided = await self.decisions.all()
        if self.members is not None:
            self.joined = await self.members.addresses()
        return decided

    async def _adopt(self, id: str, status: RegionStatus, at: float) -> None:
        """In one step, also where there were several. What fails is tried again at the next look."""
        try:
            await self._ready(id, status)
            await self._become(id, status, at)
        except (AtollError, OSError) as error:
            log.warning("region %s could not become %s, as was decided: %s", id, status, error)
        finally:
            self._changing.discard(id)

    async def _serve(self, id: str) -> None:
        if id in self.joined:
            await self._connect(self.joined[id])
            return
        if id not in self.plan.isolate:
            await self.home.open([id])
            if self.plan.wan:
                self.home.stations[id].faults.delay = self.rtt.get(id, 0.0) / 2
            return

        def up(url: str) -> None:
            self._begin(self._connect(Address(id, url, token)))

        process, token = self._spawn(id, up)
        self._processes[id] = process
        await self._connect(Address(id, await process.start(), token))

    async def _connect(self, address: Address) -> None:
        if (old := self.links.pop(address.region, None)) is not None:
            await old.close()
        link = self.links[address.region] = Link(self.fleet, address)
        await link.open()
        if self.plan.wan and address.region in self._processes:
            await link.fault("delay", self.rtt.get(address.region, 0.0) / 2)

    def region(self, id: str) -> Region:
        """Raises NotFound."""
        if id not in self.regions:
            raise NotFound(f"there is no region '{id}'; see 'atoll regions list'", param="region")
        return self.regions[id]

    async def admit(self, address: Address) -> None:
        """A region elsewhere takes its place in the fleet."""
        id = self.region(address.region).id
        await self._yield(id)
        self.joined[id] = address
        await self._connect(address)
        await self._become(id, "live", await self._decide(id, "live"))

    async def part(self, id: str) -> Region:
        """The machine that joined as a region has left for good: the region is closed, and may be opened here. Raises
        NotFound or Conflict."""
        self.region(id)
        if self.members is None or id not in self.joined:
            raise Conflict(f"no machine joined as region '{id}'", param="region")
        if id in self._changing:
            raise Conflict(f"region '{id}' is being changed already", param="status")
        self._changing.add(id)
        try:
            await self.members.part(id)
            del self.joined[id]
            await self._become(id, "retired", await self._decide(id, "retired"))
        finally:
            self._changing.discard(id)
        return self.regions[id]

    async def change(self, id: str, status: RegionStatus) -> Region:
        """Open, drain or close a region while requests flow. Closing waits for what runs there, for a minute; streams
        that take longer go on elsewhere. Raises NotFound, or Conflict for a step that is not allowed."""
        region = self.region(id)
        if status not in next_statuses(region.status):
            allowed = ", ".join(next_statuses(region.status)) or "none"
            raise Conflict(f"region '{id}' is {region.status}; from there it can become: {allowed}", param="status")
        if id in self._changing:
            raise Conflict(f"region '{id}' is being changed already", param="status")
        self._changing.add(id)
        try:
            await self._ready(id, status)
            await self._become(id, status, await self._decide(id, status))
        finally:
            self._changing.discard(id)
        return self.regions[id]

    async def _decide(self, id: str, status: RegionStatus) -> float:
        """Write it down for restarts and other gateways; when it was decided, which is after what is known of here."""
        at = max(time.time(), self._decided.get(id, 0.0) + 0.001)
        if self.decisions is not None:
            await self.decisions.put(id, status, at)
        return at

    async def _ready(self, id: str, status: RegionStatus) -> None:
        """Raises what kept a region from being served; nothing of it is left then."""
        link = self.links.get(id)
        if self.joined.get(id) is not (link.address if link and id not in self._processes else None):
            await self._yield(id)
        if status == "live" and id not in self.home.stations and id not in self.links:
            try:
                await self._serve(id)
            except (AtollError, OSError):
                await self._yield(id)
                raise

    async def _become(self, id: str, status: RegionStatus, at: float) -> None:
        self._decided[id] = at
        self.regions[id] = replace(self.regions[id], status=status)
        self.fleet.view.region(id, status)
        if status not in {"live", "draining"}:
            await self._retire(id)

    async def _retire(self, id: str) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._busy(id) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if self.regions[id].status not in {"live", "draining"}:  # a machine may have joined in its place meanwhile
            await self._yield(id)

    async def _yield(self, id: str) -> None:
        """Serve it no longer; what runs goes on until it is done, or elsewhere."""
        if (link := self.links.pop(id, None)) is not None:
            await link.close()
        if (process := self._processes.pop(id, None)) is not None:
            await process.stop()
        if id in self.home.stations:
            await self.home.shut(id)

    def _busy(self, id: str) -> bool:
        return any(s.outstanding for card in self.fleet.cards() for s in self.fleet.members(card) if s.region == id)

    async def drill(self, id: str, kind: str, seconds: float) -> None:
        """Break a region for a while: kill, stall, slow or partition. Raises InvalidRequest, NotFound or Conflict."""
        self.region(id)
        if kind not in DRILLS:
            raise InvalidRequest(f"a drill is one of {', '.join(DRILLS)}", param="kind")
        if not 0 < seconds <= MAX_DRILL_SECONDS:
            raise InvalidRequest(f"a drill lasts up to {MAX_DRILL_SECONDS:.0f} seconds", param="seconds")
        if id in self._drills:
            raise Conflict(f"region '{id}' is being drilled already", param="region")
        station, process, link = self.home.stations.get(id), self._processes.get(id), self.links.get(id)
        if station is None and link is None:
            raise Conflict(f"region '{id}' does not run", param="region")
        self._drills[id] = (kind, time.time() + seconds)
        if kind == "kill" and process is not None:
            process.kill()
            self._begin(self._restore(id, seconds, None))
        elif kind == "kill" and station is None:
            del self._drills[id]
            raise Conflict(f"region '{id}' is on another machine; kill it there", param="region")
        elif kind == "kill" and station is not None:
            await station.kill()
            self._begin(self._restore(id, seconds, self.home.revive))
        else:
            if station is not None:
                station.fault(kind, seconds)
            elif link is not None:
                try:
                    await link.fault(kind, seconds)
                except (EngineFailed, DeadlineExceeded) as error:
                    del self._drills[id]
                    raise Conflict(f"region '{id}' does not take a drill: {error.message}", param="region") from None
            self._begin(self._restore(id, seconds, None))

    async def _restore(self, id: str, seconds: float, revive: Any) -> None:
        await asyncio.sleep(seconds)
        self._drills.pop(id, None)
        if revive is not None and id in self.home.stations:
            await revive(id)

    def _begin(self, doing: Any) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def rows(self) -> list[dict[str, Any]]:
        """One a region, with what is known of it now. Load counts this gateway's requests."""
        spots: dict[str, list[Any]] = {}
        for card in self.fleet.cards():
            for spot in self.fleet.members(card):
                spots.setdefault(spot.region, []).append(spot)
        return [self._row(region, spots.get(region.id, [])) for region in self.regions.values()]

    def _row(self, region: Region, spots: list[Any]) -> dict[str, Any]:
        station, link = self.home.stations.get(region.id), self.links.get(region.id)
        kind = "process" if region.id in self._processes else "joined" if link else "shared" if station else ""
        load = station.load() if station else link.load if link else {}
        drill = self._drills.get(region.id)
        alive = station.listening and not station.faults.silent if station else bool(link and link.alive)
        return {
            **{name: value for name, value in asdict(region).items() if name != "sources"},
            "zones": list(region.zones),
            "served_by": kind,
            "alive": alive,
            "rtt_ms": round(self.rtt.get(region.id, 0.0) * 1000, 1),
            "wan_emulated": self.plan.wan and kind in {"shared", "process"},
            "running": sum(s.outstanding for s in spots),
            "waiting": sum((load.get("waiting") or {}).values()),
            "healthy": sum(not s.health.opened for s in spots),
            "endpoints": len(spots),
            "drill": {"kind": drill[0], "until": drill[1]} if drill else None,
        }

    def settings(self) -> dict[str, Any]:
        return {"home": self.home.region, "wan": self.plan.wan, "objective": self.fleet.objective.name}

    def decisions_of(self, request_id: str, key_id: str | None) -> list[dict[str, Any]]:
        made = self.fleet.decisions.get(request_id, [])
        mine = [m for m in made if key_id is None or m.request.key == key_id]
        return [_told(m.at, m.decision, m.decision.candidates()) for m in mine]

    def weigh(self, request: Request, client: Client | None = None) -> dict[str, Any]:
        now, fleet, card = time.time(), self.fleet, self.fleet.resolve(request.model)
        if client is not None:
            lat, lon, country = client
            rtts = {id: self.trips.from_client(lat, lon, id, country).seconds for id in self.regions}
            request = request._replace(rtts=rtts)
        request = request._replace(overlong=fleet.overlong(request))
        decision, candidates = explain(request, fleet.view, fleet.memory, fleet.objective, random.Random(), now)
        energy = {"joules_per_token": joules(card), "joules_estimated": not card.joules}
        return {**_told(now, decision, candidates), **energy}

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for link in self.links.values():
            await link.close()
        await asyncio.gather(*(process.stop() for process in self._processes.values()))


def _told(at: float, decision: Decision, candidates: list[Candidate]) -> dict[str, Any]:
    return {
        "at": at,
        "policy": decision.policy,
        "chosen": decision.chosen,
        "region": decision.region,
        "reason": decision.reason,
        "candidates": [asdict(candidate) for candidate in candidates],
    }

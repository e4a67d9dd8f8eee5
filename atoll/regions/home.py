"""Regions that share this process: one set of engines, a station each, and the fleet that is told about them."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.core.cards import Card
from atoll.core.ports import Runner
from atoll.core.types import Endpoint
from atoll.regions.fleet import Fleet
from atoll.regions.site import Site
from atoll.regions.station import Station


class Home:
    """`core.ports.Roster`: engines report here. A server elsewhere is an endpoint of the fleet by itself; an engine of
    this machine is one of every region that has a station here."""

    def __init__(self, fleet: Fleet, site: Site, region: str, slots: int) -> None:
        self.fleet = fleet
        self.site = site
        self.region = region
        self.slots = slots
        self.stations: dict[str, Station] = {}
        self.tiers = fleet.tiers

    async def open(self, regions: Iterable[str]) -> None:
        """Begin to serve these regions here."""
        for region in regions:
            station = Station(region, self.site, self.slots)
            await station.listen()
            self.stations[region] = station
            for name, seat in self.site.seats.items():
                if seat.pools and station in self._stations(name):
                    self.fleet.join(name, station.endpoint(name))

    async def shut(self, region: str) -> None:
        """Take a region out of service; what runs there goes on until it is done."""
        station = self.stations.pop(region)
        for name in self.site.seats:
            self.fleet.leave(name, station.endpoint(name).name)
        await station.close()

    async def revive(self, region: str) -> None:
        """A station that was killed listens again."""
        await self.stations[region].revive()
        for name in self.site.seats:
            self.fleet.heal(name, self.stations[region].endpoint(name).name)

    def offer(self, card: Card, runner: Runner | None = None) -> None:
        self.fleet.offer(card)
        if card.engine != "cascade" and (card.engine != "remote" or runner is not None):
            self.site.offer(card, runner)

    async def retire(self, card_id: str) -> None:
        await self.fleet.retire(card_id)
        await self.site.retire(card_id)

    def join(self, card_id: str, endpoint: Endpoint, limit: int = 0) -> None:
        if card_id not in self.site.seats:
            self.fleet.join(card_id, endpoint, limit)
            return
        self.site.join(card_id, endpoint, limit)
        for station in self._stations(card_id):
            self.fleet.join(card_id, station.endpoint(card_id))

    def leave(self, card_id: str, name: str) -> None:
        if card_id not in self.site.seats:
            self.fleet.leave(card_id, name)
            return
        self.site.leave(card_id, name)
        for station in self._stations(card_id):
            self.fleet.leave(card_id, station.endpoint(card_id).name)

    def fail(self, card_id: str, reason: str) -> None:
        self.fleet.fail(card_id, reason)
        if card_id in self.site.seats:
            self.site.fail(card_id, reason)

    def _stations(self, card_id: str) -> list[Station]:
        """An engine of this machine serves every region here; a server elsewhere only the one that it stands in."""
        remote = self.site.seat(card_id).card.remote
        if remote is None:
            return list(self.stations.values())
        return [s for s in self.stations.values() if s.region == (remote.region or self.region)]

    async def close(self) -> None:
        for station in self.stations.values():
            await station.close()
        await self.site.close()

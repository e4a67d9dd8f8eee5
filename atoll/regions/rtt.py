"""Round-trip times between regions, and from any place to a region.

Measured where both ends have a measured place nearby: within 100 km and in the same country, so that Shenzhen does not
pass for Hong Kong. Fitted to the distance elsewhere (core/distance.py). The measured matrix is Microsoft's, between
Azure's regions; azure_rtt.json tells its source and licence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from atoll.core.distance import FITTED_ERROR, border, fitted, great_circle
from atoll.core.errors import NotFound
from atoll.core.places import Region

FILE = Path(__file__).parent / "azure_rtt.json"
NEARBY_KM = 100.0
ROUNDING_MS = 0.5


@dataclass(frozen=True, slots=True)
class Rtt:
    """Seconds there and back. `error` is relative: for a fitted time half of the measured pairs lie within it; for a
    measured one it is half the difference between the two directions, and no less than the rounding to 1 ms."""

    seconds: float
    kind: Literal["measured", "fitted"]
    error: float


@dataclass(frozen=True, slots=True)
class Place:
    name: str
    country: str
    lat: float
    lon: float


@dataclass(frozen=True)
class Matrix:
    """Measured medians in milliseconds; `ms[i][j]` from `places[i]` to `places[j]`, None where it was not measured."""

    places: tuple[Place, ...]
    ms: tuple[tuple[float | None, ...], ...]

    @cached_property
    def measured(self) -> dict[tuple[str, str], Rtt]:
        """Both directions alike: their mean."""
        return {pair: rtt for i, j, rtt in self.pairs() for pair in ((i.name, j.name), (j.name, i.name))}

    def pairs(self) -> Iterator[tuple[Place, Place, Rtt]]:
        """Each measured pair once."""
        for i, a in enumerate(self.places):
            for j, b in enumerate(self.places[:i]):
                told = [ms for ms in (self.ms[i][j], self.ms[j][i]) if ms is not None]
                if told:
                    mean = sum(told) / len(told)
                    error = max(ROUNDING_MS, (max(told) - min(told)) / 2) / mean
                    yield a, b, Rtt(mean / 1000, "measured", error)

    def nearest(self, lat: float, lon: float, country: str) -> Place | None:
        """The measured place within 100 km, in the country if one is told."""
        near = [
            (km, place)
            for place in self.places
            if country in ("", place.country) and (km := great_circle(lat, lon, place.lat, place.lon)) <= NEARBY_KM
        ]
        return min(near, key=lambda item: item[0])[1] if near else None


def read_matrix(path: Path = FILE) -> Matrix:
    table = json.loads(path.read_text("utf-8"))
    return Matrix(tuple(Place(*row) for row in table["places"]), tuple(tuple(row) for row in table["ms"]))


class RoundTrips:
    """Between all pairs of `regions`, worked out once."""

    def __init__(self, regions: Iterable[Region], matrix: Matrix | None = None) -> None:
        self._matrix = matrix or read_matrix()
        self._regions = {region.id: region for region in regions}
        self._places = {r.id: self._matrix.nearest(r.lat, r.lon, r.country) for r in self._regions.values()}
        here = self._regions.values()
        self._between = {
            (a.id, b.id): self._rtt(a.lat, a.lon, a.country, self._places[a.id], b) for a in here for b in here
        }

    def between(self, a: str, b: str) -> Rtt:
        """By region ids. Raises NotFound."""
        try:
            return self._between[a, b]
        except KeyError:
            raise self._unknown(a if a not in self._regions else b) from None

    def from_client(self, lat: float, lon: float, region_id: str, country: str = "") -> Rtt:
        """From a place in degrees; the way from the client's device to the network of its city is not in it.
        `country` (ISO), where known, is for the border of mainland China. Raises NotFound."""
        if region_id not in self._regions:
            raise self._unknown(region_id)
        return self._rtt(lat, lon, country, self._matrix.nearest(lat, lon, country), self._regions[region_id])

    def _rtt(self, lat: float, lon: float, country: str, place: Place | None, region: Region) -> Rtt:
        there = self._places[region.id]
        if place and there and (found := self._matrix.measured.get((place.name, there.name))):
            return found
        seconds = fitted(great_circle(lat, lon, region.lat, region.lon)) + border(country, region.country)
        return Rtt(seconds, "fitted", FITTED_ERROR)

    def _unknown(self, id: str) -> NotFound:
        known = ", ".join(self._regions)
        return NotFound(f"there is no region '{id}' in the catalogue; there are: {known}", param="region")

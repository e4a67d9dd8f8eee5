"""Regions, and the rules of where a request may be processed and what may be stored where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

RegionStatus = Literal["announced", "building", "live", "draining", "retired"]
Unavailable = Literal["reject", "queue"]

INTRODUCED_S = 30 * 86400.0
"""How long the authority of a gateway is remembered after it was introduced last."""


@dataclass(frozen=True, slots=True)
class Region:
    """A place where models run. `lat` and `lon` in degrees; `carbon` in g CO2 per kWh; `electricity` in US dollars per
    kWh. `zones` are the zone sets that rules name (`eu`, `cn`, `global-ex-cn`); `jurisdiction` is an ISO country code.
    `sources` tells by field name where a value is from; a source that begins with "estimate" marks an estimate."""

    id: str
    city: str
    country: str
    lat: float
    lon: float
    status: RegionStatus
    jurisdiction: str = ""
    zones: tuple[str, ...] = ()
    availability_zones: int = 1
    carbon: float = 0.0
    electricity: float = 0.0
    sources: tuple[tuple[str, str], ...] = ()


class Machine(NamedTuple):
    """A machine that joined as a region: where it listens, and the authority (a certificate in PEM) that vouches for
    it."""

    url: str
    authority: str


class Client(NamedTuple):
    """Where a client is, in degrees; `country` (ISO) where it is known."""

    lat: float
    lon: float
    country: str = ""


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a request may be processed, and where what is kept of it may be stored: region ids, zone sets or
    jurisdictions; empty means anywhere. `on_unavailable`: refuse at once, or wait until the deadline."""

    process_in: tuple[str, ...] = ()
    store_in: tuple[str, ...] = ()
    on_unavailable: Unavailable = "reject"


STEPS: dict[RegionStatus, tuple[RegionStatus, ...]] = {
    "announced": ("building", "live"),
    "building": ("announced", "live"),
    "live": ("draining",),
    "draining": ("live", "retired"),
    "retired": ("live",),
}


def next_statuses(status: RegionStatus) -> tuple[RegionStatus, ...]:
    """What a region of this status may become next."""
    return STEPS[status]

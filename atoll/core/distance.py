"""How long light and routers need: round-trip times where none was measured."""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt

from atoll.core.places import Region

EARTH_KM = 6371.0
BASE_SECONDS = 0.0259
SECONDS_PER_KM = 14.3e-6
METRO_KM = 200.0


def great_circle(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Kilometres over the surface of a sphere (haversine); degrees in."""
    a, b = radians(lat1), radians(lat2)
    h = sin((b - a) / 2) ** 2 + cos(a) * cos(b) * sin(radians(lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * asin(sqrt(min(1.0, h)))


def fitted(km: float) -> float:
    """Seconds there and back: 25.9 ms + 14.3 ms per 1,000 km beyond 200 km, less in proportion within."""
    return BASE_SECONDS * min(1.0, km / METRO_KM) + SECONDS_PER_KM * km


def round_trip(a: Region, b: Region) -> float:
    """Seconds, by distance."""
    return fitted(great_circle(a.lat, a.lon, b.lat, b.lon))

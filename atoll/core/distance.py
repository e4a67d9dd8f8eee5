"""How long light and routers need: round-trip times where none was measured.

RTT = 7.3 ms + 15.1 ms per 1,000 km: the line of least mean relative error over the pairs beyond 200 km of Microsoft's
51 x 51 matrix (regions/azure_rtt.json). Half of these pairs lie within 13 % of it, nine in ten within 34 %. Light in
fibre would need 10 ms per 1,000 km. Mainland China is not in the matrix.
"""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt

from atoll.core.places import Region

EARTH_KM = 6371.0
BASE_SECONDS = 0.0073
SECONDS_PER_KM = 15.1e-6
METRO_KM = 200.0
FITTED_ERROR = 0.134
FITTED_ERROR_P90 = 0.336
BORDER_SECONDS = 0.030
"""Added where just one end is in mainland China. An assumption, not a measurement: leased lines add next to nothing,
the public Internet often more than 100 ms."""


def great_circle(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Kilometres over the surface of a sphere (haversine); degrees in."""
    a, b = radians(lat1), radians(lat2)
    h = sin((b - a) / 2) ** 2 + cos(a) * cos(b) * sin(radians(lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * asin(sqrt(min(1.0, h)))


def fitted(km: float) -> float:
    """Seconds there and back. Within 200 km the constant part shrinks with the distance, to 0 at the same place."""
    return BASE_SECONDS * min(1.0, km / METRO_KM) + SECONDS_PER_KM * km


def border(a: str, b: str) -> float:
    """Seconds that the border of mainland China adds between two countries (ISO codes; empty where not known)."""
    return BORDER_SECONDS if a and b and (a == "CN") != (b == "CN") else 0.0


def round_trip(a: Region, b: Region) -> float:
    """Seconds, by distance."""
    return fitted(great_circle(a.lat, a.lon, b.lat, b.lon)) + border(a.country, b.country)

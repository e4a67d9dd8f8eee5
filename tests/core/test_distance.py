"""Great circles, and the fitted rule of round-trip times."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.distance import BORDER_SECONDS, border, fitted, great_circle, round_trip
from atoll.core.places import Region, next_statuses

LIGHT_IN_FIBRE_KM_PER_SECOND = 2e5

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)


def region(id: str, country: str, lat: float, lon: float) -> Region:
    return Region(id, id, country, lat, lon, "live")


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        ((51.47, -0.45), (40.64, -73.78), 5540),  # LHR-JFK, 2,991 nautical miles
        ((0, 0), (0, 180), 20015),
        ((90, 0), (-90, 77), 20015),
        ((0, 179), (0, -179), 222.4),
        ((48.86, 2.35), (48.86, 2.35), 0),
    ],
)
def test_known_distances(a: tuple[float, float], b: tuple[float, float], km: float) -> None:
    assert great_circle(*a, *b) == pytest.approx(km, rel=0.002)


@given(latitudes, longitudes, latitudes, longitudes)
def test_distance_is_symmetric_and_bounded(lat1: float, lon1: float, lat2: float, lon2: float) -> None:
    km = great_circle(lat1, lon1, lat2, lon2)
    assert 0 <= km <= 20016
    assert km == pytest.approx(great_circle(lat2, lon2, lat1, lon1), abs=1e-6)


@given(st.floats(0, 20000), st.floats(0, 20000))
def test_farther_is_slower_and_nothing_beats_light(near: float, far: float) -> None:
    near, far = sorted((near, far))
    assert fitted(near) <= fitted(far)
    assert fitted(far) >= 2 * far / LIGHT_IN_FIBRE_KM_PER_SECOND


@given(st.floats(0, 9000), st.floats(0, 9000))
def test_a_detour_never_pays(one: float, two: float) -> None:
    assert fitted(one + two) <= fitted(one) + fitted(two) + 1e-12


def test_the_border_counts_once_and_only_across() -> None:
    shenzhen, hongkong = region("a", "CN", 22.54, 114.06), region("b", "HK", 22.32, 114.17)
    qingdao = region("c", "CN", 36.07, 120.38)
    assert round_trip(shenzhen, hongkong) == round_trip(hongkong, shenzhen) > BORDER_SECONDS
    assert round_trip(shenzhen, qingdao) == fitted(great_circle(22.54, 114.06, 36.07, 120.38))
    assert border("CN", "") == 0


def test_steps_of_a_region() -> None:
    path = ("announced", "building", "live", "draining", "retired")
    assert all(after in next_statuses(before) for before, after in itertools.pairwise(path))
    assert "live" in next_statuses("draining")
    assert "retired" not in next_statuses("live")
    assert all(status not in next_statuses(status) for status in path)

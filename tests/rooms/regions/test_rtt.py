"""Round-trip times: measured where they were, fitted elsewhere, and how far the fit is off."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from pathlib import Path

import pytest

from atoll.core.distance import (
    BASE_SECONDS,
    FITTED_ERROR,
    FITTED_ERROR_P90,
    METRO_KM,
    SECONDS_PER_KM,
    fitted,
    great_circle,
)
from atoll.core.errors import NotFound
from atoll.regions.catalogue import read_regions
from atoll.regions.rtt import FILE, Matrix, RoundTrips, read_matrix

REGIONS = read_regions()
BY_ID = {region.id: region for region in REGIONS}
WORST = 1.5


@pytest.fixture(scope="module")
def trips() -> RoundTrips:
    return RoundTrips(REGIONS)


@pytest.fixture(scope="module")
def far() -> list[tuple[float, float]]:
    """(kilometres, seconds) of the measured pairs that the rule was fitted to."""
    pairs = [(great_circle(a.lat, a.lon, b.lat, b.lon), rtt.seconds) for a, b, rtt in read_matrix().pairs()]
    return [pair for pair in pairs if pair[0] > METRO_KM]


def least_relative_error(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Base and slope of the line with the least mean relative error, by reweighted least squares."""
    base = slope = 0.0
    weights = [1 / seconds**2 for _, seconds in pairs]
    for _ in range(200):
        w, x, y, xx, xy = (
            sum(weight * f(km, s) for weight, (km, s) in zip(weights, pairs, strict=True))
            for f in (lambda k, s: 1, lambda k, s: k, lambda k, s: s, lambda k, s: k * k, lambda k, s: k * s)
        )
        slope = (w * xy - x * y) / (w * xx - x * x)
        base = (y - slope * x) / w
        weights = [1 / (s * max(abs(base + slope * km - s), 1e-4 * s)) for km, s in pairs]
    return base, slope


def test_the_rule_is_what_the_matrix_says(far: list[tuple[float, float]]) -> None:
    assert len(far) == 1223
    base, slope = least_relative_error(far)
    assert base == pytest.approx(BASE_SECONDS, abs=1e-4)
    assert slope == pytest.approx(SECONDS_PER_KM, rel=0.01)


def test_the_error_is_as_told(far: list[tuple[float, float]]) -> None:
    errors = sorted(abs(fitted(km) - seconds) / seconds for km, seconds in far)
    assert statistics.median(errors) == pytest.approx(FITTED_ERROR, abs=0.001)
    assert errors[int(0.9 * len(errors))] == pytest.approx(FITTED_ERROR_P90, abs=0.001)


@pytest.mark.parametrize(
    ("a", "b", "ms"),
    [
        ("eu-central-1", "eu-west-1", 17.0),
        ("ap-southeast-1", "cn-hongkong", 36.0),
        ("us-east-1", "eu-central-1", 93.5),
        ("ap-southeast-5", "ap-southeast-1", 17.0),
    ],
)
def test_measured_between_metros(trips: RoundTrips, a: str, b: str, ms: float) -> None:
    rtt = trips.between(a, b)
    assert rtt.kind == "measured"
    assert rtt.seconds * 1000 == pytest.approx(ms, abs=0.01)
    assert 0 < rtt.error < 0.1


def test_mainland_china_is_never_measured(trips: RoundTrips) -> None:
    """Shenzhen is 27 km from Hong Kong, which is in the matrix."""
    for region in REGIONS:
        assert trips.between("cn-shenzhen", region.id).kind == "fitted"
    assert 0.030 < trips.between("cn-shenzhen", "cn-hongkong").seconds < 0.035


def test_all_pairs_are_there_symmetric_and_positive(trips: RoundTrips) -> None:
    for a, b in itertools.product(BY_ID, BY_ID):
        rtt = trips.between(a, b)
        assert rtt == trips.between(b, a)
        assert rtt.seconds > 0 if a != b else rtt.seconds == 0
        assert rtt.seconds < 0.4


def test_nothing_is_faster_than_light_in_fibre(trips: RoundTrips) -> None:
    for a, b in itertools.combinations(REGIONS, 2):
        km = great_circle(a.lat, a.lon, b.lat, b.lon)
        assert trips.between(a.id, b.id).seconds >= 2 * km / 2e5 * 0.99, (a.id, b.id)


def test_no_detour_saves_more_than_real_networks_let_it(trips: RoundTrips) -> None:
    """Measured cables break the triangle rule, but not grossly."""
    for a, b, c in itertools.permutations(BY_ID, 3):
        direct = trips.between(a, c).seconds
        assert direct <= WORST * (trips.between(a, b).seconds + trips.between(b, c).seconds) + 0.005, (a, b, c)


def test_from_clients(trips: RoundTrips) -> None:
    paris, lyon, nowhere = (48.85, 2.29), (45.76, 4.84), (-48.9, -123.4)
    assert trips.from_client(*paris, "eu-central-1") == trips.between("x-fr-1", "eu-central-1")
    assert trips.from_client(*lyon, "eu-central-1").kind == "fitted"
    assert trips.from_client(*lyon, "eu-central-1").seconds < trips.from_client(*nowhere, "eu-central-1").seconds
    beijing = (39.9, 116.4)
    told, untold = (trips.from_client(*beijing, "ap-southeast-1", country) for country in ("CN", ""))
    assert told.seconds == pytest.approx(untold.seconds + 0.030)
    assert trips.from_client(*beijing, "cn-beijing", "CN").seconds < 0.001


def test_unknown_regions(trips: RoundTrips) -> None:
    for ask in (
        lambda: trips.between("atlantis-1", "eu-west-1"),
        lambda: trips.between("eu-west-1", "atlantis-1"),
        lambda: trips.from_client(0, 0, "atlantis-1"),
    ):
        with pytest.raises(NotFound, match="no region 'atlantis-1'"):
            ask()


def test_without_a_matrix_all_is_fitted() -> None:
    trips = RoundTrips(REGIONS, Matrix((), ()))
    assert {trips.between(a, b).kind for a, b in itertools.product(BY_ID, BY_ID)} == {"fitted"}


def test_the_notice_names_the_matrix_and_its_licence_is_beside_it() -> None:
    notice = (Path(__file__).parents[3] / "NOTICE").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in notice
    assert "MIT License" in FILE.with_name("LICENSE.azure_rtt.txt").read_text()

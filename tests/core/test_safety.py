"""Limits of actions: examples, and that nothing leaves them, whatever is asked."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import ActionLimits, Channel, Manifest
from atoll.core.safety import Bound, Bounds, Motion, begin, bounds_of, course, limit, settle

DT = 0.02
INF, NAN = float("inf"), float("nan")


def bounds(low: float = -1.0, high: float = 1.0, velocity: float = INF, acceleration: float = INF) -> Bounds:
    return (Bound("elbow", "position", low, high, velocity, acceleration),)


def manifest(*channels: Channel, **limits: tuple[float, ...]) -> Manifest:
    return Manifest("reach", "mlp", 50.0, (Channel("q", 2),), channels, limits=ActionLimits(**limits))


def at(value: float, velocity: float = 0.0) -> Motion:
    return Motion((value,), (velocity,))


def told(action: float, previous: Motion | None, given: Bounds, dt: float = DT) -> tuple[float, float, list[str]]:
    """Value, velocity, and the limits that were hit."""
    done = limit((action,), previous, given, dt)
    assert all(hit.dimension == "elbow" for hit in done.hits)
    return done.motion.value[0], done.motion.velocity[0], [hit.limit for hit in done.hits]


def test_an_action_within_its_limits_is_itself():
    value, velocity, hits = told(0.013, at(0.01), bounds(velocity=1.0, acceleration=10.0))
    assert (value, hits) == (0.013, [])
    assert velocity == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("given", "asked", "value", "hit"),
    [
        (bounds(), 3.0, 1.0, "position"),
        (bounds(), -3.0, -1.0, "position"),
        (bounds(velocity=2.0), 0.9, 0.04, "velocity"),
        (bounds(velocity=2.0, acceleration=25.0), 0.9, 0.01, "velocity"),
        (bounds(acceleration=25.0), -0.5, -0.01, "acceleration"),
        (bounds(), NAN, 0.0, "finite"),
        (bounds(velocity=2.0), -INF, 0.0, "finite"),
    ],
)
def test_the_limit_that_was_hit_is_named(given: Bounds, asked: float, value: float, hit: str):
    assert told(asked, at(0.0), given)[::2] == (pytest.approx(value), [hit])


def test_the_first_action_is_bounded_in_value_only():
    assert told(0.9, None, bounds(velocity=0.1)) == (0.9, 0.0, [])
    assert told(5.0, None, bounds()) == (1.0, 0.0, ["position"])
    assert told(NAN, None, bounds(low=0.5)) == (0.5, 0.0, ["finite"])


def test_a_jump_is_approached_without_overshoot():
    """Bang up and brake: it arrives where it was sent, to within a few steps of acceleration."""
    given = bounds(-9, 9, velocity=1.0, acceleration=2.0)
    motions = course([(0.5,)] * 200, at(0.0), given, DT, DT).motions
    assert max(motion.value[0] for motion in motions) <= 0.5 + 5 * 2.0 * DT**2
    assert motions[-1] == at(0.5)


def test_settling_brakes_and_holds_or_goes_home():
    given = bounds(velocity=1.0, acceleration=5.0)
    held = settle(None, at(0.0, 0.5), given, DT, DT, 1, 64).motions
    assert 0.0 < held[-1].value[0] <= 0.5**2 / (2 * 5.0)
    assert held[-1].velocity == (0.0,)
    speeds = [0.5, *(motion.velocity[0] for motion in held)]
    assert max(abs(b - a) for a, b in pairwise(speeds)) <= 5.0 * DT + 1e-9
    home = settle((-0.3,), at(0.0, 0.5), given, DT, DT, 1, 256).motions
    assert home[-1] == at(-0.3)
    assert len(home) < 256


def test_a_start_outside_the_limits_is_brought_inside():
    assert begin(bounds(), (7.0,)) == at(1.0)
    assert told(0.0, at(0.9, 80.0), bounds(acceleration=1.0))[0] <= 1.0


def test_limits_are_the_tightest_of_channels_and_limits():
    made = bounds_of(manifest(Channel("q", 2, "rad", -1, 1), Channel("grip", 1, "N", 0, 9), low=(-2, -0.5, 1)))
    assert [bound.low for bound in made] == [-1, -0.5, 1]
    assert [bound.high for bound in made] == [1, 1, 9]
    assert [bound.name for bound in made] == ["q[0]", "q[1]", "grip"]
    assert [bound.quantity for bound in made] == ["position", "position", "force"]


def test_bounds_hold_in_single_precision_too():
    made = bounds_of(manifest(Channel("q", 1, "", -0.1, 0.1)))
    for asked in (9.0, -9.0):
        [value] = limit((asked,), None, made, DT).motion.value
        assert abs(float(np.float32(value))) <= 0.1


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ({"low": (0.0, 0.0)}, "low"),
        ({"velocity": (0.0,)}, "velocity"),
        ({"low": (2.0,)}, "low"),
        ({"acceleration": (NAN,)}, "acceleration"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, tuple[float, ...]], names: str):
    with pytest.raises(InvalidRequest, match=names):
        bounds_of(manifest(Channel("q", 1, "", -1, 1), **limits))


anything = st.floats(width=32)


@given(
    st.lists(anything, min_size=1, max_size=60),
    st.lists(st.floats(1e-3, 0.1), min_size=60, max_size=60),
    st.floats(0.01, 100),
    st.floats(0.01, 1000),
    st.floats(-1, 1),
)
def test_nothing_leaves_the_limits(asked: list[float], steps: list[float], v: float, a: float, start: float):
    """Whatever is asked, at whatever pace. Value exactly, velocity and acceleration to rounding."""
    given = bounds(velocity=v, acceleration=a)
    now = at(start)
    for wanted, dt in zip(asked, steps, strict=False):
        was, (value, velocity, _) = now, told(wanted, now, given, dt)
        now = at(value, velocity)
        assert -1 <= value <= 1
        assert abs(velocity) <= v * (1 + 1e-9) + 1e-9
        assert abs(velocity - was.velocity[0]) <= a * dt * (1 + 1e-6) + 1e-9 / dt
        assert velocity == (value - was.value[0]) / dt

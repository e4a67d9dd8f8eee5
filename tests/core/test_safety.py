"""Limits of actions: examples, and that nothing leaves them, whatever is asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import ActionLimits, Channel, Manifest
from atoll.core.safety import Bounds, Hit, Motion, begin, bounds_of, course, limit, settle

DT = 0.02


def bounds(low: float = -1.0, high: float = 1.0, velocity: float = np.inf, acceleration: float = np.inf) -> Bounds:
    one = [np.array([value]) for value in (low, high, velocity, acceleration)]
    return Bounds(("elbow",), ("position",), *one)


def manifest(*channels: Channel, **limits: tuple[float, ...]) -> Manifest:
    return Manifest("reach", "mlp", 50.0, (Channel("q", 2),), channels, limits=ActionLimits(**limits))


def at(value: float, velocity: float = 0.0) -> Motion:
    return Motion(np.array([value]), np.array([velocity]))


def test_an_action_within_its_limits_is_itself():
    done = limit(np.array([0.013]), at(0.01), bounds(velocity=1.0, acceleration=10.0), DT)
    assert done.motion.value == 0.013
    assert done.hits == ()


@pytest.mark.parametrize(
    ("given", "asked", "told", "hit"),
    [
        (bounds(), 3.0, 1.0, "position"),
        (bounds(), -3.0, -1.0, "position"),
        (bounds(velocity=2.0), 0.9, 0.04, "velocity"),
        (bounds(velocity=2.0, acceleration=25.0), 0.9, 0.01, "velocity"),
        (bounds(acceleration=25.0), -0.5, -0.01, "acceleration"),
        (bounds(), np.nan, 0.0, "finite"),
        (bounds(velocity=2.0), -np.inf, 0.0, "finite"),
    ],
)
def test_the_limit_that_was_hit_is_named(given: Bounds, asked: float, told: float, hit: str):
    done = limit(np.array([asked]), at(0.0), given, DT)
    assert done.motion.value == pytest.approx(told)
    assert done.hits == (Hit("elbow", hit),)


def test_the_first_action_is_bounded_in_value_only():
    assert limit(np.array([0.9]), None, bounds(velocity=0.1), DT).motion == at(0.9)
    assert limit(np.array([5.0]), None, bounds(), DT).hits == (Hit("elbow", "position"),)
    assert limit(np.array([np.nan]), None, bounds(low=0.5), DT).motion.value == 0.5


def test_a_jump_is_approached_without_overshoot():
    """Bang up and brake: it arrives where it was sent, to within a few steps of acceleration."""
    given = bounds(-9, 9, velocity=1.0, acceleration=2.0)
    told = course(np.full((200, 1), 0.5), at(0.0), given, DT, DT)
    assert told.values.max() <= 0.5 + 5 * 2.0 * DT**2
    assert told.values[-1] == 0.5
    assert not told.velocities[-1]


def test_settling_brakes_and_holds_or_goes_home():
    given = bounds(velocity=1.0, acceleration=5.0)
    held = settle(None, at(0.0, 0.5), given, DT, DT, 1, 64)
    assert 0.0 < held.values[-1] <= 0.5**2 / (2 * 5.0)
    assert np.abs(np.diff(held.velocities[:, 0], prepend=0.5)).max() <= 5.0 * DT + 1e-9
    assert not held.velocities[-1]
    home = settle(np.array([-0.3]), at(0.0, 0.5), given, DT, DT, 1, 256)
    assert home.values[-1] == -0.3
    assert len(home.values) < 256


def test_a_start_outside_the_limits_is_brought_inside():
    assert begin(bounds(), np.array([7.0])) == at(1.0)
    assert limit(np.array([0.0]), at(0.9, 80.0), bounds(acceleration=1.0), DT).motion.value <= 1.0


def test_limits_are_the_tightest_of_channels_and_limits():
    made = bounds_of(manifest(Channel("q", 2, "rad", -1, 1), Channel("grip", 1, "N", 0, 9), low=(-2, -0.5, 1)))
    assert made.low.tolist() == [-1, -0.5, 1]
    assert made.high.tolist() == [1, 1, 9]
    assert made.names == ("q[0]", "q[1]", "grip")
    assert made.quantities == ("position", "position", "force")


def test_bounds_hold_in_single_precision_too():
    made = bounds_of(manifest(Channel("q", 1, "", -0.1, 0.1)))
    told = limit(np.array([9.0]), None, made, DT).motion.value
    assert float(told.astype(np.float32)[0]) <= 0.1


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ({"low": (0.0, 0.0)}, "low"),
        ({"velocity": (0.0,)}, "velocity"),
        ({"low": (2.0,)}, "low"),
        ({"acceleration": (float("nan"),)}, "acceleration"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, tuple[float, ...]], names: str):
    with pytest.raises(InvalidRequest, match=names):
        bounds_of(manifest(Channel("q", 1, "", -1, 1), **limits))


numbers = st.floats(-100, 100)
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
        told = limit(np.array([wanted]), now, given, dt).motion
        assert -1 <= told.value <= 1
        assert abs(told.velocity) <= v * (1 + 1e-9) + 1e-9
        assert abs(told.velocity - now.velocity) <= a * dt * (1 + 1e-6) + 1e-9 / dt
        assert told.velocity == (told.value - now.value) / dt
        now = told

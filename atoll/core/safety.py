"""What a robot may be told: each action is brought within its limits, whatever the policy says.

Value, velocity and acceleration of the command are bounded per dimension. All three can hold for ever only if the
command can always still come to rest before its bound, which at velocity v takes v² / 2a: so velocity is also bounded
by the way that is left (Del Prete, "Joint Position and Velocity Bounds in Discrete-Time Acceleration/Torque Control of
Robot Arms", 2018). From a `Motion` within the limits, braking is then always within them, at any step length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Channel, Manifest

Array = np.ndarray

QUANTITIES = {
    "rad": "position", "deg": "position", "m": "position", "mm": "position",
    "N m": "torque", "N*m": "torque", "Nm": "torque", "N·m": "torque", "N": "force",
    "rad/s": "velocity", "deg/s": "velocity", "m/s": "velocity",
}  # fmt: skip


class Bounds(NamedTuple):
    """Limits of an action, (a,) each, float64; infinite where there is none. `low`..`high` bound what the action is:
    a position, a torque, ... (`quantities`); `velocity` and `acceleration` its change, per second and second squared.
    `low` and `high` are float32 numbers, so that what lies within them does so in both precisions."""

    names: tuple[str, ...]
    quantities: tuple[str, ...]
    low: Array
    high: Array
    velocity: Array
    acceleration: Array


class Motion(NamedTuple):
    """The command now: its value and its velocity, (a,) each, float64."""

    value: Array
    velocity: Array


class Hit(NamedTuple):
    """A limit that an action was held to: `limit` is the quantity bounded, "velocity", "acceleration" or "finite"."""

    dimension: str
    limit: str


class Limited(NamedTuple):
    """`motion.value` is the action to carry out. `hits` is empty where it is the action that was asked for."""

    motion: Motion
    hits: tuple[Hit, ...]


class Course(NamedTuple):
    """Actions carried out one after another: `values` and `velocities` (n, a), and the limits that were hit."""

    values: Array
    velocities: Array
    hits: tuple[Hit, ...]


def bounds_of(manifest: Manifest) -> Bounds:
    """The tightest of what the channels and the limits say. Raises InvalidRequest where they make no sense."""
    size = manifest.action_size
    channels = [channel for channel in manifest.action for _ in range(channel.size)]
    limits = manifest.limits
    low = np.maximum([c.low for c in channels], _limit("low", limits.low, size, -np.inf))
    high = np.minimum([c.high for c in channels], _limit("high", limits.high, size, np.inf))
    if np.any(low > high):
        raise InvalidRequest("an action's 'low' is above its 'high'", param="limits")
    velocity = _limit("velocity", limits.velocity, size, np.inf)
    acceleration = _limit("acceleration", limits.acceleration, size, np.inf)
    if np.any(velocity <= 0) or np.any(acceleration <= 0):
        raise InvalidRequest("limits of velocity and acceleration must be above 0", param="limits")
    quantities = tuple(QUANTITIES.get(channel.unit, "value") for channel in channels)
    return Bounds(dimensions(manifest.action), quantities, *_inward(low, high), velocity, acceleration)


def dimensions(channels: tuple[Channel, ...]) -> tuple[str, ...]:
    """A name for each number: the channel's, with an index where it has several."""
    return tuple(f"{c.name}[{i}]" if c.size > 1 else c.name for c in channels for i in range(c.size))


def begin(bounds: Bounds, value: Array) -> Motion:
    """At rest at `value`, or at the bound nearest to it."""
    return Motion(np.clip(np.nan_to_num(np.asarray(value, np.float64)), bounds.low, bounds.high), np.zeros(len(value)))


def limit(action: Array, previous: Motion | None, bounds: Bounds, dt: float) -> Limited:
    """`action`, (a,), `dt` seconds after `previous`: as it is where it is within `bounds`, else on the way there at a
    velocity that can stop there. Where nothing went before, only its value is bounded. What is not finite is replaced
    by rest. Raises nothing: a `previous` outside the limits is brought back, its value first."""
    finite = np.isfinite(action)
    if previous is None:
        motion = begin(bounds, np.where(finite, action, 0.0))
        return Limited(motion, _hits(np.asarray(action, np.float64), None, motion, bounds))
    wanted = np.where(finite, action, previous.value).astype(np.float64)
    asked = (wanted - previous.value) / dt
    slowest, fastest = _reachable(previous, bounds, dt)
    can = (slowest <= asked) & (asked <= fastest)
    if can.all() and finite.all():
        value = np.clip(wanted, bounds.low, bounds.high)
        return Limited(Motion(value, (value - previous.value) / dt), ())
    near = _stoppable(np.abs(wanted - previous.value), bounds.acceleration, dt)
    velocity = np.clip(np.clip(asked, -near, near), slowest, fastest)
    value = np.clip(np.where(can, wanted, previous.value + velocity * dt), bounds.low, bounds.high)
    motion = Motion(value, (value - previous.value) / dt)
    return Limited(motion, _hits(np.asarray(action, np.float64), asked, motion, bounds))


def course(actions: Array, previous: Motion | None, bounds: Bounds, first: float, dt: float) -> Course:
    """`actions` (n, a) carried out every `dt` seconds, the first `first` seconds after `previous`, each limited."""
    motions, hits = [], {}
    for i, action in enumerate(actions):
        limited = limit(action, previous, bounds, dt if i else first)
        previous = limited.motion
        motions.append(previous)
        hits |= dict.fromkeys(limited.hits)
    return _course(motions, tuple(hits))


def settle(
    target: Array | None, previous: Motion, bounds: Bounds, first: float, dt: float, least: int, most: int
) -> Course:
    """Actions that go to `target` within the limits (None: that brake and hold): as many as it takes to be at rest
    there, `least` to `most`."""
    motions: list[Motion] = []
    while len(motions) < most:
        goal = previous.value if target is None else target
        there = not previous.velocity.any() and (previous.value == goal).all()
        if there and len(motions) >= least:
            break
        previous = limit(goal, previous, bounds, dt if motions else first).motion
        motions.append(previous)
    return _course(motions, ())


def _course(motions: list[Motion], hits: tuple[Hit, ...]) -> Course:
    return Course(np.stack([m.value for m in motions]), np.stack([m.velocity for m in motions]), hits)


def _reachable(now: Motion, bounds: Bounds, dt: float) -> tuple[Array, Array]:
    """The slowest and fastest velocity of the next step. Braking is always among them."""
    change = bounds.acceleration * dt
    up = np.minimum(bounds.velocity, _stoppable(bounds.high - now.value, bounds.acceleration, dt))
    down = -np.minimum(bounds.velocity, _stoppable(now.value - bounds.low, bounds.acceleration, dt))
    fastest = np.minimum(up, np.maximum(now.velocity + change, down))
    slowest = np.maximum(down, np.minimum(now.velocity - change, up))
    return slowest, fastest


def _stoppable(way: Array, acceleration: Array, dt: float) -> Array:
    """The velocity v with v dt + v² / 2a = `way`: a step of it leaves just enough to stop."""
    change = acceleration * dt
    free = np.isinf(acceleration) | np.isinf(way)
    twice = 2 * np.where(free, 1.0, acceleration) * np.where(free, 1.0, way)
    change = np.where(free, 1.0, change)
    return np.where(free, way / dt, twice / (np.sqrt(change**2 + twice) + change))


def _hits(action: Array, asked: Array | None, motion: Motion, bounds: Bounds) -> tuple[Hit, ...]:
    found = []
    for i, name in enumerate(bounds.names):
        if not np.isfinite(action[i]):
            found.append(Hit(name, "finite"))
        elif not bounds.low[i] <= action[i] <= bounds.high[i]:
            found.append(Hit(name, bounds.quantities[i]))
        elif asked is None or action[i] == motion.value[i]:
            continue
        elif abs(asked[i]) > bounds.velocity[i]:
            found.append(Hit(name, "velocity"))
        else:
            found.append(Hit(name, "acceleration"))
    return tuple(found)


def _limit(name: str, values: tuple[float, ...], size: int, none: float) -> Array:
    if values and len(values) != size:
        raise InvalidRequest(f"'limits.{name}' has {len(values)} values for {size} actions", param="limits")
    if any(value != value for value in values):
        raise InvalidRequest(f"'limits.{name}' has a value that is not a number", param="limits")
    return np.array(values or [none] * size, np.float64)


def _inward(low: Array, high: Array) -> tuple[Array, Array]:
    """The widest interval of float32 numbers within `low`..`high`."""
    floor, roof = low.astype(np.float32), high.astype(np.float32)
    floor = np.where(floor < low, np.nextafter(floor, np.float32(np.inf)), floor)
    roof = np.where(roof > high, np.nextafter(roof, np.float32(-np.inf)), roof)
    return np.minimum(floor, roof).astype(np.float64), roof.astype(np.float64)

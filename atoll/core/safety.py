"""What a robot may be told: each action is brought within its limits, whatever the policy says.

Value, velocity and acceleration of the command are bounded per dimension. All three can hold for ever only if the
command can always still come to rest before its bound, which at velocity v takes v² / 2a: so velocity is also bounded
by the way that is left (Del Prete, "Joint Position and Velocity Bounds in Discrete-Time Acceleration/Torque Control of
Robot Arms", 2018). From a `Motion` within the limits, braking is then always within them, at any step length.

Robots have few dimensions, so plain numbers are several times as fast here as arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Channel, Manifest

Vector = tuple[float, ...]

QUANTITIES = {
    "rad": "position", "deg": "position", "m": "position", "mm": "position",
    "N m": "torque", "N*m": "torque", "Nm": "torque", "N·m": "torque", "N": "force",
    "rad/s": "velocity", "deg/s": "velocity", "m/s": "velocity",
}  # fmt: skip


class Bound(NamedTuple):
    """Limits of one dimension of an action; infinite where there is none. `low`..`high` bound what the action is: a
    position, a torque, ... (`quantity`); `velocity` and `acceleration` its change, per second and second squared.
    `low` and `high` are single-precision numbers, so that what lies within them does so in both precisions."""

    name: str
    quantity: str
    low: float = -inf
    high: float = inf
    velocity: float = inf
    acceleration: float = inf


Bounds = tuple[Bound, ...]


class Motion(NamedTuple):
    """The command now: its value and its velocity."""

    value: Vector
    velocity: Vector


class Hit(NamedTuple):
    """A limit that an action was held to: `limit` is the quantity bounded, "velocity", "acceleration" or "finite"."""

    dimension: str
    limit: str


class Limited(NamedTuple):
    """`motion.value` is the action to carry out. `hits` is empty where it is the action that was asked for."""

    motion: Motion
    hits: tuple[Hit, ...]


class Course(NamedTuple):
    """Actions carried out one after another, and the limits that were hit."""

    motions: tuple[Motion, ...]
    hits: tuple[Hit, ...] = ()


def bounds_of(manifest: Manifest) -> Bounds:
    """The tightest of what the channels and the limits say. Raises InvalidRequest where they make no sense."""
    size, limits = manifest.action_size, manifest.limits
    lows, highs = _limit("low", limits.low, size, -inf), _limit("high", limits.high, size, inf)
    velocities = _limit("velocity", limits.velocity, size, inf)
    accelerations = _limit("acceleration", limits.acceleration, size, inf)
    channels = [channel for channel in manifest.action for _ in range(channel.size)]
    bounds = []
    for i, (channel, name) in enumerate(zip(channels, dimensions(manifest.action), strict=True)):
        low, high = _single(max(channel.low, lows[i]), inf), _single(min(channel.high, highs[i]), -inf)
        if low > high:
            raise InvalidRequest(f"the 'low' of '{name}' is above its 'high'", param="limits")
        if not (velocities[i] > 0 and accelerations[i] > 0):
            raise InvalidRequest(f"velocity and acceleration of '{name}' must be above 0", param="limits")
        quantity = QUANTITIES.get(channel.unit, "value")
        bounds.append(Bound(name, quantity, low, high, velocities[i], accelerations[i]))
    return tuple(bounds)


def dimensions(channels: tuple[Channel, ...]) -> tuple[str, ...]:
    """A name for each number: the channel's, with an index where it has several."""
    return tuple(f"{c.name}[{i}]" if c.size > 1 else c.name for c in channels for i in range(c.size))


def within(values: Iterable[float], bounds: Bounds) -> bool:
    return all(bound.low <= value <= bound.high for value, bound in zip(values, bounds, strict=True))


def begin(bounds: Bounds, value: Sequence[float]) -> Motion:
    """At rest at `value`, or at the bound nearest to it."""
    return Motion(tuple(_clip(x, bound) for x, bound in zip(value, bounds, strict=True)), (0.0,) * len(bounds))


def limit(action: Sequence[float], previous: Motion | None, bounds: Bounds, dt: float) -> Limited:
    """`action`, `dt` seconds after `previous`: as it is where it is within `bounds`, else on the way there at a
    velocity that can stop there. Where nothing went before, only its value is bounded. What is not finite is replaced
    by rest. Raises nothing: a `previous` outside the limits is brought back, its value first."""
    if previous is None:
        motion = begin(bounds, action)
        each = zip(action, bounds, motion.value, strict=True)
        return Limited(motion, tuple(_hit(wanted, bound) for wanted, bound, value in each if value != wanted))
    values, velocities, hits = [], [], []
    for wanted, bound, at, velocity in zip(action, bounds, *previous, strict=True):
        value = _step(wanted if isfinite(wanted) else at, at, velocity, bound, dt)
        if value != wanted:
            hits.append(_hit(wanted, bound, abs(wanted - at) / dt))
        values.append(value)
        velocities.append((value - at) / dt)
    return Limited(Motion(tuple(values), tuple(velocities)), tuple(hits))


def course(
    actions: Iterable[Sequence[float]], previous: Motion | None, bounds: Bounds, first: float, dt: float
) -> Course:
    """`actions` carried out every `dt` seconds, the first `first` seconds after `previous`, each limited."""
    motions: list[Motion] = []
    hits: dict[Hit, None] = {}
    for action in actions:
        previous, met = limit(action, previous, bounds, dt if motions else first)
        motions.append(previous)
        hits |= dict.fromkeys(met)
    return Course(tuple(motions), tuple(hits))


def settle(
    target: Vector | None, previous: Motion, bounds: Bounds, first: float, dt: float, least: int, most: int
) -> Course:
    """Actions that go to `target` within the limits (None: that brake and hold): as many as it takes to be at rest
    there, `least` to `most`."""
    motions: list[Motion] = []
    while len(motions) < most:
        goal = previous.value if target is None else target
        if previous.value == goal and not any(previous.velocity) and len(motions) >= least:
            break
        previous = limit(goal, previous, bounds, dt if motions else first).motion
        motions.append(previous)
    return Course(tuple(motions))


def _step(wanted: float, at: float, velocity: float, bound: Bound, dt: float) -> float:
    """The next value: `wanted`, if the velocity that this takes is among those from which braking can go on."""
    if bound.velocity == bound.acceleration == inf:
        return _clip(wanted, bound)
    change = bound.acceleration * dt
    up = min(bound.velocity, _stoppable(bound.high - at, bound.acceleration, dt))
    down = -min(bound.velocity, _stoppable(at - bound.low, bound.acceleration, dt))
    fastest, slowest = min(up, max(velocity + change, down)), max(down, min(velocity - change, up))
    asked = (wanted - at) / dt
    if slowest <= asked <= fastest:
        return _clip(wanted, bound)
    near = _stoppable(abs(wanted - at), bound.acceleration, dt)
    toward = min(asked, near) if asked > 0 else max(asked, -near)
    return _clip(at + min(max(toward, slowest), fastest) * dt, bound)


def _stoppable(way: float, acceleration: float, dt: float) -> float:
    """The velocity v with v dt + v² / 2a = `way`: a step of it leaves just enough to stop."""
    if acceleration == inf or way == inf:
        return way / dt
    change, twice = acceleration * dt, 2 * acceleration * max(way, 0.0)
    return twice / (sqrt(change * change + twice) + change)


def _clip(value: float, bound: Bound) -> float:
    return min(max(value if isfinite(value) else 0.0, bound.low), bound.high)


def _hit(action: float, bound: Bound, speed: float = 0.0) -> Hit:
    if not isfinite(action):
        return Hit(bound.name, "finite")
    if not bound.low <= action <= bound.high:
        return Hit(bound.name, bound.quantity)
    return Hit(bound.name, "velocity" if speed > bound.velocity else "acceleration")


def _limit(name: str, values: tuple[float, ...], size: int, none: float) -> tuple[float, ...]:
    if values and len(values) != size:
        raise InvalidRequest(f"'limits.{name}' has {len(values)} values for {size} actions", param="limits")
    if any(value != value for value in values):
        raise InvalidRequest(f"'limits.{name}' has a value that is not a number", param="limits")
    return values or (none,) * size


def _single(value: float, toward: float) -> float:
    """The nearest single-precision number that lies from `value` in the direction of `toward`, or is it."""
    near = np.float32(value)
    beyond = float(near) < value if toward > 0 else float(near) > value
    return float(np.nextafter(near, np.float32(toward)) if beyond else near)

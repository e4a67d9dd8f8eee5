"""What robots that walk on legs share: how they move in their own frame, commands, and rewards for following them.

The robot's root is a free joint: `qpos[:, 3:7]` is its attitude (w, x, y, z), `qvel[:, :3]` its velocity in the world,
`qvel[:, 3:6]` its angular velocity in its own frame, which is what a gyroscope measures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reset, Term

ROOT = 7
SPEEDS = 6
TOUCH = 0.01
"""m, below which a sole stands."""


def into_frame(quaternion: Array, vector: Array) -> Array:
    """`vector` (n, 3) of the world, as seen from the frames (n, 4)."""
    w, xyz = quaternion[:, :1], -quaternion[:, 1:]
    twice = 2 * np.cross(xyz, vector)
    return vector + w * twice + np.cross(xyz, twice)


def velocity(sim: Sim) -> Array:
    """m/s, forward, left and up, (n, 3)."""
    return into_frame(sim.qpos[:, 3:7], sim.qvel[:, :3])


def gyro(sim: Sim) -> Array:
    """rad/s around the root's own axes, (n, 3)."""
    return sim.qvel[:, 3:6]


def gravity(sim: Sim) -> Array:
    """Where down is, as a unit vector in the root's frame, (n, 3)."""
    w, x, y, z = sim.qpos[:, 3:7].T
    return np.stack((2 * (w * y - x * z), -2 * (y * z + w * x), 2 * (x * x + y * y) - 1), axis=1)


def joint_velocity(sim: Sim) -> Array:
    return sim.qvel[:, SPEEDS:]


def command(sim: Sim) -> Array:
    """Wanted velocity forward and to the left, m/s, and around the vertical, rad/s, (n, 3)."""
    return sim.command


def moves(sim: Sim) -> Array:
    """Whether it is told to go or to turn, (n,)."""
    return np.linalg.norm(sim.command, axis=1) > 0.1


def phase(sim: Sim, strides: float) -> Array:
    """Of a stride, rad, with `strides` a second, (n,)."""
    return 2 * np.pi * strides * sim.elapsed * sim.dt


def clock(strides: float) -> Term:
    """Sine and cosine of the phase of the stride, (n, 2)."""

    def angle(sim: Sim) -> Array:
        return np.stack((np.sin(phase(sim, strides)), np.cos(phase(sim, strides))), axis=1)

    return angle


def gait(sim: Sim, height: Array, first: Array, strides: float, lift: float) -> Array:
    """Share of the feet, whose soles are at `height` (n, f), that do as the clock says, (n,). In the first half of a
    stride the feet `first` (f,) bool stand and the others are lifted as high as `lift`, m; in the second half it is
    the other way round. Told to stand, all do (Siekmann et al., "Sim-to-Real Learning of All Common Bipedal Gaits via
    Periodic Reward Composition", 2021)."""
    stands = ((np.sin(phase(sim, strides)) > 0)[:, None] == first) | ~moves(sim)[:, None]
    return np.where(stands, height < TOUCH, np.clip(height / lift, 0, 1)).mean(axis=1)


def linear_error(sim: Sim) -> Array:
    """m/s, (n,)."""
    return np.linalg.norm(sim.command[:, :2] - velocity(sim)[:, :2], axis=1)


def angular_error(sim: Sim) -> Array:
    """rad/s, (n,)."""
    return np.abs(sim.command[:, 2] - sim.qvel[:, 5])


def track_linear(sim: Sim) -> Array:
    """1 at the commanded velocity, 0.37 at 0.5 m/s from it."""
    return np.exp(-np.square(linear_error(sim)) / 0.25)


def track_angular(sim: Sim) -> Array:
    return np.exp(-np.square(angular_error(sim)) / 0.25)


def bounce(sim: Sim) -> Array:
    return np.square(sim.qvel[:, 2])


def sway(sim: Sim) -> Array:
    return np.square(sim.qvel[:, 3:5]).sum(axis=1)


def tilt(sim: Sim) -> Array:
    return np.square(gravity(sim)[:, :2]).sum(axis=1)


def effort(sim: Sim) -> Array:
    """Sum of the squares of the actuators' forces."""
    return np.square(sim.field("actuator_force")).sum(axis=1)


def jerkiness(sim: Sim) -> Array:
    """Sum of the squares of the changes of the targets, in this step."""
    return np.square(sim.ctrl - sim.memory["targets"]).sum(axis=1)


def alive(sim: Sim) -> Array:
    return np.ones(sim.n)


def keep(sim: Sim) -> None:
    """Ahead of a step: the targets so far, and the sum of errors of the episode."""
    sim.memory["targets"] = sim.ctrl.copy()
    errors = sim.memory.setdefault("errors", np.zeros((sim.n, 2)))
    errors += np.stack((linear_error(sim), angular_error(sim)), axis=1)
    errors[sim.elapsed == 0] = 0


def mean_errors(sim: Sim) -> Array:
    """Of the episode so far: m/s and rad/s, (n, 2)."""
    return sim.memory["errors"] / np.maximum(sim.elapsed - 1, 1)[:, None]


def followed(linear: float, angular: float) -> Term:
    """The episode lasted to its end, with mean errors below these, m/s and rad/s."""

    def success(sim: Sim) -> Array:
        return (sim.elapsed >= sim.task.horizon) & (mean_errors(sim) < (linear, angular)).all(axis=1)

    return success


def commands(high: tuple[float, float, float], every_s: float, still: float = 0.1) -> Callable[[Sim, Array], None]:
    """Velocities within plus or minus `high`, drawn anew every `every_s`; a share `still` of them is to stand."""

    def draw(sim: Sim, begun: Array) -> None:
        due = np.flatnonzero(sim.elapsed % round(every_s / sim.dt) == 0) if not len(begun) else begun
        for i in due.tolist():
            stands = sim.rng[i].random() < still
            sim.command[i] = 0 if stands else sim.rng[i].uniform(-1, 1, 3) * high

    return draw


def standing(home: Array, height: float, spread: float = 0.1) -> Reset:
    """Stand at `home`, joints give or take `spread` rad, turned any way around the vertical, slightly in motion."""

    def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
        turn = rng.uniform(-np.pi, np.pi) / 2
        sim.qpos[i, :ROOT] = [0, 0, height, np.cos(turn), 0, 0, np.sin(turn)]
        sim.qpos[i, ROOT:] = home + rng.uniform(-spread, spread, len(home))
        sim.qvel[i, :SPEEDS] = rng.uniform(-0.2, 0.2, 6)
        sim.ctrl[i] = home

    return reset


def targets(low: Array, high: Array) -> Callable[[Sim, Array], None]:
    """Actions are positions of the joints, rad, for their servos; what is not a number leaves the last one."""

    def act(sim: Sim, action: Array) -> None:
        sim.ctrl[:] = np.where(np.isfinite(action), np.clip(action, low, high), sim.ctrl)

    return act

"""What Gymnasium's MuJoCo tasks of version 5 share, equal to them to the last bit.

Where a line looks roundabout, it keeps the order of Gymnasium's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from atoll.physical.sim.model import read_model
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reset, Reward, Term

ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"


def asset(name: str) -> Callable[[], mujoco.MjSpec]:
    return lambda: read_model(ASSETS / name)


def qpos(first: int = 0) -> Term:
    """Positions from the `first` on: those that a task leaves out are where it is, not what it does."""
    return lambda sim: sim.qpos[:, first:]


def qvel(limit: float = np.inf) -> Term:
    return (lambda sim: sim.qvel) if limit == np.inf else lambda sim: np.clip(sim.qvel, -limit, limit)


def progress(x: Term, weight: float = 1.0) -> tuple[Callable[[Sim], None], Reward]:
    """Velocity of `x` over a step, m/s, as a reward; and what has to be remembered ahead of the step."""

    def before(sim: Sim) -> None:
        sim.memory["x"] = x(sim).copy()

    def forward(sim: Sim) -> Array:
        return (x(sim) - sim.memory["x"]) / sim.dt

    return before, Reward(forward, weight)


def root_x(sim: Sim) -> Array:
    return sim.qpos[:, 0]


def control(sim: Sim) -> Array:
    """Sum of the squares of the action, in float32 as the action."""
    return np.square(sim.action).sum(axis=1)


def control_of_actuators(sim: Sim) -> Array:
    return np.square(sim.ctrl).sum(axis=1)


def contact(sim: Sim, low: float = -np.inf, high: float = np.inf) -> Array:
    """Sum of the squares of the external forces and torques on all bodies, each clipped to low..high."""
    forces = sim.field("cfrc_ext").reshape(sim.n, -1)
    return np.square(forces if low == -high == -np.inf else np.clip(forces, low, high)).sum(axis=1)


def between(value: Array, low: float, high: float) -> Array:
    return (low < value) & (value < high)


def not_(term: Term) -> Term:
    return lambda sim: ~term(sim)


def distance(a: str, b: str) -> Term:
    """Metres between two bodies."""

    def term(sim: Sim) -> Array:
        gap = apart(sim, a, b)
        return np.sqrt(np.vecdot(gap, gap))

    return term


def apart(sim: Sim, a: str, b: str) -> Array:
    """From body `b` to body `a`, (n, 3), m."""
    return place(sim, a) - place(sim, b)


def place(sim: Sim, body: str) -> Array:
    """Where a body is, (n, 3), m."""
    return sim.field("xpos")[:, sim.model.body(body).id]


def noise(positions: float, velocities: float | None = None, *, normal: bool = False) -> Reset:
    """Uniform noise on the positions; uniform or normal noise on the velocities, by default as large."""
    speed = positions if velocities is None else velocities

    def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
        sim.qpos[i] += rng.uniform(-positions, positions, sim.model.nq)
        nv = sim.model.nv
        sim.qvel[i] += speed * rng.standard_normal(nv) if normal else rng.uniform(-speed, speed, nv)

    return reset

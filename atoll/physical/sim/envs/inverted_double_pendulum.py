"""InvertedDoublePendulum-v5 of Gymnasium: balance a pole on a pole on a cart.

gymnasium.envs.mujoco.inverted_double_pendulum_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, noise, not_
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def upright(sim: Sim) -> Array:
    """The tip is more than 1 m high."""
    return sim.field("site_xpos")[:, 0, 2] > 1


def squared(values: Array) -> Array:
    """As the C library's `pow`, which NumPy takes for single numbers: it rounds otherwise than a product."""
    return np.array([value**2 for value in values.tolist()])


def off_centre(sim: Sim) -> Array:
    """How far the tip is from 2 m above the middle."""
    x, _, height = sim.field("site_xpos")[:, 0].T
    return 0.01 * squared(x) + squared(height - 2)


def speed(sim: Sim) -> Array:
    return 1e-3 * squared(sim.qvel[:, 1]) + 5e-3 * squared(sim.qvel[:, 2])


def task() -> Task:
    return Task(
        name="inverted-double-pendulum",
        about="balance a pole on a pole on a cart",
        model=asset("inverted_double_pendulum.xml"),
        observations={
            "cart": lambda sim: sim.qpos[:, :1],
            "sin": lambda sim: np.sin(sim.qpos[:, 1:]),
            "cos": lambda sim: np.cos(sim.qpos[:, 1:]),
            "qvel": lambda sim: np.clip(sim.qvel, -10, 10),
            "constraint": lambda sim: np.clip(sim.field("qfrc_constraint")[:, :1], -10, 10),
        },
        rewards={
            "upright": Reward(upright, 10.0),
            "off_centre": Reward(off_centre, -1.0),
            "speed": Reward(speed, -1.0),
        },
        terminations={"fallen": not_(upright)},
        reset=noise(0.1, normal=True),
        observation_dtype=np.float64,
    )

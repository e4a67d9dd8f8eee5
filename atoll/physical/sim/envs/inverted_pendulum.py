"""InvertedPendulum-v5 of Gymnasium: balance a pole on a cart.

Barto, Sutton, Anderson, "Neuronlike Adaptive Elements That Can Solve Difficult Learning Control Problems" (1983);
gymnasium.envs.mujoco.inverted_pendulum_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, noise, not_, qpos, qvel
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def upright(sim: Sim) -> Array:
    """Within 0.2 rad, and every number is finite."""
    finite = np.isfinite(sim.qpos).all(axis=1) & np.isfinite(sim.qvel).all(axis=1)
    return finite & (np.abs(sim.qpos[:, 1]) <= 0.2)


def task() -> Task:
    return Task(
        name="inverted-pendulum",
        about="balance a pole on a cart",
        model=asset("inverted_pendulum.xml"),
        observations={"qpos": qpos(), "qvel": qvel()},
        rewards={"upright": Reward(upright)},
        terminations={"fallen": not_(upright)},
        reset=noise(0.01),
        frame_skip=2,
        observation_dtype=np.float64,
    )

"""Hopper-v5 of Gymnasium: hop forward on one leg without falling.

Erez, Tassa, Todorov, "Infinite-Horizon Model Predictive Control for Periodic Tasks with Contacts" (2011);
gymnasium.envs.mujoco.hopper_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, between, control, noise, not_, progress, qpos, qvel, root_x
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def healthy(sim: Sim) -> Array:
    """Above 0.7 m, within 0.2 rad of upright, and nothing moves out of bounds."""
    bounded = (np.abs(sim.qpos[:, 2:]) < 100).all(axis=1) & (np.abs(sim.qvel) < 100).all(axis=1)
    return bounded & (sim.qpos[:, 1] > 0.7) & between(sim.qpos[:, 2], -0.2, 0.2)


def task() -> Task:
    before, forward = progress(root_x)
    return Task(
        name="hopper",
        about="hop forward on one leg, in a plane",
        model=asset("hopper.xml"),
        observations={"qpos": qpos(1), "qvel": qvel(limit=10)},
        rewards={"forward": forward, "healthy": Reward(healthy), "control": Reward(control, -1e-3)},
        terminations={"fallen": not_(healthy)},
        reset=noise(5e-3),
        before=before,
        frame_skip=4,
        observation_dtype=np.float64,
        camera="track",
    )

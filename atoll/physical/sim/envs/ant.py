"""Ant-v5 of Gymnasium: walk forward on four legs.

Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (2015);
gymnasium.envs.mujoco.ant_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, contact, control, noise, not_, progress, qpos, qvel
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def torso_x(sim: Sim) -> Array:
    return sim.field("xpos")[:, 1, 0]


def healthy(sim: Sim) -> Array:
    """Every number is finite, and the torso between 0.2 and 1 m high."""
    finite = np.isfinite(sim.qpos).all(axis=1) & np.isfinite(sim.qvel).all(axis=1)
    return finite & (sim.qpos[:, 2] >= 0.2) & (sim.qpos[:, 2] <= 1.0)


def cost(sim: Sim) -> Array:
    """Of control and of contact, which Gymnasium adds up before it subtracts them."""
    return 0.5 * control(sim) + 5e-4 * contact(sim, -1.0, 1.0)


def task() -> Task:
    before, forward = progress(torso_x)
    return Task(
        name="ant",
        about="walk forward on four legs",
        model=asset("ant.xml"),
        contact_forces=True,
        observations={
            "qpos": qpos(2),
            "qvel": qvel(),
            "cfrc_ext": lambda sim: np.clip(sim.field("cfrc_ext")[:, 1:], -1.0, 1.0),
        },
        rewards={"forward": forward, "healthy": Reward(healthy), "cost": Reward(cost, -1.0)},
        terminations={"fallen": not_(healthy)},
        reset=noise(0.1, normal=True),
        before=before,
        observation_dtype=np.float64,
        camera="track",
    )

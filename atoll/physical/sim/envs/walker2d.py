"""Walker2d-v5 of Gymnasium: walk forward on two legs without falling.

Erez, Tassa, Todorov (2011), with two legs; gymnasium.envs.mujoco.walker2d_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, between, control, noise, not_, progress, qpos, qvel, root_x
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def healthy(sim: Sim) -> Array:
    """Between 0.8 and 2 m high, and within 1 rad of upright."""
    return between(sim.qpos[:, 1], 0.8, 2.0) & between(sim.qpos[:, 2], -1.0, 1.0)


def task() -> Task:
    before, forward = progress(root_x)
    return Task(
        name="walker2d",
        about="walk forward on two legs, in a plane",
        model=asset("walker2d_v5.xml"),
        observations={"qpos": qpos(1), "qvel": qvel(limit=10)},
        rewards={"forward": forward, "healthy": Reward(healthy), "control": Reward(control, -1e-3)},
        terminations={"fallen": not_(healthy)},
        reset=noise(5e-3),
        before=before,
        frame_skip=4,
        observation_dtype=np.float64,
        camera="track",
    )

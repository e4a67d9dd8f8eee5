"""Swimmer-v5 of Gymnasium: three links swim forward in a viscous fluid.

Coulom, "Reinforcement Learning Using Neural Networks, with Applications to Motor Control" (2002);
gymnasium.envs.mujoco.swimmer_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, control, noise, progress, qpos, qvel, root_x
from atoll.physical.sim.task import Reward, Task


def task() -> Task:
    before, forward = progress(root_x)
    return Task(
        name="swimmer",
        about="swim forward with three links",
        model=asset("swimmer.xml"),
        observations={"qpos": qpos(2), "qvel": qvel()},
        rewards={"forward": forward, "control": Reward(control, -1e-4)},
        reset=noise(0.1),
        before=before,
        frame_skip=4,
        observation_dtype=np.float64,
        camera="track",
    )

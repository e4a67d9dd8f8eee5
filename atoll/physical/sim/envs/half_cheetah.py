"""HalfCheetah-v5 of Gymnasium: run forward. Observations and rewards are Gymnasium's to the last bit.

Wawrzynski, "A Cat-Like Robot Real-Time Learning to Run" (2009); gymnasium.envs.mujoco.half_cheetah_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, control, noise, progress, qpos, qvel, root_x
from atoll.physical.sim.task import Reward, Task


def task() -> Task:
    before, forward = progress(root_x)
    return Task(
        name="half-cheetah",
        about="run forward on two legs, in a plane",
        model=asset("half_cheetah.xml"),
        observations={"qpos": qpos(1), "qvel": qvel()},
        rewards={"forward": forward, "control": Reward(control, -0.1)},
        reset=noise(0.1, normal=True),
        before=before,
        observation_dtype=np.float64,
        camera="track",
    )

"""HumanoidStandup-v5 of Gymnasium: stand up from lying. gymnasium.envs.mujoco.humanoidstandup_v5."""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, control_of_actuators, noise
from atoll.physical.sim.envs.humanoid import OBSERVATIONS, contact_cost
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task


def height(sim: Sim) -> Array:
    """Of the torso, m, over one physics step, s."""
    return sim.qpos[:, 2] / sim.model.opt.timestep


def task() -> Task:
    return Task(
        name="humanoid-standup",
        about="stand up from lying",
        model=asset("humanoidstandup.xml"),
        contact_forces=True,
        observations=OBSERVATIONS,
        rewards={
            "height": Reward(height),
            "control": Reward(control_of_actuators, -0.1),
            "impact": Reward(contact_cost, -1.0),
            "alive": Reward(lambda sim: np.ones(sim.n)),
        },
        reset=noise(0.01),
        observation_dtype=np.float64,
        camera="track",
    )

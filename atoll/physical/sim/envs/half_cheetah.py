"""HalfCheetah-v5 of Gymnasium: run forward. Observations and rewards are Gymnasium's to the last bit.

Wawrzynski, "A Cat-Like Robot Real-Time Learning to Run" (2009); gymnasium.envs.mujoco.half_cheetah_v5.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

NOISE = 0.1


def model() -> mujoco.MjSpec:
    assets = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
    return mujoco.MjSpec.from_file(str(assets / "half_cheetah.xml"))


def remember(sim: Sim) -> None:
    sim.memory["x"] = sim.qpos[:, 0].copy()


def forward(sim: Sim) -> Array:
    return (sim.qpos[:, 0] - sim.memory["x"]) / sim.dt


def control(sim: Sim) -> Array:
    return np.square(sim.action).sum(axis=1)


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    sim.qpos[i] += rng.uniform(-NOISE, NOISE, sim.model.nq)
    sim.qvel[i] += NOISE * rng.standard_normal(sim.model.nv)


def task() -> Task:
    return Task(
        name="half-cheetah",
        model=model,
        observations={"qpos": lambda sim: sim.qpos[:, 1:], "qvel": lambda sim: sim.qvel},
        rewards={"forward": Reward(forward), "control": Reward(control, -0.1)},
        reset=reset,
        before=remember,
        observation_dtype=np.float64,
    )

"""Reacher-v5 of Gymnasium: bring the tip of a two-link arm to a target. gymnasium.envs.mujoco.reacher_v5."""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import apart, asset, control, distance
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Reward, Task


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """The arm near its zero, the target anywhere within 0.2 m."""
    sim.qpos[i] += rng.uniform(-0.1, 0.1, sim.model.nq)
    while True:
        target = rng.uniform(-0.2, 0.2, 2)
        if np.linalg.norm(target) < 0.2:
            break
    sim.qpos[i, -2:] = target
    sim.qvel[i] += rng.uniform(-0.005, 0.005, sim.model.nv)
    sim.qvel[i, -2:] = 0


def task() -> Task:
    return Task(
        name="reacher",
        about="bring the tip of a two-link arm to a target, in a plane",
        model=asset("reacher.xml"),
        observations={
            "cos": lambda sim: np.cos(sim.qpos[:, :2]),
            "sin": lambda sim: np.sin(sim.qpos[:, :2]),
            "target": lambda sim: sim.qpos[:, 2:],
            "qvel": lambda sim: sim.qvel[:, :2],
            "gap": lambda sim: apart(sim, "fingertip", "target")[:, :2],
        },
        rewards={"distance": Reward(distance("fingertip", "target"), -1.0), "control": Reward(control, -1.0)},
        reset=reset,
        frame_skip=2,
        horizon=50,
        observation_dtype=np.float64,
    )

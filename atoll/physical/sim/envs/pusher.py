"""Pusher-v5 of Gymnasium: a seven-joint arm pushes a cylinder to a goal. gymnasium.envs.mujoco.pusher_v5."""

from __future__ import annotations

from functools import partial

import numpy as np

from atoll.physical.sim.envs.gym_terms import asset, control, distance, place
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Reward, Task


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """The cylinder on the table, more than 0.17 m from the goal."""
    while True:
        cylinder = np.concatenate([rng.uniform(-0.3, 0, 1), rng.uniform(-0.2, 0.2, 1)])
        if np.linalg.norm(cylinder) > 0.17:
            break
    sim.qpos[i, -4:-2] = cylinder
    sim.qpos[i, -2:] = 0
    sim.qvel[i] += rng.uniform(-0.005, 0.005, sim.model.nv)
    sim.qvel[i, -4:] = 0


def task() -> Task:
    return Task(
        name="pusher",
        about="push a cylinder to a goal with a seven-joint arm",
        model=asset("pusher_v5.xml"),
        observations={
            "qpos": lambda sim: sim.qpos[:, :7],
            "qvel": lambda sim: sim.qvel[:, :7],
            "tip": partial(place, body="tips_arm"),
            "object": partial(place, body="object"),
            "goal": partial(place, body="goal"),
        },
        rewards={
            "distance": Reward(distance("object", "goal"), -1.0),
            "control": Reward(control, -0.1),
            "near": Reward(distance("object", "tips_arm"), -0.5),
        },
        reset=reset,
        horizon=100,
        observation_dtype=np.float64,
    )

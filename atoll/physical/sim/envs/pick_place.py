"""Pick a block up from the table and put it down on a goal."""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs import tabletop as t
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

NEAR = 0.025
OPEN = 0.055
"""The gripper has let go of the block, m."""
STILL = 0.05
"""m/s"""


def left(sim: Sim) -> Array:
    """How far the block is from where it shall lie, m, (n,)."""
    return t.distance(t.block(sim) - [0, 0, t.HALF], t.goal(sim))


def held(sim: Sim) -> Array:
    """The block is between closed fingers, (n,)."""
    return (t.distance(t.tip(sim), t.block(sim)) < t.HALF) & (t.opening(sim) < OPEN)


def success(sim: Sim) -> Array:
    """The block lies at the goal, at rest and let go of."""
    still = np.linalg.norm(sim.qvel[:, 9:12], axis=1) < STILL
    return (left(sim) < NEAR) & still & (t.opening(sim) > OPEN)


def lifted(sim: Sim) -> Array:
    """0 to 1: held, and how high up to 10 cm; 1 as well where it has come to the goal."""
    height = np.clip((t.block(sim)[:, 2] - t.HALF) / 0.1, 0, 1)
    return np.maximum(held(sim) * (0.5 + 0.5 * height), left(sim) < NEAR)


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    t.begin(sim, i, rng)
    t.put_block(sim, i, rng)
    t.put_goal(sim, i, rng, apart=0.12)


def task() -> Task:
    return t.table_task(
        name="pick-place",
        about="Pick a block up and put it down on a goal, within 2.5 cm, at rest and let go of.",
        model=t.scene,
        observations={**t.ARM_OBSERVATIONS, **t.BLOCK_OBSERVATIONS, "goal": t.goal},
        channels=(t.JOINTS, t.SPEEDS, t.GRIPPER, t.TIP, t.BLOCK_POSITION, t.BLOCK_ROTATION, t.GOAL),
        rewards={
            "touch": Reward(lambda sim: t.near(t.distance(t.tip(sim), t.block(sim)), 0.1), 0.5),
            "lift": Reward(lifted),
            "near": Reward(lambda sim: lifted(sim) * t.near(left(sim), 0.2)),
            "success": Reward(success, 3.0),
            "haste": Reward(t.haste, -0.01),
        },
        terminations={"dropped": t.dropped},
        randomise=t.VARIED,
        reset=reset,
        success=success,
        horizon=200,
    )

"""Push a block over the table to a goal."""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs import tabletop as t
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

NEAR = 0.03


def left(sim: Sim) -> Array:
    """How far the block is from the goal, m, (n,)."""
    return t.distance(t.block(sim)[:, :2], t.goal(sim)[:, :2])


def success(sim: Sim) -> Array:
    return (left(sim) < NEAR) & (t.block(sim)[:, 2] > 0)


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    t.begin(sim, i, rng)
    t.put_block(sim, i, rng)
    t.put_goal(sim, i, rng, apart=0.1)


def task() -> Task:
    return t.table_task(
        name="push",
        about="Push a block over the table to a goal, within 3 cm.",
        model=t.scene,
        observations={**t.ARM_OBSERVATIONS, **t.BLOCK_OBSERVATIONS, "goal": t.goal},
        channels=(t.JOINTS, t.SPEEDS, t.GRIPPER, t.TIP, t.BLOCK_POSITION, t.BLOCK_ROTATION, t.GOAL),
        rewards={
            "touch": Reward(lambda sim: t.near(t.distance(t.tip(sim), t.block(sim)), 0.1), 0.5),
            "near": Reward(lambda sim: t.near(left(sim), 0.2)),
            "success": Reward(success),
            "haste": Reward(t.haste, -0.01),
        },
        terminations={"dropped": t.dropped},
        randomise=t.VARIED,
        reset=reset,
        success=success,
        horizon=150,
    )

"""Move the fingertips of a tabletop arm to a point in the air."""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs import tabletop as t
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

NEAR = 0.02


def away(sim: Sim) -> Array:
    return t.distance(t.tip(sim), t.goal(sim))


def success(sim: Sim) -> Array:
    return away(sim) < NEAR


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    t.begin(sim, i, rng)
    sim.field("mocap_pos")[i, 0] = [*rng.uniform(*t.AREA), rng.uniform(0.05, 0.4)]


def task() -> Task:
    return t.table_task(
        name="reach",
        about="Move the fingertips to a point in the air, within 2 cm.",
        model=lambda: t.scene(block=False, ball=True),
        observations={**t.ARM_OBSERVATIONS, "goal": t.goal},
        channels=(t.JOINTS, t.SPEEDS, t.GRIPPER, t.TIP, t.GOAL),
        rewards={
            "near": Reward(lambda sim: t.near(away(sim), 0.2)),
            "success": Reward(success),
            "haste": Reward(t.haste, -0.01),
        },
        reset=reset,
        success=success,
        horizon=60,
    )

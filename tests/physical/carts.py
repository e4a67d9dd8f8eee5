"""A task of a few lines: a cart of 2 kg on a rail with a force, which tests change as they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mujoco
import numpy as np

from atoll.physical.sim.task import Reward, Task

MJCF = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="9 9 1"/>
    <body name="cart" pos="0 0 1">
      <joint name="rail" type="slide" axis="1 0 0" damping="0.5"/>
      <geom name="box" type="box" size="0.1 0.1 0.1" mass="2"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="rail" ctrlrange="-1 1" gear="10"/></actuator>
</mujoco>
"""

CART = Task(
    name="cart",
    model=lambda: mujoco.MjSpec.from_string(MJCF),
    observations={"x": lambda sim: sim.qpos, "v": lambda sim: sim.qvel},
    rewards={"near": Reward(lambda sim: -np.abs(sim.qpos[:, 0]))},
    reset=lambda sim, i, rng: sim.qpos.__setitem__(i, rng.uniform(-0.1, 0.1)),
    frame_skip=2,
    horizon=20,
    observation_dtype=np.float64,
)


def cart(**changes: Any) -> Task:
    return replace(CART, **changes)

"""A policy that reaches, made without learning: resolved-rate control (Whitney, 1969) is linear in what it sees."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np

from atoll.core.manifest import ActionLimits, Image, Manifest
from atoll.physical.policy import MlpPolicy, limits, spec
from atoll.physical.sim import load_task
from atoll.physical.sim.robots import PANDA_HOME, PANDA_VELOCITY
from atoll.physical.sim.sim import Sim


def reaching(gain: float = 0.4, speed: float = 1.0, images: tuple[Image, ...] = ()) -> MlpPolicy:
    """Joint targets q + gain J⁺ (goal - tip), with the Jacobian J of the fingertips at home. The server lets joints
    move `speed` times as fast as the arm may."""
    sim = Sim(load_task("reach"), 1, threads=1)
    seen, given = spec(sim)
    at, start = {}, 0
    for channel in seen:
        at[channel.name] = slice(start, start + channel.size)
        start += channel.size
    pull = gain * np.linalg.pinv(jacobian(sim))
    weight = np.zeros((start, 8), np.float32)
    weight[at["joint_position"], :7] = np.eye(7)
    weight[at["goal"], :7], weight[at["end_effector"], :7] = pull.T, -pull.T
    low, high = limits(sim).low, limits(sim).high
    velocity = tuple(speed * v for v in (*PANDA_VELOCITY, 0.1))
    manifest = Manifest("reach", "mlp", 1 / sim.dt, seen, given, 1, images, network={"squash": "none"})
    manifest = replace(manifest, limits=ActionLimits(low, high, velocity))
    weights = {"0.weight": weight, "0.bias": np.zeros(8, np.float32)}
    weights |= {"observation.mean": np.zeros(start, np.float32), "observation.scale": np.ones(start, np.float32)}
    weights |= {"action.shift": np.zeros(8, np.float32), "action.scale": np.ones(8, np.float32)}
    return MlpPolicy(manifest, weights)


def jacobian(sim: Sim) -> np.ndarray:
    """Of the fingertips by the seven joints at home, (3, 7)."""
    data = mujoco.MjData(sim.model)
    data.qpos[:7] = PANDA_HOME
    mujoco.mj_forward(sim.model, data)
    moved = np.zeros((3, sim.model.nv))
    mujoco.mj_jacSite(sim.model, data, moved, None, 0)
    return moved[:, :7]

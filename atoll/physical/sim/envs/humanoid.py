"""Humanoid-v5 of Gymnasium: walk forward on two legs without falling.

Tassa, Erez, Todorov, "Synthesis and Stabilization of Complex Behaviors through Online Trajectory Optimization" (2012);
gymnasium.envs.mujoco.humanoid_v5.
"""

from __future__ import annotations

import numpy as np

from atoll.physical.sim.envs.gym_terms import (
    asset,
    between,
    contact,
    control_of_actuators,
    noise,
    not_,
    progress,
    qpos,
    qvel,
)
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task, Term


def body(field: str) -> Term:
    """A field of every body but the world."""
    return lambda sim: sim.field(field)[:, 1:]


OBSERVATIONS: dict[str, Term] = {
    "qpos": qpos(2),
    "qvel": qvel(),
    "cinert": body("cinert"),
    "cvel": body("cvel"),
    "qfrc_actuator": lambda sim: sim.field("qfrc_actuator")[:, 6:],
    "cfrc_ext": body("cfrc_ext"),
}


def centre_x(sim: Sim) -> Array:
    """x of the centre of mass, m."""
    mass = sim.model.body_mass
    return np.einsum("b,nb->n", mass, sim.field("xipos")[:, :, 0]) / mass.sum()


def healthy(sim: Sim) -> Array:
    """Between 1 and 2 m high."""
    return between(sim.qpos[:, 2], 1.0, 2.0)


def contact_cost(sim: Sim) -> Array:
    return np.minimum(5e-7 * contact(sim), 10.0)


def cost(sim: Sim) -> Array:
    """Of control and of contact, which Gymnasium adds up before it subtracts them."""
    return 0.1 * control_of_actuators(sim) + contact_cost(sim)


def task() -> Task:
    before, forward = progress(centre_x, 1.25)
    return Task(
        name="humanoid",
        about="walk forward on two legs",
        model=asset("humanoid.xml"),
        contact_forces=True,
        observations=OBSERVATIONS,
        rewards={"forward": forward, "healthy": Reward(healthy, 5.0), "cost": Reward(cost, -1.0)},
        terminations={"fallen": not_(healthy)},
        reset=noise(0.01),
        before=before,
        observation_dtype=np.float64,
        camera="track",
    )

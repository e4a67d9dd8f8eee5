"""Dynamics that differ between simulations and episodes (Peng et al., "Sim-to-Real Transfer of Robotic Control with
Dynamics Randomization", 2018). Each function here makes one that goes into `Task.randomise` or `Task.disturb`.

Factors of the same value multiply each other, from the model's own value on: with every episode it begins anew. Where
objects are named, each has a factor of its own; without names, all objects of the kind do. What MuJoCo derives from the
values follows by itself.
"""

from __future__ import annotations

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Disturb, Reset


def mass(low: float, high: float, *bodies: str) -> Reset:
    """Mass and rotational inertia of bodies by the same factor, as if their density changed."""

    def randomise(sim: Sim, i: int, rng: np.random.Generator) -> None:
        ids = _ids(sim, "body", bodies)
        factor = rng.uniform(low, high, len(ids))
        sim.varied("body_mass")[i, ids] *= factor
        sim.varied("body_inertia")[i, ids] *= factor[:, None]

    return _checked(randomise, low, high)


def inertia(low: float, high: float, *bodies: str) -> Reset:
    """Rotational inertia of bodies, their mass as it is."""
    return _scaled("body_inertia", "body", bodies, low, high)


def centre_of_mass(reach: float, *bodies: str) -> Reset:
    """Centres of mass moved by up to `reach` m along each axis of the body."""

    def randomise(sim: Sim, i: int, rng: np.random.Generator) -> None:
        ids = _ids(sim, "body", bodies)
        sim.varied("body_ipos")[i, ids] += rng.uniform(-reach, reach, (len(ids), 3))

    return _checked(randomise, 0, reach)


def friction(low: float, high: float, *geoms: str) -> Reset:
    """Sliding, torsional and rolling friction of geoms. MuJoCo takes the larger of the two geoms in contact."""
    return _scaled("geom_friction", "geom", geoms, low, high)


def damping(low: float, high: float, *joints: str) -> Reset:
    return _scaled("dof_damping", "joint", joints, low, high)


def armature(low: float, high: float, *joints: str) -> Reset:
    return _scaled("dof_armature", "joint", joints, low, high)


def actuator_gain(low: float, high: float, *actuators: str) -> Reset:
    """Gain of actuators; of position and velocity servos, stiffness and damping by the same factor."""

    def randomise(sim: Sim, i: int, rng: np.random.Generator) -> None:
        ids = _ids(sim, "actuator", actuators)
        factor = rng.uniform(low, high, len(ids))[:, None]
        sim.varied("actuator_gainprm")[i, ids] *= factor
        sim.varied("actuator_biasprm")[i, ids] *= factor

    return _checked(randomise, low, high)


def gravity(low: float, high: float) -> Reset:
    def randomise(sim: Sim, i: int, rng: np.random.Generator) -> None:
        sim.varied("opt.gravity")[i] *= rng.uniform(low, high)

    return _checked(randomise, low, high)


def push(body: str, every: tuple[float, float], force: float, lasting: float = 0.1) -> Disturb:
    """Push `body` at its centre of mass, horizontally in any direction, with up to `force` N for `lasting` s, at random
    intervals of `every` s from the episode's begin on. Pushes begin and end with a step."""
    if not 0 < every[0] <= every[1]:
        raise InvalidRequest(f"the time between pushes must be 0 < low <= high, not {every}", param="every")

    def disturb(sim: Sim) -> None:
        begins = sim.memory.setdefault(f"push {body} begins", np.zeros(sim.n))
        ends = sim.memory.setdefault(f"push {body} ends", np.zeros(sim.n))
        applied, now = sim.field("xfrc_applied")[:, sim.model.body(body).id], sim.elapsed * sim.dt
        for i in np.flatnonzero(sim.elapsed == 0).tolist():
            begins[i], ends[i] = sim.rng[i].uniform(*every), np.inf
        over = ends <= now
        applied[over], ends[over] = 0, np.inf
        for i in np.flatnonzero(begins <= now).tolist():
            angle, size = sim.rng[i].uniform(0, 2 * np.pi), sim.rng[i].uniform(0, force)
            applied[i, :2] = size * np.cos(angle), size * np.sin(angle)
            ends[i] = begins[i] + lasting
            begins[i] += sim.rng[i].uniform(*every)

    return disturb


def _scaled(field: str, kind: str, names: tuple[str, ...], low: float, high: float) -> Reset:
    """Rows of `field` that belong to objects of `kind`, each by a factor of its own."""

    def randomise(sim: Sim, i: int, rng: np.random.Generator) -> None:
        ids = _ids(sim, "dof" if field.startswith("dof_") else kind, names)
        values, factor = sim.varied(field), rng.uniform(low, high, len(ids))
        values[i, ids] *= factor if values.ndim == 2 else factor[:, None]

    return _checked(randomise, low, high)


def _checked(randomise: Reset, low: float, high: float) -> Reset:
    if not 0 <= low <= high:
        raise InvalidRequest(f"a range must be 0 <= low <= high, not {low}..{high}", param="low")
    return randomise


def _ids(sim: Sim, kind: str, names: tuple[str, ...]) -> np.ndarray:
    """Rows of the named objects; of all of the kind (of bodies, all but the world) without names."""
    model = sim.model
    if kind == "dof":
        joints = [model.joint(name) for name in names] if names else [model.joint(j) for j in range(model.njnt)]
        return np.concatenate([np.arange(len(joint.damping)) + joint.dofadr[0] for joint in joints])
    if names:
        return np.array([getattr(model, kind)(name).id for name in names])
    return np.arange(1 if kind == "body" else 0, {"body": model.nbody, "geom": model.ngeom, "actuator": model.nu}[kind])

"""Scenes of one's own: a file in MJCF or URDF as a task, and what is wrong with it.

A file may come from anywhere, so that it reads nothing outside of its own folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest, SimulationFailed
from atoll.physical.sim.model import compile_model, read_model
from atoll.physical.sim.rollout import at_random
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Task

CONTROL_S = 0.02
"""An action lasts about so long."""
HORIZON = 1000
MAX_BYTES, MAX_FILES = 16 << 20, 100
DIRECTORIES = ("meshdir", "texturedir", "assetdir")


def load_scene(path: Path) -> Task:
    """The file as a task: positions and velocities are seen, actuators are driven, nothing is rewarded. Episodes begin
    at the first keyframe, if there is one. Raises InvalidRequest with MuJoCo's message and line, or naming the file
    that lies outside of the folder."""
    check_files(path)
    model = compile_model(read_model(path), path.name)
    return Task(
        name=path.stem,
        about=f"the scene of {path.name}",
        model=lambda: read_model(path),
        observations={"qpos": lambda sim: sim.qpos, "qvel": lambda sim: sim.qvel},
        rewards={},
        reset=begin,
        act=lambda sim, action: np.copyto(sim.ctrl, action),
        action_low=_bounds(model, 0, -1.0),
        action_high=_bounds(model, 1, 1.0),
        frame_skip=max(1, round(CONTROL_S / model.opt.timestep)),
        horizon=HORIZON,
        camera=0 if model.ncam else -1,
    )


def begin(sim: Sim, i: int, rng: np.random.Generator) -> None:
    if sim.model.nkey:
        sim.qpos[i], sim.qvel[i], sim.ctrl[i] = sim.model.key_qpos[0], sim.model.key_qvel[0], sim.model.key_ctrl[0]


def _bounds(model: mujoco.MjModel, side: int, otherwise: float) -> Array:
    """Of actuators without a control range: `otherwise`."""
    return np.where(model.actuator_ctrllimited, model.actuator_ctrlrange[:, side], otherwise).astype(np.float32)


def check_files(path: Path) -> None:
    """Raises InvalidRequest where `path`, or a file that it includes, names a file outside of the folder of `path`."""
    folder, seen, todo = path.parent.resolve(), set(), [path]
    while todo:
        file = todo.pop()
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        if len(seen) > MAX_FILES:
            raise InvalidRequest(f"'{path.name}' includes more than {MAX_FILES} files", param="model")
        root = _parse(file)
        places = [folder] + [folder / e.get(d) for e in root.iter("compiler") for d in DIRECTORIES if e.get(d)]
        for place in places[1:]:
            _within(folder, place, path)
        for element in root.iter():
            for name, value in element.attrib.items():
                if not name.startswith("file"):
                    continue
                value = value.removeprefix("package://").removeprefix("file://")
                inside = element.tag in ("include", "model")
                for place in places[:1] if inside or len(places) == 1 else places[1:]:
                    found = _within(folder, place / value, path)
                    if inside and found.is_file():
                        todo.append(found)


def _parse(file: Path) -> ElementTree.Element:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InvalidRequest(f"'{file.name}' is larger than {MAX_BYTES >> 20} MiB", param="model")
        return ElementTree.parse(file).getroot()
    except OSError as error:
        raise InvalidRequest(f"'{file.name}' cannot be read: {error.strerror}", param="model") from None
    except ElementTree.ParseError as error:
        raise InvalidRequest(f"'{file.name}' is not a model: {error}", param="model") from None


def _within(folder: Path, found: Path, model: Path) -> Path:
    """`found`, if it lies in `folder` when links are followed."""
    if not found.resolve().is_relative_to(folder):
        raise InvalidRequest(f"'{model.name}' names a file outside of its folder: '{found.name}'", param="model")
    return found


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a scene holds, how often `sims` simulations of it broke in `seconds` s of random actions, the fastest joint
    (rad/s or m/s), and what is odd about it."""

    bodies: int
    joints: int
    actuators: int
    mass_kg: float
    sims: int
    seconds: float
    broken: int
    fastest: float
    findings: tuple[str, ...]


def inspect(path: Path, seconds: float = 5.0, sims: int = 8, seed: int = 0) -> Inspection:
    """Simulate the scene with random actions, and look at its masses and inertias. Raises InvalidRequest."""
    sim = Sim(load_scene(path), sims, seed=seed)
    model, findings, height = sim.model, [], sim.field("xpos")[:, :, 2]
    fastest, breaks = _shake(sim, round(seconds / sim.dt), seed)
    if breaks:
        findings.append(f"the physics broke: {breaks[0]}")
    if height.min() < -10:
        findings.append("something falls without end: is there a floor that it collides with?")
    if not model.nu:
        findings.append("it has no actuators: nothing can be done in it")
    findings += masses(model)
    return Inspection(
        bodies=model.nbody - 1, joints=model.njnt, actuators=model.nu, mass_kg=float(model.body_mass.sum()), sims=sims,
        seconds=seconds, broken=sim.broken, fastest=fastest, findings=tuple(findings),
    )  # fmt: skip


def _shake(sim: Sim, steps: int, seed: int) -> tuple[float, list[str]]:
    """The largest speed, and why physics broke."""
    act, seen, fastest = at_random(sim, seed), sim.reset(), 0.0
    for _ in range(steps):
        try:
            seen = sim.step(act(seen, np.zeros(sim.n, bool)), begin=True).observation
        except SimulationFailed as error:
            return fastest, [str(error)]
        fastest = max(fastest, float(np.abs(sim.qvel).max(initial=0)))
    return fastest, [f"{sim.broken} times"] if sim.broken else []


def masses(model: mujoco.MjModel) -> list[str]:
    """What is odd about masses and inertias. The radius of gyration of a body cannot be larger than the body: one that
    is twice as large, or a hundredth of it, is in the wrong unit."""
    said = []
    for i in range(1, model.nbody):
        name, mass, inertia = model.body(i).name or f"body {i}", float(model.body_mass[i]), model.body_inertia[i]
        size = _size(model, i)
        if not mass or not size:
            continue
        gyration = float(np.sqrt(inertia.max() / mass))
        if gyration > 2 * size or gyration < size / 100:
            said.append(f"the inertia of '{name}' does not fit its size: its radius of gyration is {gyration:.3g} m, "
                        f"its shapes reach {size:.3g} m")  # fmt: skip
        density = mass / (4 / 3 * np.pi * size**3)
        if density > 25_000:
            said.append(f"'{name}' has {mass:.3g} kg within {size:.3g} m: denser than any metal")
    moving = [float(model.body_mass[i]) for i in range(1, model.nbody) if model.body_mass[i] > 0]
    if moving and max(moving) > 1e5 * min(moving):
        said.append(
            f"masses reach from {min(moving):.3g} to {max(moving):.3g} kg: contacts between them are not stable"
        )
    return said


def _size(model: mujoco.MjModel, body: int) -> float:
    """How far the shapes of a body reach from its centre of mass, m; 0 where it has none."""
    at, many = model.body_geomadr[body], model.body_geomnum[body]
    if not many:
        return 0.0
    geoms = slice(at, at + many)
    apart = np.linalg.norm(model.geom_pos[geoms] - model.body_ipos[body], axis=1)
    return float((apart + model.geom_rbound[geoms]).max())

"""A humanoid that stands and walks at commanded velocities: Gymnasium's body, with servos in its joints.

Gymnasium's stands on balls; this one has flat feet on ankles, so that it can stand still. The servos hold a pose with
knees slightly bent. Told to go, it marches to a clock of 1.25 strides a second, which it sees: the leg that swings is
bent and stretched again. Actions are the servos' targets but for that motion, which is added to them. A gait to begin
from, as in Gu et al., "Humanoid-Gym: Reinforcement Learning for Humanoid Robot with
Zero-Shot Sim2Real Transfer" (2024).
"""

from __future__ import annotations

import mujoco
import numpy as np

from atoll.core.manifest import Channel
from atoll.physical.sim import randomise
from atoll.physical.sim.envs import legged
from atoll.physical.sim.envs.gym_terms import ASSETS
from atoll.physical.sim.model import read_model
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

POSE = {
    "right_hip_y": -25.0, "left_hip_y": -25.0, "right_knee": -50.0, "left_knee": -50.0,
    "right_ankle_y": -24.0, "left_ankle_y": -24.0,
    "right_shoulder1": -10.0, "left_shoulder1": 10.0, "right_elbow": -60.0, "left_elbow": -60.0,
}  # fmt: skip
"""Degrees; all other joints are at zero."""
JOINTS = (
    "abdomen_z", "abdomen_y", "abdomen_x",
    "right_hip_x", "right_hip_z", "right_hip_y", "right_knee", "right_ankle_y",
    "left_hip_x", "left_hip_z", "left_hip_y", "left_knee", "left_ankle_y",
    "right_shoulder1", "right_shoulder2", "right_elbow", "left_shoulder1", "left_shoulder2", "left_elbow",
)  # fmt: skip
HOME = np.radians([POSE.get(name, 0.0) for name in JOINTS])
REACH = np.array([0.3, 0.3, 0.3, *(0.25, 0.25, 0.7, 0.8, 0.5) * 2, *(0.5, 0.5, 0.5) * 2])
LOW, HIGH = (HOME - REACH).astype(np.float32), (HOME + REACH).astype(np.float32)
STRENGTH = np.array([120, 120, 120, *(120, 100, 300, 300, 300) * 2, *(30, 30, 30) * 2])
"""Stiffness of the servos, N m/rad; their most torque is as large in N m."""
HEIGHT = 1.23
SOLE = (0.11, 0.05, 0.03)
"""Half the length, width and thickness of a foot, m."""
FEET = ("right_foot", "left_foot")
RIGHT = np.array([True, False])
"""The foot that stands in the first half of a stride."""
TIMESTEP, SUBSTEPS = 0.005, 4
LIFT, STRIDES = 0.08, 1.25
"""How high a foot is lifted, m; strides a second."""
BEND = {"hip_y": -0.35, "knee": -0.7, "ankle_y": -0.35}
SWING = np.array([[BEND.get(name.removeprefix(leg), 0.0) for name in JOINTS] for leg in ("right_", "left_")])
"""By how much the joints are bent in the middle of a swing of the right and the left leg, rad."""
SWUNG = np.flatnonzero(SWING.any(axis=0))
SPEEDS = (1.0, 0.3, 0.6)


def model() -> mujoco.MjSpec:
    """Gymnasium's humanoid; only feet touch the floor, and servos replace its motors."""
    spec = read_model(ASSETS / "humanoid.xml")
    option = spec.option
    option.timestep, option.integrator = TIMESTEP, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver, option.iterations = mujoco.mjtSolver.mjSOL_NEWTON, 10
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = int(geom.name == "floor"), int(geom.name in FEET)
        if geom.name in FEET:
            add_ankle(spec, geom)
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    low = LOW + SWING.sum(axis=0)
    for name, strength, *reach in zip(JOINTS, STRENGTH.tolist(), low.tolist(), HIGH.tolist(), strict=True):
        spec.joint(name).stiffness[0] = 0
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=True)
        servo.gaintype, servo.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
        servo.gainprm[0], servo.biasprm[1:3] = strength, [-strength, -strength / 25]
        servo.forcerange, servo.ctrlrange = [-strength, strength], reach
    return spec


def add_ankle(spec: mujoco.MjSpec, foot: mujoco.MjsGeom) -> None:
    """A flat foot in place of a ball, as low as that, which turns up and down around the ball's centre."""
    centre, radius = foot.pos.copy(), foot.size[0]
    foot.type, foot.size, foot.condim = mujoco.mjtGeom.mjGEOM_BOX, SOLE, 3
    foot.pos = centre + np.array([0.04, 0, SOLE[2] - radius])
    spec.body(foot.name).add_joint(
        name=f"{foot.name.removesuffix('_foot')}_ankle_y", type=mujoco.mjtJoint.mjJNT_HINGE, pos=centre, axis=[0, 1, 0],
        range=[-60, 60], armature=0.006, damping=1,
    )  # fmt: skip


def march(sim: Sim) -> Array:
    """How far joints are to be from where they stand now that legs take turns to swing, rad, (n, 19)."""
    up = np.sin(legged.phase(sim, STRIDES))[:, None] * (-1, 1)
    return np.where(legged.moves(sim)[:, None], np.maximum(up, 0) @ SWING, 0)


def act(sim: Sim, action: Array) -> None:
    """Targets, rad, to which the march is added; for what is not a number, the pose at rest."""
    sim.ctrl[:] = np.clip(np.where(np.isfinite(action), action, HOME), LOW, HIGH) + march(sim)


def joint_position(sim: Sim) -> Array:
    """From home, rad, (n, 19)."""
    return sim.qpos[:, legged.ROOT :] - HOME


def last_target(sim: Sim) -> Array:
    return sim.ctrl - HOME


def height(sim: Sim) -> Array:
    return sim.qpos[:, 2]


def feet_height(sim: Sim) -> Array:
    """Of the lowest point of the right and the left foot, m, (n, 2)."""
    feet = [sim.model.geom(name).id for name in FEET]
    up = sim.field("geom_xmat")[:, feet].reshape(sim.n, 2, 9)[..., 6:]
    return sim.field("geom_xpos")[:, feet, 2] - np.abs(up) @ SOLE


def gait(sim: Sim) -> Array:
    return legged.gait(sim, feet_height(sim), RIGHT, STRIDES, LIFT)


def marching(sim: Sim) -> Array:
    """1 where the legs are as the march has them, 0.37 at 0.55 rad from it."""
    error = np.square(joint_position(sim) - march(sim))[:, SWUNG].sum(axis=1)
    return np.exp(-error / 0.3)


def posture(sim: Sim) -> Array:
    """How far joints are from home, but for hips, knees and ankles, which walk."""
    weights = np.array([1, 1, 1, *(1, 1, 0.05, 0.05, 0.05) * 2, *(0.3, 0.3, 0.3) * 2])
    return np.square(joint_position(sim)) @ weights


def fallen(sim: Sim) -> Array:
    return (height(sim) < 0.9) | (legged.gravity(sim)[:, 2] > -0.6)


def fell(sim: Sim) -> Array:
    return fallen(sim).astype(float)


def task() -> Task:
    return Task(
        name="humanoid-walk",
        about="a humanoid that stands and walks at commanded velocities",
        model=model,
        observations={
            "gyro": legged.gyro,
            "gravity": legged.gravity,
            "velocity": legged.velocity,
            "height": height,
            "command": legged.command,
            "clock": legged.clock(STRIDES),
            "joint_position": joint_position,
            "joint_velocity": legged.joint_velocity,
            "target": last_target,
        },
        rewards={
            "linear": Reward(legged.track_linear, 1.0),
            "angular": Reward(legged.track_angular, 0.8),
            "alive": Reward(legged.alive, 0.5),
            "gait": Reward(gait, 1.0),
            "march": Reward(marching, 1.0),
            "posture": Reward(posture, -0.3),
            "bounce": Reward(legged.bounce, -0.1),
            "sway": Reward(legged.sway, -0.02),
            "tilt": Reward(legged.tilt, -1.0),
            "effort": Reward(legged.effort, -2e-6),
            "jerkiness": Reward(legged.jerkiness, -0.01),
            "fallen": Reward(fell, -5.0),
        },
        terminations={"fallen": fallen},
        reset=legged.standing(HOME, HEIGHT, spread=0.03),
        before=legged.keep,
        act=act,
        action_low=LOW,
        action_high=HIGH,
        safe=tuple(HOME.tolist()),
        command_size=3,
        command=legged.commands(SPEEDS, every_s=5.0),
        success=legged.followed(0.3, 0.4),
        randomise=(randomise.friction(0.7, 1.3, *FEET), randomise.mass(0.95, 1.05, "torso")),
        frame_skip=SUBSTEPS,
        channels=(
            Channel("gyro", 3, "rad/s"),
            Channel("gravity", 3, "", -1, 1),
            Channel("velocity", 3, "m/s"),
            Channel("height", 1, "m"),
            Channel("command", 3, "m/s, m/s, rad/s", -1, 1),
            Channel("clock", 2, "", -1, 1),
            Channel("joint_position", 19, "rad"),
            Channel("joint_velocity", 19, "rad/s"),
            Channel("target", 19, "rad"),
        ),
        actions=tuple(
            Channel(name, 1, "rad", low, high)
            for name, low, high in zip(JOINTS, LOW.tolist(), HIGH.tolist(), strict=True)
        ),
        camera="track",
    )

"""A quadruped that goes where it is told: forward, sideways and turning at commanded velocities.

Unitree Go1. As in Rudin et al., "Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning"
(2022), with servos as in MuJoCo Playground (Zakka et al., 2025). Only its feet touch the ground. It trots to a clock of
two strides a second, which it sees: diagonal legs take turns.
"""

from __future__ import annotations

import mujoco
import numpy as np

from atoll.core.manifest import Channel
from atoll.physical.sim import randomise
from atoll.physical.sim.envs import legged
from atoll.physical.sim.envs.scenery import add_sky
from atoll.physical.sim.model import read_model
from atoll.physical.sim.robots import HERE
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

HOME = np.tile([0.0, 0.9, -1.8], 4)
"""Abduction, hip and knee of the front right, front left, rear right and rear left leg, rad."""
REACH = np.tile([0.3, 0.6, 0.7], 4)
LOW, HIGH = (HOME - REACH).astype(np.float32), (HOME + REACH).astype(np.float32)
HEIGHT = 0.27
FEET = ("FR", "FL", "RR", "RL")
DIAGONAL = np.array([True, False, False, True])
"""Legs that stand in the first half of a stride."""
FOOT, LIFT, STRIDES = 0.023, 0.05, 2.0
"""Radius of a foot and how high it is lifted, m; strides a second."""
STIFFNESS, DAMPING = 35.0, 0.5
TIMESTEP, SUBSTEPS = 0.005, 4
JOINT_SPEED = np.tile([30.1, 30.1, 20.06], 4)
"""The fastest that joints turn, rad/s (Unitree's go1_description)."""
SPEEDS = (1.0, 0.5, 1.0)
"""The fastest commands: forward and sideways, m/s; turning, rad/s."""


def model() -> mujoco.MjSpec:
    """Go1 on a plane. All other shapes than the feet are there to be seen."""
    spec = read_model(HERE / "go1" / "go1.xml")
    spec.option.timestep, spec.option.integrator = TIMESTEP, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_PYRAMIDAL, 1
    add_sky(spec)
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05], rgba=[0.36, 0.4, 0.44, 1], condim=3,
        contype=1, conaffinity=0,
    )  # fmt: skip
    for geom in spec.geoms:
        if geom.name in FEET:
            geom.condim, geom.contype, geom.conaffinity = 3, 0, 1
            geom.solimp[:3] = 0.9, 0.95, 0.001
        elif geom.name != "floor":
            geom.contype = geom.conaffinity = 0
    for joint in spec.joints[1:]:
        joint.damping[0], joint.armature, joint.frictionloss = DAMPING, 0.005, 0.3
    for actuator in spec.actuators:
        actuator.gainprm[0], actuator.biasprm[1] = STIFFNESS, -STIFFNESS
    return spec


def joint_position(sim: Sim) -> Array:
    """From home, rad, (n, 12)."""
    return sim.qpos[:, legged.ROOT :] - HOME


def last_target(sim: Sim) -> Array:
    return sim.ctrl - HOME


def posture(sim: Sim) -> Array:
    """How far the joints are from home; abduction weighs most, since it is least needed."""
    return np.square(joint_position(sim)) @ np.tile([1.0, 0.3, 0.1], 4)


def feet_height(sim: Sim) -> Array:
    """Of the lowest point of each foot, m, (n, 4)."""
    return sim.field("geom_xpos")[:, [sim.model.geom(name).id for name in FEET], 2] - FOOT


def gait(sim: Sim) -> Array:
    return legged.gait(sim, feet_height(sim), DIAGONAL, STRIDES, LIFT)


def fallen(sim: Sim) -> Array:
    return (legged.gravity(sim)[:, 2] > -0.5) | (sim.qpos[:, 2] < 0.15)


def fell(sim: Sim) -> Array:
    return fallen(sim).astype(float)


CHANNELS = (
    Channel("gyro", 3, "rad/s"),
    Channel("gravity", 3, "", -1, 1),
    Channel("velocity", 3, "m/s"),
    Channel("command", 3, "m/s, m/s, rad/s", -1, 1),
    Channel("clock", 2, "", -1, 1),
    Channel("joint_position", 12, "rad"),
    Channel("joint_velocity", 12, "rad/s"),
    Channel("target", 12, "rad"),
)
LEGS = ("front_right", "front_left", "rear_right", "rear_left")
ACTIONS = tuple(
    Channel(f"{leg}_{joint}", 1, "rad", float(LOW[3 * i + k]), float(HIGH[3 * i + k]))
    for i, leg in enumerate(LEGS)
    for k, joint in enumerate(("abduction", "hip", "knee"))
)


def task() -> Task:
    return Task(
        name="go1-velocity",
        about="a quadruped that follows velocity commands",
        model=model,
        observations={
            "gyro": legged.gyro,
            "gravity": legged.gravity,
            "velocity": legged.velocity,
            "command": legged.command,
            "clock": legged.clock(STRIDES),
            "joint_position": joint_position,
            "joint_velocity": legged.joint_velocity,
            "target": last_target,
        },
        rewards={
            "linear": Reward(legged.track_linear, 1.0),
            "angular": Reward(legged.track_angular, 0.5),
            "alive": Reward(legged.alive, 0.5),
            "gait": Reward(gait, 1.0),
            "posture": Reward(posture, -0.1),
            "bounce": Reward(legged.bounce, -0.3),
            "sway": Reward(legged.sway, -0.01),
            "tilt": Reward(legged.tilt, -0.5),
            "effort": Reward(legged.effort, -5e-5),
            "jerkiness": Reward(legged.jerkiness, -0.03),
            "fallen": Reward(fell, -5.0),
        },
        terminations={"fallen": fallen},
        reset=legged.standing(HOME, HEIGHT),
        before=legged.keep,
        act=legged.targets(LOW, HIGH),
        action_low=LOW,
        action_high=HIGH,
        command_size=3,
        command=legged.commands(SPEEDS, every_s=5.0),
        success=legged.followed(0.25, 0.25),
        randomise=(
            randomise.friction(0.6, 1.6, *FEET),
            randomise.mass(0.9, 1.2, "trunk"),
            randomise.centre_of_mass(0.03, "trunk"),
            randomise.actuator_gain(0.9, 1.1),
        ),
        disturb=(randomise.push("trunk", every=(4.0, 10.0), force=60.0),),
        frame_skip=SUBSTEPS,
        channels=CHANNELS,
        actions=ACTIONS,
        velocity=tuple(JOINT_SPEED.tolist()),
        safe=tuple(HOME.tolist()),
        camera="tracking",
    )

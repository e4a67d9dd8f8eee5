"""A quadrotor that flies to a point and stays there.

Four rotors push along the body's z axis and turn it by their drag (Mahony, Kumar, Corke, "Multirotor Aerial Vehicles",
IEEE Robotics & Automation Magazine, 2012): a frame of 0.5 kg, with rotors 0.17 m from its centre in an X.
"""

from __future__ import annotations

import mujoco
import numpy as np

from atoll.core.manifest import Channel
from atoll.physical.sim import randomise
from atoll.physical.sim.envs import legged
from atoll.physical.sim.envs.scenery import add_sky
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

ARM, MASS, THRUST, DRAG, GRAVITY = 0.12, 0.5, 3.0, 0.016, 9.81
"""Rotors' distance from the axes, m; kg; most thrust of a rotor, N; torque by thrust, m; m/s²."""
HOVER, SPOOL = MASS * GRAVITY / 4, 0.03
"""Thrust of a rotor that holds the drone up, N; seconds from none to most, as small brushless motors take."""
ROTORS = ((1, 1, -1), (1, -1, 1), (-1, -1, -1), (-1, 1, 1))
"""Signs of x, y and of the drag's torque: front left, front right, rear right, rear left."""
ROOM = np.array([1.5, 1.5, 0.8])
MIDDLE = np.array([0, 0, 1.2])
NEAR = 0.1


def model() -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.modelname = "drone"
    spec.option.timestep, spec.option.integrator = 0.005, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.density = 1.2
    add_sky(spec)
    world = spec.worldbody
    world.add_light(pos=[0, 0, 4], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    world.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[4, 4, 0.05], rgba=[0.36, 0.4, 0.44, 1], contype=1,
        conaffinity=0,
    )  # fmt: skip
    goal = world.add_body(name="goal", mocap=True, pos=MIDDLE)
    goal.add_geom(size=[0.05, 0, 0], rgba=[0.2, 0.7, 0.35, 0.6], contype=0, conaffinity=0)
    drone = world.add_body(name="drone", pos=MIDDLE)
    drone.add_freejoint()
    drone.add_geom(
        name="frame", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.06, 0.04, 0.02], mass=0.3, rgba=[0.15, 0.2, 0.25, 1],
        contype=0, conaffinity=1,
    )  # fmt: skip
    drone.add_camera(name="front", pos=[0.07, 0, 0], xyaxes=[0, -1, 0, 0, 0, 1], fovy=80)
    world.add_camera(name="room", pos=[0, -4, 2.2], xyaxes=[1, 0, 0, 0, 0.25, 0.97], fovy=50)
    for name, (x, y, turn) in zip(("front_left", "front_right", "rear_right", "rear_left"), ROTORS, strict=True):
        place = [x * ARM, y * ARM, 0.01]
        drone.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.06, 0.005, 0], pos=place, mass=0.05,
            rgba=[0.8, 0.3, 0.2, 1] if x > 0 else [0.6, 0.65, 0.7, 1], contype=0, conaffinity=1,
        )  # fmt: skip
        drone.add_site(name=name, pos=place)
        motor = spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_SITE, ctrllimited=True, ctrlrange=[0, THRUST]
        )
        motor.gear = [0, 0, 1, 0, 0, turn * DRAG]
    return spec


def offset(sim: Sim) -> Array:
    """From the drone to the goal in its own frame, m, (n, 3)."""
    return legged.into_frame(sim.qpos[:, 3:7], sim.field("mocap_pos")[:, 0] - sim.qpos[:, :3])


def attitude(sim: Sim) -> Array:
    """The goal's axes are the world's: those, x and z, in the drone's frame, (n, 6)."""
    x = legged.into_frame(sim.qpos[:, 3:7], np.tile([1.0, 0, 0], (sim.n, 1)))
    return np.concatenate((x, -legged.gravity(sim)), axis=1)


def distance(sim: Sim) -> Array:
    return np.linalg.norm(sim.field("mocap_pos")[:, 0] - sim.qpos[:, :3], axis=1)


def heading(sim: Sim) -> Array:
    """1 where it looks along x, 0 where it looks back."""
    return (1 + attitude(sim)[:, 0]) / 2


def speed(sim: Sim) -> Array:
    return np.square(sim.qvel[:, :3]).sum(axis=1)


def spin(sim: Sim) -> Array:
    return np.square(sim.qvel[:, 3:6]).sum(axis=1)


def near(sim: Sim) -> Array:
    return np.exp(-2 * distance(sim))


def precise(sim: Sim) -> Array:
    return np.exp(-np.square(distance(sim) / NEAR))


def lost(sim: Sim) -> Array:
    """On the floor, far off or upside down."""
    return (sim.qpos[:, 2] < 0.08) | (distance(sim) > 5) | (legged.gravity(sim)[:, 2] > 0.3)


def arrived(sim: Sim) -> Array:
    """Within 10 cm of the goal, slower than 0.2 m/s and within 30 degrees of its heading, for a second."""
    there = (distance(sim) < NEAR) & (speed(sim) < 0.04) & (attitude(sim)[:, 0] > 0.866)
    since = sim.memory.setdefault("away", np.zeros(sim.n, np.int64))
    since[~there] = sim.elapsed[~there]
    since[since > sim.elapsed] = sim.elapsed[since > sim.elapsed]
    return (sim.elapsed - since) * sim.dt >= 1.0


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    turn = rng.uniform(-np.pi, np.pi) / 2
    sim.qpos[i, :3] = MIDDLE + rng.uniform(-1, 1, 3) * ROOM
    sim.qpos[i, 3:7] = [np.cos(turn), *rng.uniform(-0.15, 0.15, 2), np.sin(turn)]
    sim.qpos[i, 3:7] /= np.linalg.norm(sim.qpos[i, 3:7])
    sim.qvel[i] = rng.uniform(-0.5, 0.5, 6)
    sim.field("mocap_pos")[i, 0] = MIDDLE + rng.uniform(-1, 1, 3) * ROOM


def act(sim: Sim, action: Array) -> None:
    """Thrusts, N; of what is not a number, what hovers."""
    sim.ctrl[:] = np.clip(np.where(np.isfinite(action), action, HOVER), 0, THRUST)


def task() -> Task:
    return Task(
        name="drone-hover",
        about="a quadrotor that flies to a pose and stays there",
        model=model,
        observations={
            "offset": offset,
            "velocity": legged.velocity,
            "attitude": attitude,
            "gyro": legged.gyro,
        },
        rewards={
            "near": Reward(near),
            "precise": Reward(precise),
            "heading": Reward(heading, 0.3),
            "speed": Reward(speed, -0.02),
            "spin": Reward(spin, -0.01),
        },
        terminations={"lost": lost},
        reset=reset,
        act=act,
        success=arrived,
        randomise=(randomise.mass(0.9, 1.1, "drone"), randomise.actuator_gain(0.95, 1.05)),
        disturb=(randomise.push("drone", every=(2.0, 6.0), force=1.0),),
        frame_skip=4,
        horizon=500,
        channels=(
            Channel("offset", 3, "m"),
            Channel("velocity", 3, "m/s"),
            Channel("attitude", 6, "", -1, 1),
            Channel("gyro", 3, "rad/s"),
        ),
        actions=tuple(
            Channel(f"thrust_{name}", 1, "N", 0, THRUST)
            for name in ("front_left", "front_right", "rear_right", "rear_left")
        ),
        velocity=4 * (THRUST / SPOOL,),
        safe=4 * (HOVER,),
        camera="room",
    )

"""What the tasks of the tabletop arm share: the scene, observations, and how a simulation begins.

A Panda stands at the edge of a table whose top is z = 0; a block (a cube, free to move) and a goal (a disc or a ball
that nothing touches) lie before it. Lengths in metres, angles in radians, world frame: x away from the robot, z up.

Actions are seven joint position targets (rad) and the gripper's opening (m). The servos' targets move towards them no
faster than the real joints may, so that any action, also one that is not a number, is a safe one. 20 actions a second.
"""

from __future__ import annotations

from functools import partial

import mujoco
import numpy as np

from atoll.core.manifest import Channel
from atoll.physical.sim import randomise
from atoll.physical.sim.robots import GRIPPER_WIDTH, PANDA_ACCELERATION, PANDA_HOME, PANDA_VELOCITY, panda
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Task

HALF = 0.02
"""Half of the block's edge, m."""
AREA = np.array([[0.38, -0.2], [0.58, 0.2]])
"""Where blocks and goals are put, m: corners of a rectangle on the table."""
ARM = slice(0, 7)
BLOCK = slice(9, 16)
TIMESTEP, SUBSTEPS = 0.005, 10
SPEED = np.array([*PANDA_VELOCITY, 0.1])
"""How fast targets move: rad/s, and m/s of the gripper's opening (50 mm/s a finger)."""
ACCELERATION = (*PANDA_ACCELERATION, 2.0)
"""rad/s², and m/s² of the gripper, for which none is published: at full speed within an action."""
LOW = np.array([-0.8, -1.0, -0.8, -3.05, -0.6, 1.3, -1.6, 0.0], np.float32)
HIGH = np.array([0.8, 1.0, 0.8, -1.1, 0.6, 3.5, 2.85, GRIPPER_WIDTH], np.float32)
"""Actions, rad and m: what the table needs, within what the arm can do."""
HOLD = 10
"""Steps, half a second, for which a success must last to be none in passing."""

JOINTS = Channel("joint_position", 7, "rad", -2.9, 3.8)
SPEEDS = Channel("joint_velocity", 7, "rad/s", -2.7, 2.7)
GRIPPER = Channel("gripper", 1, "m", 0.0, GRIPPER_WIDTH)
TIP = Channel("end_effector", 3, "m", -1.0, 1.0)
BLOCK_POSITION = Channel("object_position", 3, "m", -1.0, 1.0)
BLOCK_ROTATION = Channel("object_rotation", 6, "", -1.0, 1.0)
GOAL = Channel("goal", 3, "m", -1.0, 1.0)
ACTIONS = (
    *(Channel(f"joint{i + 1}", 1, "rad", float(LOW[i]), float(HIGH[i])) for i in range(7)),
    Channel("gripper", 1, "m", 0.0, GRIPPER_WIDTH),
)


def scene(block: bool = True, ball: bool = False) -> mujoco.MjSpec:
    """Table, arm, goal and cameras (`front`, `wrist`). The goal is a ball in the air, or a disc on the table. Only what
    can be reached collides: not the floor, nor the upper arm, which actions cannot bring near the table."""
    spec = panda()
    spec.modelname = "tabletop"
    spec.option.timestep, spec.option.integrator = TIMESTEP, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    world = spec.worldbody
    spec.visual.headlight.ambient[:], spec.visual.headlight.diffuse[:] = 0.25, 0.25
    spec.visual.headlight.specular[:] = 0
    for pos, dir, power in (([0.6, -0.6, 1.6], [-0.2, 0.4, -1], 0.45), ([0.4, 0.8, 1.4], [0, -0.5, -1], 0.15)):
        sun = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
        world.add_light(pos=pos, dir=dir, type=sun, diffuse=[power] * 3, specular=[0.1] * 3)
    world.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1], pos=[0, 0, -0.7], rgba=[0.36, 0.4, 0.44, 1],
        contype=0, conaffinity=0,
    )  # fmt: skip
    world.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.5, 0.6, 0.02], pos=[0.35, 0, -0.02],
        rgba=[0.72, 0.6, 0.47, 1],
    )  # fmt: skip
    world.add_camera(name="front", pos=[1.0, 0, 0.55], xyaxes=[0, 1, 0, -0.65, 0, 0.76], fovy=45)
    spec.body("hand").add_camera(name="wrist", pos=[0.07, 0, 0.01], xyaxes=[0, -1, 0, -0.95, 0, -0.31], fovy=70)
    for name in ("link1", "link2", "link3", "link4"):
        for geom in spec.body(name).geoms:
            geom.contype = 0
    if block:
        _add_block(world)
    _add_goal(world, ball)
    return spec


def _add_block(world: mujoco.MjsBody) -> None:
    body = world.add_body(name="block", pos=[0.5, 0, HALF])
    body.add_freejoint(name="block")
    body.add_geom(
        name="block", type=mujoco.mjtGeom.mjGEOM_BOX, size=[HALF] * 3, mass=0.1, rgba=[0.8, 0.25, 0.2, 1],
        priority=1, solref=[2 * TIMESTEP, 1], solimp=[0.95, 0.99, 0.001, 0.5, 2],
    )  # fmt: skip


def _add_goal(world: mujoco.MjsBody, ball: bool) -> None:
    body = world.add_body(name="goal", pos=[0.5, 0.1, 0], mocap=True)
    shape = mujoco.mjtGeom.mjGEOM_SPHERE if ball else mujoco.mjtGeom.mjGEOM_CYLINDER
    body.add_geom(
        name="goal", type=shape, size=[0.02, 0, 0] if ball else [0.03, 0.001, 0], rgba=[0.2, 0.7, 0.35, 1],
        contype=0, conaffinity=0, group=2,
    )  # fmt: skip


def act(sim: Sim, action: Array) -> None:
    """Move the servos' targets towards `action` (n, 8); what is not a number stays where it is."""
    wanted = np.where(np.isfinite(action), np.clip(action, LOW, HIGH), sim.ctrl)
    reach = SPEED * sim.dt
    sim.ctrl += np.clip(wanted - sim.ctrl, -reach, reach)


def joints(sim: Sim) -> Array:
    return sim.qpos[:, ARM]


def velocities(sim: Sim) -> Array:
    return sim.qvel[:, ARM]


def opening(sim: Sim) -> Array:
    """How far the gripper is open, m, (n,)."""
    return sim.qpos[:, 7] + sim.qpos[:, 8]


def tip(sim: Sim) -> Array:
    """Between the fingertips, m, (n, 3)."""
    return sim.field("site_xpos")[:, 0]


def block(sim: Sim) -> Array:
    """The block's centre, m, (n, 3)."""
    return sim.qpos[:, 9:12]


def block_rotation(sim: Sim) -> Array:
    """The block's x and y axes, (n, 6): continuous, unlike angles and quaternions (Zhou et al., CVPR 2019)."""
    w, x, y, z = sim.qpos[:, 12:16].T
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return np.stack(first + second, axis=1)


def goal(sim: Sim) -> Array:
    """m, (n, 3)."""
    return sim.field("mocap_pos")[:, 0]


def distance(a: Array, b: Array) -> Array:
    return np.linalg.norm(a - b, axis=1)


def near(distance: Array, scale: float) -> Array:
    """1 at no distance, 0.24 at `scale`, towards 0 far off."""
    return 1 - np.tanh(distance / scale)


def haste(sim: Sim) -> Array:
    """What to punish so that the arm moves calmly: the square of the joints' speeds."""
    return np.square(velocities(sim)).sum(axis=1)


def dropped(sim: Sim) -> Array:
    """The block fell off the table."""
    return block(sim)[:, 2] < -0.05


def begin(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """The arm at home, give or take 0.02 rad, the gripper open."""
    sim.qpos[i, ARM] = PANDA_HOME + rng.uniform(-0.02, 0.02, 7)
    sim.qpos[i, 7:9] = GRIPPER_WIDTH / 2
    sim.ctrl[i, ARM], sim.ctrl[i, 7] = sim.qpos[i, ARM], GRIPPER_WIDTH


def put_block(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """Somewhere in the area, turned by up to 45 degrees either way (a cube has no more)."""
    turn = rng.uniform(-np.pi / 4, np.pi / 4) / 2
    sim.qpos[i, BLOCK] = [*rng.uniform(*AREA), HALF, np.cos(turn), 0, 0, np.sin(turn)]


def put_goal(sim: Sim, i: int, rng: np.random.Generator, apart: float) -> None:
    """Somewhere on the table in the area, at least `apart` from the block."""
    here = sim.qpos[i, 9:11]
    there = rng.uniform(*AREA)
    while np.linalg.norm(there - here) < apart:
        there = rng.uniform(*AREA)
    sim.field("mocap_pos")[i, 0] = [*there, 0]


VARIED = (randomise.mass(0.5, 2.0, "block"), randomise.friction(0.6, 1.2, "block"))
"""Of a block of 0.1 kg whose friction is 1; its friction is what counts, whatever it touches."""
ARM_OBSERVATIONS = {
    "joint_position": joints,
    "joint_velocity": velocities,
    "gripper": opening,
    "end_effector": tip,
}
BLOCK_OBSERVATIONS = {"object_position": block, "object_rotation": block_rotation}
table_task = partial(
    Task, act=act, action_low=LOW, action_high=HIGH, actions=ACTIONS, frame_skip=SUBSTEPS, camera="front", hold=HOLD,
    velocity=tuple(SPEED.tolist()), acceleration=ACCELERATION, measured=("joint_position", "gripper"),
)

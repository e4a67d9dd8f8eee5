"""A car that keeps its lane and its distance on a winding road with slower traffic.

The car moves in the plane (x, y and yaw): its tyres push sideways in proportion to their slip angle, up to what
friction allows (Rajamani, "Vehicle Dynamics and Control", 2012, sections 2.3 and 2.4), engine and brakes along it. The
road's centre is a sum of two sines of x. Two cars lead in the same lane, one comes towards it in the other.
"""

from __future__ import annotations

import mujoco
import numpy as np

from atoll.core.manifest import Channel
from atoll.physical.sim import randomise
from atoll.physical.sim.envs.scenery import add_sky
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Reward, Task

LANE = 3.5
MASS, INERTIA, FRONT, REAR, LENGTH = 1500.0, 2500.0, 1.2, 1.5, 4.4
"""kg, kg m², metres from the centre of mass to the axles, length in m."""
CORNERING, GRIP, GRAVITY = 80_000.0, 0.9, 9.81
"""Side force of an axle by slip angle, N/rad; friction of the tyres; m/s²."""
DRIVE, BRAKE, AIR = 4500.0, 9000.0, 0.6
"""Most force of engine and of brakes, N; drag by the square of the speed, N s²/m²."""
STEER, STEER_RATE = 0.2, 0.5
"""rad and rad/s of the front wheels."""
PEDAL_RATE, GENTLE = 5.0, -0.3
"""How fast the pedal moves, shares of its range a second (from rest to full brakes in 0.2 s); braking at 1.8 m/s²."""
CARS = 3
ONCOMING = 2
AHEAD = np.array([5.0, 10.0, 20.0, 35.0, 50.0])
"""Where the lane is looked at, m ahead."""
SLOWEST, FASTEST, SIGHT = 10.0, 20.0, 80.0
"""Of wanted speeds, m/s; how far a car ahead is seen, m."""
WAVES = np.array([[6.0, 0.021, 0.0], [2.0, 0.057, 1.3]])
"""The road's centre: y is the sum of amplitude * sin(number * x + phase): m, rad/m, rad."""
SEGMENT, ROAD = 10.0, 1400.0
HIGH = np.array([STEER, 1.0], np.float32)
CHANNELS = (
    Channel("velocity", 3, "m/s, m/s, rad/s"),
    Channel("wheels", 1, "rad", -STEER, STEER),
    Channel("lane_offset", 1, "m"),
    Channel("lane_ahead", 5, "m"),
    Channel("car_ahead", 2, "m, m/s"),
    Channel("wanted_speed", 1, "m/s", SLOWEST, FASTEST),
)


def road(x: Array) -> Array:
    """y of the road's centre, m."""
    return sum(a * np.sin(k * x + p) for a, k, p in WAVES)


def slope(x: Array) -> Array:
    """dy/dx of the road's centre."""
    return sum(a * k * np.cos(k * x + p) for a, k, p in WAVES)


def model() -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.modelname = "road"
    spec.option.timestep, spec.option.integrator = 0.01, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.map.zfar = 400
    spec.stat.extent = 10
    add_sky(spec)
    _add_road(spec.worldbody)
    _add_ego(spec)
    for i in range(CARS):
        other = spec.worldbody.add_body(name=f"car{i}", mocap=True, pos=[30 * (i + 1), 0, 0])
        _add_shell(other, [0.2 + 0.25 * i, 0.3, 0.6 - 0.2 * i, 1])
    return spec


def _add_road(world: mujoco.MjsBody) -> None:
    world.add_light(pos=[0, 0, 50], dir=[0.3, 0.2, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    world.add_geom(name="grass", type=plane, size=[0, 0, 1], rgba=[0.3, 0.45, 0.25, 1], contype=0, conaffinity=0)
    for x in np.arange(-30, ROAD, SEGMENT):
        for side, width, colour in (
            (0.0, LANE + 0.3, [0.25, 0.25, 0.27, 1]),
            (-LANE, 0.08, [0.9, 0.9, 0.9, 1]),
            (LANE, 0.08, [0.9, 0.9, 0.9, 1]),
            (0.0, 0.06, [0.95, 0.85, 0.3, 1]),
        ):
            long = SEGMENT / 2 + 0.4 if width > 1 or side else SEGMENT / 4
            y, turn = road(x), np.arctan(slope(x))
            world.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, size=[long, width, 0.005 if width > 1 else 0.008],
                pos=[x - side * np.sin(turn), y + side * np.cos(turn), 0], euler=[0, 0, np.degrees(turn)],
                rgba=colour, contype=0, conaffinity=0,
            )  # fmt: skip


def _add_ego(spec: mujoco.MjSpec) -> None:
    hinge, slide = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
    ego = spec.worldbody.add_body(name="ego", mass=MASS, inertia=[500, INERTIA, INERTIA], explicitinertial=True)
    for name, axis, kind in (("x", [1, 0, 0], slide), ("y", [0, 1, 0], slide), ("yaw", [0, 0, 1], hinge)):
        ego.add_joint(name=name, type=kind, axis=axis)
    _add_shell(ego, [0.75, 0.2, 0.18, 1], seen_from_within=True)
    ego.add_camera(name="cockpit", pos=[0.25, 0.36, 1.15], xyaxes=[0, -1, 0, 0.1, 0, 0.995], fovy=65)
    ego.add_camera(name="chase", pos=[-9, 0, 4.5], xyaxes=[0, -1, 0, 0.36, 0, 0.93], fovy=50)
    ego.add_site(name="centre")
    for name, gear in (("along", [1, 0, 0, 0, 0, 0]), ("across", [0, 1, 0, 0, 0, 0]), ("turn", [0, 0, 0, 0, 0, 1])):
        force = spec.add_actuator(name=name, target="centre", trntype=mujoco.mjtTrn.mjTRN_SITE)
        force.gear = gear


def _add_shell(body: mujoco.MjsBody, colour: list[float], seen_from_within: bool = False) -> None:
    """A body with a cabin, without contacts; with pillars, a dashboard and a wheel if it is looked out of."""
    box = mujoco.mjtGeom.mjGEOM_BOX

    def add(size: tuple[float, ...], pos: tuple[float, ...], rgba: list[float], **more: object) -> None:
        body.add_geom(type=box, size=size, pos=pos, rgba=rgba, contype=0, conaffinity=0, mass=0, **more)

    glass, dark = [0.1, 0.12, 0.15, 1], [0.08, 0.08, 0.09, 1]
    add((LENGTH / 2, 0.9, 0.3), (0, 0, 0.5), colour)
    if not seen_from_within:
        add((1.0, 0.8, 0.3), (-0.3, 0, 1.1), glass)
        return
    add((0.15, 0.8, 0.06), (0.85, 0, 0.86), dark)
    for side in (-1, 1):
        add((0.04, 0.04, 0.35), (0.8, 0.82 * side, 1.15), dark, euler=[0, -30, 0])
    add((0.9, 0.85, 0.03), (-0.4, 0, 1.5), dark)
    body.add_geom(
        name="wheel", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.17, 0.012, 0], pos=[0.68, 0.36, 0.9],
        euler=[0, -65, 0], rgba=dark, contype=0, conaffinity=0, mass=0,
    )  # fmt: skip


def body_velocity(sim: Sim) -> tuple[Array, Array, Array]:
    """Forward and to the left, m/s, and yaw, rad/s, each (n,)."""
    cos, sin = np.cos(sim.qpos[:, 2]), np.sin(sim.qpos[:, 2])
    vx, vy, turn = sim.qvel.T
    return cos * vx + sin * vy, cos * vy - sin * vx, turn


def motion(sim: Sim) -> Array:
    return np.stack(body_velocity(sim), axis=1)


def wheels(sim: Sim) -> Array:
    """Angle of the front wheels, rad, (n,)."""
    return sim.memory.setdefault("wheels", np.zeros(sim.n))


def wanted(sim: Sim) -> Array:
    """The last action, within its range, (n, 2)."""
    return sim.memory.setdefault("wanted", np.zeros((sim.n, 2)))


def speeds(sim: Sim) -> Array:
    """Of the other cars along the road, m/s, (n, CARS)."""
    return sim.memory.setdefault("speeds", np.full((sim.n, CARS), SLOWEST))


def lane(x: Array) -> Array:
    """y of the middle of the right lane, m."""
    return road(x) - LANE / 2 * np.sqrt(1 + np.square(slope(x)))


def offset(sim: Sim) -> Array:
    """To the left of the lane's middle, m, (n,)."""
    x, y, _ = sim.qpos.T
    return (y - lane(x)) / np.sqrt(1 + np.square(slope(x)))


def lookahead(sim: Sim) -> Array:
    """How far to the left the lane's middle is at each distance ahead, m, (n, 5)."""
    x, y, yaw = sim.qpos.T[:, :, None]
    at = x + AHEAD * np.cos(yaw)
    return (lane(at) - y) * np.cos(yaw) - (at - x) * np.sin(yaw)


def lead(sim: Sim) -> tuple[Array, Array]:
    """Metres of road to the car ahead in the same lane, at most SIGHT, and its speed, m/s, each (n,)."""
    x = sim.qpos[:, :1]
    apart = (sim.field("mocap_pos")[:, :ONCOMING, 0] - x) * np.sqrt(1 + np.square(slope(x)))
    apart = np.where(apart > 0, apart - LENGTH, np.inf)
    first = apart.argmin(axis=1)
    gap, own = apart[sim.all, first], speeds(sim)[sim.all, first]
    seen = gap < SIGHT
    return np.where(seen, gap, SIGHT), np.where(seen, own, FASTEST)


def traffic(sim: Sim) -> Array:
    return np.stack(lead(sim), axis=1)


def proper_speed(sim: Sim) -> Array:
    """The wanted speed, or what closes the gap to the car ahead to 1.5 s and 5 m gently, m/s, (n,)."""
    gap, own = lead(sim)
    return np.clip(own + 0.3 * (gap - 5.0 - 1.5 * body_velocity(sim)[0]), 0.0, sim.command[:, 0])


def errors(sim: Sim) -> Array:
    """From the lane's middle, m, and from the proper speed, m/s, (n, 2)."""
    return np.abs(np.stack((offset(sim), body_velocity(sim)[0] - proper_speed(sim)), axis=1))


def centred(sim: Sim) -> Array:
    return np.exp(-np.square(errors(sim)[:, 0] / 0.5))


def paced(sim: Sim) -> Array:
    return np.exp(-np.square(errors(sim)[:, 1] / 3.0))


def too_close(sim: Sim) -> Array:
    """0 with 1 s and 3 m to the car ahead, 1 at its bumper."""
    return np.clip(1 - lead(sim)[0] / (3.0 + body_velocity(sim)[0].clip(0)), 0, 1)


def swing(sim: Sim) -> Array:
    """Square of the sideways acceleration, (m/s²)²."""
    forward, _, turn = body_velocity(sim)
    return np.square(forward * turn)


def haste(sim: Sim) -> Array:
    """Squares of the changes of the action, as shares of its range."""
    return np.square((wanted(sim) - sim.memory["last"]) / HIGH).sum(axis=1)


def off_lane(sim: Sim) -> Array:
    return np.abs(offset(sim)) > LANE / 2


def crashed(sim: Sim) -> Array:
    return lead(sim)[0] <= 0


def keep(sim: Sim) -> None:
    """Ahead of a step: the last action, and the sums of errors of the episode."""
    sim.memory["last"] = wanted(sim).copy()
    sums = sim.memory.setdefault("errors", np.zeros((sim.n, 2)))
    sums += errors(sim)
    sums[sim.elapsed == 0] = 0


def drove_well(sim: Sim) -> Array:
    """To the end, on average within 0.4 m of the lane's middle and 1.5 m/s of the proper speed."""
    mean = sim.memory["errors"] / np.maximum(sim.elapsed - 1, 1)[:, None]
    return (sim.elapsed >= sim.task.horizon) & (mean < (0.4, 1.5)).all(axis=1)


def act(sim: Sim, action: Array) -> None:
    """Wheels turn towards the wanted angle; tyres and engine push. What is not a number is straight on, rolling."""
    asked, steer, reach = wanted(sim), wheels(sim), STEER_RATE * sim.dt
    asked[:] = np.where(np.isfinite(action), np.clip(action, -HIGH, HIGH), 0.0)
    steer += np.clip(asked[:, 0] - steer, -reach, reach)
    forward, left, turn = body_velocity(sim)
    safe = np.maximum(forward, 5.0)  # slip angles are not defined at rest
    load = GRIP * MASS * GRAVITY / (FRONT + REAR) * np.array([REAR, FRONT])
    front = np.clip(CORNERING * (steer - (left + FRONT * turn) / safe), -load[0], load[0])
    rear = np.clip(-CORNERING * (left - REAR * turn) / safe, -load[1], load[1])
    pedal = asked[:, 1]
    drive = np.where(pedal > 0, DRIVE * pedal, BRAKE * pedal * np.clip(forward, 0, 1))
    sim.ctrl[:, 0] = drive - AIR * forward * np.abs(forward) - front * np.sin(steer)
    sim.ctrl[:, 1] = front * np.cos(steer) + rear
    sim.ctrl[:, 2] = FRONT * front * np.cos(steer) - REAR * rear


def drive_others(sim: Sim) -> None:
    """The other cars follow the road; every four seconds one of those ahead chooses another speed."""
    own = speeds(sim)
    for i in np.flatnonzero(sim.elapsed % 100 == 99).tolist():
        own[i, sim.rng[i].integers(ONCOMING)] = sim.rng[i].uniform(0.6 * SLOWEST, FASTEST)
    x = sim.field("mocap_pos")[:, :, 0] + own * sim.dt / np.sqrt(1 + np.square(slope(sim.field("mocap_pos")[:, :, 0])))
    x[:, 1] = np.maximum(x[:, 1], x[:, 0] + 2 * LENGTH)
    place_others(sim, sim.all, x)


def place_others(sim: Sim, ids: Array | int, x: Array) -> None:
    """In the right lane, but for the one that comes towards."""
    y = lane(x)
    y[..., ONCOMING] = 2 * road(x[..., ONCOMING]) - y[..., ONCOMING]
    angle = np.arctan(slope(x)) / 2
    zero = np.zeros_like(x)
    sim.field("mocap_pos")[ids] = np.stack((x, y, zero), axis=-1)
    sim.field("mocap_quat")[ids] = np.stack((np.cos(angle), zero, zero, np.sin(angle)), axis=-1)


def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """Somewhere in the first 100 m, nearly in the lane, at nearly the speed of traffic."""
    x, speed = rng.uniform(0, 100), rng.uniform(SLOWEST, FASTEST)
    yaw = np.arctan(slope(x)) + rng.uniform(-0.03, 0.03)
    sim.qpos[i] = [x, lane(x) + rng.uniform(-0.5, 0.5), yaw]
    sim.qvel[i] = [speed * np.cos(yaw), speed * np.sin(yaw), 0]
    wheels(sim)[i] = wanted(sim)[i] = 0
    first = x + LENGTH + rng.uniform(25, 70)
    speeds(sim)[i] = [*rng.uniform(0.8 * SLOWEST, FASTEST, ONCOMING), -rng.uniform(SLOWEST, FASTEST)]
    place_others(sim, i, np.array([first, first + rng.uniform(25, 60), x + rng.uniform(200, 600)]))


def wanted_speed(sim: Sim, begun: Array) -> None:
    for i in begun.tolist():
        sim.command[i] = sim.rng[i].uniform(SLOWEST, FASTEST)


def task() -> Task:
    return Task(
        name="lane-driving",
        about="a car that keeps its lane and its distance",
        model=model,
        observations={
            "velocity": motion,
            "wheels": wheels,
            "lane_offset": offset,
            "lane_ahead": lookahead,
            "car_ahead": traffic,
            "wanted_speed": lambda sim: sim.command,
        },
        rewards={
            "centred": Reward(centred),
            "paced": Reward(paced),
            "too_close": Reward(too_close, -2.0),
            "swing": Reward(swing, -0.01),
            "haste": Reward(haste, -0.05),
            "failed": Reward(lambda sim: (off_lane(sim) | crashed(sim)).astype(float), -10.0),
        },
        terminations={"off_lane": off_lane, "crashed": crashed},
        reset=reset,
        before=keep,
        act=act,
        action_low=-HIGH,
        action_high=HIGH,
        command_size=1,
        command=wanted_speed,
        success=drove_well,
        randomise=(randomise.mass(0.9, 1.2, "ego"),),
        disturb=(drive_others,),
        frame_skip=4,
        horizon=1000,
        channels=CHANNELS,
        velocity=(STEER_RATE, PEDAL_RATE),
        safe=(0.0, GENTLE),
        actions=(Channel("steering", 1, "rad", -STEER, STEER), Channel("pedal", 1, "", -1, 1)),
        camera="cockpit",
    )

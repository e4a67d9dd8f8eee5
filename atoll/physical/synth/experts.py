"""Scripted experts: waypoints for the fingertips, made into joint targets by inverse kinematics. Many arms at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import NotFound
from atoll.physical.sim.envs import tabletop
from atoll.physical.sim.robots import GRIPPER_WIDTH, panda
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.ik import Solver, downward

Array = np.ndarray
Place = Callable[[Sim], tuple[Array, Array]]
NOISE_STREAM = 1
"""Keeps an expert's chance apart from the simulation's, which has the same seed."""
SAFE = 0.14
"""Height at which the fingertips travel, m."""
ACCELERATION = 1.5
"""m/s²"""
TURN, TWIST = 1.5, 6.0
"""rad/s, rad/s²"""
NEAR = 0.002
"""m, rad"""


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Go with the fingertips to `place` (positions (n, 3) and turns about the vertical (n,)) at `speed` (m/s), then
    open or close the gripper to `width` (m) and stay for `dwell` steps. `follow`: the place is looked up at every
    step, else once, when the waypoint before is done."""

    place: Place
    width: float
    speed: float = 0.3
    dwell: int = 0
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Noise:
    """How experts differ from episode to episode: standard deviations of where each waypoint is (m), and of what is
    executed instead of the joint targets meant (rad), which shows how to recover (Laskey et al., "DART", CoRL 2017)."""

    waypoint: float = 0.0
    action: float = 0.0

    def act(self, meant: Array, rng: Sequence[np.random.Generator]) -> Array:
        """What is executed where the actions `meant` (n, 8) are, float32."""
        done = meant.astype(np.float32)
        if self.action:
            done[:, :7] += self.action * np.stack([own.standard_normal(7) for own in rng])
        return done


STEADY = Noise()


class Expert:
    """Plays the waypoints of a task in every simulation, each at its own pace (`record.Actor`)."""

    def __init__(self, sim: Sim, waypoints: tuple[Waypoint, ...], noise: Noise):
        self.sim, self.waypoints, self.noise = sim, waypoints, noise
        bounds = np.stack([sim.action_low[:7], sim.action_high[:7]], axis=1).astype(np.float64)
        self.solver = Solver(panda(), "gripper", 7, sim.n, bounds=bounds)
        self.width, self.speed, self.dwell, self.follow = (
            np.array([getattr(waypoint, name) for waypoint in waypoints])
            for name in ("width", "speed", "dwell", "follow")
        )
        self.begin(range(sim.n))

    def begin(self, seeds: Sequence[int]) -> None:
        """Start at the first waypoint; an episode's noise depends on its seed alone."""
        n = self.sim.n
        self.rng = [np.random.default_rng([NOISE_STREAM, seed]) for seed in seeds]
        self.stage, self.waited, self.entered = np.zeros(n, np.int64), np.zeros(n, np.int64), np.ones(n, bool)
        self.joints = self.sim.ctrl[:, :7].copy()
        self.position, _ = self.solver.pose(self.joints)
        self.yaw, self.pace, self.spin = np.zeros(n), np.zeros(n), np.zeros(n)
        self.wanted, self.wanted_yaw = self.position.copy(), self.yaw.copy()

    def act(self, observation: Array) -> tuple[Array, Array]:
        """Actions (n, 8) to execute in the states that the simulations are in, which it knows without observing, and
        those that are meant."""
        self._look()
        stage = self.stage
        arrived = self._approach()
        self.waited = np.where(arrived, self.waited + 1, 0)
        grip = self.width[np.where(arrived, stage, np.maximum(stage - 1, 0))]
        self.entered = (self.waited > self.dwell[stage]) & (stage < len(self.waypoints) - 1)
        self.stage = stage + self.entered
        self.waited[self.entered] = 0
        self.joints, _ = self.solver.solve(self.joints, self.position, downward(self.yaw), iterations=2)
        meant = np.concatenate([self.joints, grip[:, None]], axis=1)
        return self.noise.act(meant, self.rng), meant.astype(np.float32)

    def facts(self, i: int) -> dict[str, int]:
        return {}

    def _look(self) -> None:
        """Find where to go, at the beginning of a waypoint or at every step of one that follows."""
        look = self.entered | self.follow[self.stage]
        for k in np.unique(self.stage[look]):
            ids = np.flatnonzero(look & (self.stage == k))
            position, yaw = self.waypoints[k].place(self.sim)
            self.wanted[ids], self.wanted_yaw[ids] = position[ids], yaw[ids]
        if self.noise.waypoint:
            for i in np.flatnonzero(self.entered):
                self.wanted[i] += self.noise.waypoint * self.rng[i].standard_normal(3)

    def _approach(self) -> Array:
        """Move the target a step towards what is wanted, speeding up and braking gently; True where it has arrived."""
        dt = self.sim.dt
        way, turn = self.wanted - self.position, self.wanted_yaw - self.yaw
        left = np.linalg.norm(way, axis=1)
        fastest = np.minimum(self.speed[self.stage], brake(left, ACCELERATION, dt))
        self.pace = np.minimum(fastest, self.pace + ACCELERATION * dt)
        self.spin = np.minimum(np.minimum(TURN, brake(np.abs(turn), TWIST, dt)), self.spin + TWIST * dt)
        self.position += way * np.minimum(1, self.pace * dt / np.maximum(left, 1e-9))[:, None]
        self.yaw += np.clip(turn, -self.spin * dt, self.spin * dt)
        return (left <= NEAR) & (np.abs(turn) <= NEAR)


def brake(left: Array, acceleration: float, dt: float) -> Array:
    """The highest speed from which, in steps of `dt`, one comes to rest within `left` at that acceleration."""
    return acceleration * dt * (np.sqrt(0.25 + 2 * left / (acceleration * dt**2)) - 0.5)


def above(position: Array, height: float) -> Array:
    return np.concatenate([position[:, :2], np.full((len(position), 1), height)], axis=1)


def half_turn(angle: Array) -> Array:
    """The same line's angle within a quarter turn either way."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def block_yaw(sim: Sim) -> Array:
    """How the block is turned, to the nearest face: within an eighth of a turn either way."""
    axis = tabletop.block_rotation(sim)
    return (np.arctan2(axis[:, 1], axis[:, 0]) + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _at_block(height: float) -> Place:
    return lambda sim: (above(tabletop.block(sim), height), block_yaw(sim))


def _here(height: float) -> Place:
    return lambda sim: (above(tabletop.tip(sim), height), block_yaw(sim))


def _at_goal(height: float) -> Place:
    return lambda sim: (above(tabletop.goal(sim), height), np.zeros(sim.n))


def _behind(back: float, height: float) -> Place:
    """On the line from the goal through the block, `back` metres behind the block; the fingers open across it."""

    def place(sim: Sim) -> tuple[Array, Array]:
        block, goal = tabletop.block(sim), tabletop.goal(sim)
        way = goal[:, :2] - block[:, :2]
        heading = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        position = above(block, height)
        position[:, :2] -= back * heading
        return position, half_turn(np.arctan2(heading[:, 1], heading[:, 0]))

    return place


def _along(sim: Sim) -> tuple[Array, Array]:
    """As far on from here as the block is from the goal."""
    block, goal = tabletop.block(sim), tabletop.goal(sim)
    _, yaw = _behind(0.0, LOW)(sim)
    return above(tabletop.tip(sim) + goal - block, LOW), yaw


OPEN, SHUT, FINGERS = GRIPPER_WIDTH, 0.0, 0.025
LOW, GRASP = 0.02, 0.018
EXPERTS: dict[str, tuple[Waypoint, ...]] = {
    "reach": (Waypoint(lambda sim: (tabletop.goal(sim), np.zeros(sim.n)), OPEN),),
    "push": (
        Waypoint(_behind(0.08, SAFE), FINGERS),
        Waypoint(_behind(0.08, LOW), FINGERS),
        Waypoint(_along, FINGERS, speed=0.12, follow=True),
    ),
    "pick-place": (
        Waypoint(_at_block(SAFE), OPEN),
        Waypoint(_at_block(GRASP), OPEN, speed=0.2, dwell=1),
        Waypoint(_at_block(GRASP), SHUT, dwell=11),
        Waypoint(_here(SAFE), SHUT),
        Waypoint(_at_goal(SAFE), SHUT),
        Waypoint(_at_goal(GRASP + 0.004), SHUT, speed=0.2, dwell=2),
        Waypoint(_at_goal(GRASP + 0.004), OPEN, dwell=8),
        Waypoint(_at_goal(SAFE), OPEN),
    ),
}


def expert(sim: Sim, noise: Noise = STEADY) -> Expert:
    """The expert of the simulation's task. Raises NotFound where there is none."""
    if sim.task.name not in EXPERTS:
        raise NotFound(f"there is no expert for '{sim.task.name}'; there are: {', '.join(EXPERTS)}", param="task")
    return Expert(sim, EXPERTS[sim.task.name], noise)

"""Many demonstrations out of a few: stretches of the few are moved with the things they belong to, bridged, and played.

After the idea of Mandlekar et al., "MimicGen: A Data Generation System for Scalable Robot Learning using Human
Demonstrations" (CoRL 2023), sections 4 and 5. Written from the paper; what succeeds in simulation is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Channel
from atoll.physical.sim.robots import panda
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.experts import STEADY, Noise
from atoll.physical.synth.ik import Solver, angle
from atoll.physical.synth.segments import Pose, Segment, named, segments_of

Array = np.ndarray
CHANCE = 2
"""Keeps a player's chance apart from the simulation's, which has the same seed."""
NEAREST, METRES_PER_RADIAN = 3, 0.1
TURN = 1.5
"""rad/s of a bridge"""
LEAST = 4
"""steps of a bridge"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Of one demonstration: poses of the fingertips meant, (t, 3) and (t, 3, 3), openings of the gripper (t,), and the
    pose of the thing that it belongs to when it began, (3,) and (3, 3)."""

    position: Array
    rotation: Array
    width: Array
    anchor: tuple[Array, Array]


class Player:
    """Plays stretches of `demonstrations` in every simulation (`record.Actor`). Raises InvalidRequest for one that does
    not have all the segments of the task, NotFound for a task whose segments are not known."""

    def __init__(self, sim: Sim, demonstrations: Sequence[Episode], noise: Noise = STEADY):
        self.sim, self.noise, self.segments = sim, noise, segments_of(sim.task.name)
        self.stretches = cut(demonstrations, sim.task.channels, self.segments)
        bounds = np.stack([sim.action_low[:7], sim.action_high[:7]], axis=1).astype(np.float64)
        self.solver = Solver(panda(), "gripper", 7, sim.n, bounds=bounds)

    def begin(self, seeds: Sequence[int]) -> None:
        n = self.sim.n
        self.rng = [np.random.default_rng([CHANCE, seed]) for seed in seeds]
        self.joints = self.sim.ctrl[:, :7].copy()
        self.position, self.rotation = self.solver.pose(self.joints)
        self.width = self.sim.ctrl[:, 7].copy()
        self.plans: list[tuple[Array, Array, Array]] = [(np.empty((0, 3)), np.empty((0, 3, 3)), np.empty(0))] * n
        self.segment, self.at, self.source = np.full(n, -1), np.zeros(n, int), np.full(n, -1)

    def act(self, observation: Array) -> tuple[Array, Array]:
        over = np.array([at == len(plan[2]) for at, plan in zip(self.at, self.plans, strict=True)])
        anew = np.flatnonzero(over & (self.segment < len(self.segments) - 1))
        if len(anew):
            self._plan(anew, observation)
        for i in np.flatnonzero(self.at < [len(plan[2]) for plan in self.plans]):
            position, rotation, width = self.plans[i]
            self.position[i], self.rotation[i], self.width[i] = (x[self.at[i]] for x in (position, rotation, width))
            self.at[i] += 1
        self.joints, _ = self.solver.solve(self.joints, self.position, self.rotation, iterations=2)
        meant = np.concatenate([self.joints, self.width[:, None]], axis=1)
        return self.noise.act(meant, self.rng), meant.astype(np.float32)

    def facts(self, i: int) -> dict[str, int]:
        return {"source": int(self.source[i])}

    def _plan(self, ids: Array, observation: Array) -> None:
        """The next segment of simulations `ids`, from where their things are now."""
        rows = named(observation, self.sim.task.channels)
        self.segment[ids] += 1
        for k in np.unique(self.segment[ids]):
            segment = self.segments[k]
            position, rotation = segment.anchor(rows)
            for i in ids[self.segment[ids] == k]:
                chosen, turned = choose(self.stretches[k], (position[i], rotation[i]), segment, self.rng[i])
                stretch = self.stretches[k][chosen]
                moved = flip(move(stretch, (position[i], turned)), self.rotation[i])
                self.plans[i] = self._bridge(i, moved, stretch.width, segment.speed)
                self.at[i] = 0
                self.source[i] = chosen

    def _bridge(self, i: int, to: Pose, width: Array, speed: float) -> tuple[Array, Array, Array]:
        """The way from where simulation `i` is meant to be to the first pose of `to`, and `to`."""
        away = np.linalg.norm(to[0][0] - self.position[i]) / speed
        turn = angle(to[1][0] @ self.rotation[i].T) / TURN
        steps = max(LEAST, int(np.ceil(max(away, turn) / self.sim.dt)))
        share = np.arange(1, steps + 1) / steps
        share = share**3 * (10 - 15 * share + 6 * share**2)
        position = self.position[i] + share[:, None] * (to[0][0] - self.position[i])
        ends = Rotation.from_matrix(np.stack([self.rotation[i], to[1][0]]))
        rotation = Slerp([0, 1], ends)(share).as_matrix()
        held = np.full(steps, self.width[i])
        return np.concatenate([position, to[0]]), np.concatenate([rotation, to[1]]), np.concatenate([held, width])


def cut(
    demonstrations: Sequence[Episode], channels: tuple[Channel, ...], segments: tuple[Segment, ...]
) -> list[list[Stretch]]:
    """The stretches of each segment, one a demonstration."""
    if not demonstrations:
        raise InvalidRequest("there must be at least one demonstration to amplify", param="demonstrations")
    actions = np.concatenate([episode.action for episode in demonstrations])
    position, rotation = Solver(panda(), "gripper", 7, len(actions)).pose(actions[:, :7])
    told: list[list[Stretch]] = [[] for _ in segments]
    first = 0
    for number, episode in enumerate(demonstrations):
        rows = named(episode.observation, channels)
        begin = 0
        for k, segment in enumerate(segments):
            begin = _first(segment.begins(rows), begin, number) if segment.begins else begin
            end = _first(segment.ends(rows), begin + 1, number) if segment.ends else len(episode)
            there = slice(first + begin, first + end)
            at, turned = segment.anchor(rows)
            anchor = at[begin].astype(np.float64), turned[begin]
            told[k].append(Stretch(position[there], rotation[there], episode.action[begin:end, 7], anchor))
            begin = end
        first += len(episode)
    return told


def choose(
    stretches: Sequence[Stretch], anchor: tuple[Array, Array], segment: Segment, rng: np.random.Generator
) -> tuple[int, Array]:
    """One of the stretches whose things were nearest to `anchor`, and the thing's rotation, turned by a symmetry of the
    thing if that is nearer."""
    spins = Rotation.from_rotvec(np.arange(segment.turns)[:, None] * [0, 0, 2 * np.pi / segment.turns]).as_matrix()
    rotations = anchor[1] @ spins
    places = np.stack([stretch.anchor[0] for stretch in stretches])
    angles = angle(rotations[:, None] @ np.stack([stretch.anchor[1].T for stretch in stretches]))
    costs = np.linalg.norm(anchor[0] - places, axis=1) + METRES_PER_RADIAN * angles.min(axis=0)
    chosen = int(rng.choice(np.argsort(costs, kind="stable")[:NEAREST]))
    return chosen, rotations[angles[:, chosen].argmin()]


def move(stretch: Stretch, anchor: tuple[Array, Array]) -> Pose:
    """The stretch's poses, as they were to its thing, to a thing at `anchor`."""
    turn = anchor[1] @ stretch.anchor[1].T
    return (stretch.position - stretch.anchor[0]) @ turn.T + anchor[0], turn @ stretch.rotation


def flip(poses: Pose, now: Array) -> Pose:
    """The poses with the gripper turned by half a turn about itself, if that is nearer to how it is turned now: its two
    fingers do the same either way."""
    position, rotation = poses
    over = rotation @ np.diag([-1.0, -1.0, 1.0])
    return position, over if angle(over[0] @ now.T) < angle(rotation[0] @ now.T) else rotation


def _first(flags: Array, after: int, number: int) -> int:
    found = np.flatnonzero(flags[after:])
    if not len(found):
        raise InvalidRequest(f"demonstration {number} lacks a segment of the task", param="demonstrations")
    return after + int(found[0])

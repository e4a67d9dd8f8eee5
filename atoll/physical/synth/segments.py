"""What a task's demonstrations are made of: stretches that each belong to one thing in the scene.

A stretch is moved with its thing; what lies between two stretches is not kept, but bridged. `Rows` are a
demonstration's, or those of many simulations: channels by name, (t, size) or (n, size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import NotFound
from atoll.core.manifest import Channel
from atoll.physical.sim.envs import tabletop

Array = np.ndarray
Rows = Mapping[str, Array]
Pose = tuple[Array, Array]
"""Positions (n, 3), m, and rotations (n, 3, 3)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`anchor` is the pose of the thing that it belongs to. The stretch begins and ends with the first step at which
    `begins` and `ends` are true; without them it follows the one before, or lasts to the end. The thing looks the same
    after 1/`turns` of a turn about the vertical. `speed` (m/s) is that of the bridge to the stretch."""

    anchor: Callable[[Rows], Pose]
    begins: Callable[[Rows], Array] | None = None
    ends: Callable[[Rows], Array] | None = None
    turns: int = 1
    speed: float = 0.25


def named(rows: Array, channels: tuple[Channel, ...]) -> dict[str, Array]:
    """Observations (n, o) by channel."""
    ends = np.cumsum([channel.size for channel in channels])
    return {c.name: rows[:, end - c.size : end] for c, end in zip(channels, ends, strict=True)}


def block(rows: Rows) -> Pose:
    first, second = np.split(rows["object_rotation"].astype(np.float64), 2, axis=1)
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    return rows["object_position"], np.stack([first, second, np.cross(first, second)], axis=2)


def goal(rows: Rows) -> Pose:
    return rows["goal"], np.tile(np.eye(3), (len(rows["goal"]), 1, 1))


def block_towards_goal(rows: Rows) -> Pose:
    """At the block, x pointing to the goal: where it is pushed from does not depend on how the block is turned."""
    return rows["object_position"], _heading(rows)


def goal_from_block(rows: Rows) -> Pose:
    return rows["goal"], _heading(rows)


def lifted(rows: Rows) -> Array:
    return rows["object_position"][:, 2] > tabletop.HALF + 0.01


def moved(rows: Rows) -> Array:
    return np.linalg.norm(rows["object_position"] - rows["object_position"][0], axis=1) > 0.005


def near(one: str, other: str, reach: float) -> Callable[[Rows], Array]:
    return lambda rows: np.linalg.norm(rows[one] - rows[other], axis=1) < reach


TIP, BLOCK = "end_effector", "object_position"
SEGMENTS: dict[str, tuple[Segment, ...]] = {
    "reach": (Segment(goal, begins=near(TIP, "goal", 0.1)),),
    "push": (
        Segment(block_towards_goal, begins=near(TIP, BLOCK, 0.17), ends=moved),
        Segment(goal_from_block, begins=near(BLOCK, "goal", 0.06), speed=0.08),
    ),
    "pick-place": (
        Segment(block, begins=near(TIP, BLOCK, 0.16), ends=lifted, turns=4),
        Segment(goal, begins=near(BLOCK, "goal", 0.16)),
    ),
}


def segments_of(task: str) -> tuple[Segment, ...]:
    """Raises NotFound."""
    if task not in SEGMENTS:
        raise NotFound(f"the segments of '{task}' are not known; those of: {', '.join(SEGMENTS)}", param="task")
    return SEGMENTS[task]


def _heading(rows: Rows) -> Array:
    way = (rows["goal"] - rows["object_position"])[:, :2].astype(np.float64)
    x, y = (way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)).T
    zero, one = np.zeros_like(x), np.ones_like(x)
    return np.stack([x, -y, zero, y, x, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)

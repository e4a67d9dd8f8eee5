"""What a robot policy is, as data: the file `policy.json` beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

PolicyKind = Literal["mlp", "cnn", "act", "diffusion"]


@dataclass(frozen=True, slots=True)
class Channel:
    """A named run of numbers in an observation or an action. `low`..`high` is what they may be, in `unit`."""

    name: str
    size: int
    unit: str = ""
    low: float = -inf
    high: float = inf


@dataclass(frozen=True, slots=True)
class Image:
    """A camera picture in an observation: `height` x `width` x 3, uint8."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ActionLimits:
    """What the server enforces on each action, whatever the policy says, per action dimension; empty: no limit.
    Velocity and acceleration are of the commanded value, per second and per second squared."""

    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    velocity: tuple[float, ...] = ()
    acceleration: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A policy gives `chunk` actions for one observation; they are `1 / rate_hz` seconds apart.

    `safe` is the action to fall back to when the policy is late or stopped (empty: hold the last). `measured` tells
    where in the observation the present value of each action stands (empty: in channels with the actions' names).
    Normalisation is part of the weights. `files` maps the policy's files to their SHA-256; `network` holds what `kind`
    needs to rebuild it (sizes, layers). `lineage` are digests of what it was learned from, by role (`dataset`, and the
    `demonstrations` that this was made of), where those are artifacts."""

    task: str
    kind: PolicyKind
    rate_hz: float
    observation: tuple[Channel, ...]
    action: tuple[Channel, ...]
    chunk: int = 1
    images: tuple[Image, ...] = ()
    limits: ActionLimits = ActionLimits()
    safe: tuple[float, ...] = ()
    measured: tuple[int, ...] = ()
    network: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)

    @property
    def observation_size(self) -> int:
        return sum(channel.size for channel in self.observation)

    @property
    def action_size(self) -> int:
        return sum(channel.size for channel in self.action)

"""What an environment is: a model, and plain functions over many simulations of it at once.

A term is a function of the running `Sim` that returns one value (or row) per simulation, so that rewards,
observations and terminations are written once and vectorised by numpy. `envs/half_cheetah.py` is the shortest example.

A sensor changes observations after they are made: it is given rows (k, size), the ids of those simulations that have
begun an episode (None: all go on), and what it keeps for itself (one row a simulation), and returns the rows as sensed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from atoll.core.manifest import Channel

if TYPE_CHECKING:
    from atoll.physical.sim.sim import Sim

Array = np.ndarray
Term = Callable[["Sim"], Array]
Sensor = Callable[["Sim", Array, "Array | None", dict[str, Array]], Array]
Reset = Callable[["Sim", int, np.random.Generator], None]
Disturb = Callable[["Sim"], None]


@dataclass(frozen=True, slots=True)
class Reward:
    """`weight` times `term`, which is (n,)."""

    term: Term
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An environment as data and plain functions.

    One environment step is `frame_skip` physics steps. An episode is cut (truncated) after `horizon` steps, and ends
    (terminates) where a termination says so. `act` writes the simulations' controls from actions (n, nu), which lie
    in `action_low`..`action_high` (None: the actuators' control range); by default the action is the control.
    `reset` writes the state of one simulation, which has the model's defaults, with that simulation's own generator.
    `randomise` changes model fields of one simulation at each of its resets, `disturb` the state ahead of each step
    (pushes). `before` is called ahead of each step and keeps in `sim.memory` what terms compare with. `success` tells
    which simulations have done what was asked; the gate counts it where it lasts for `hold` steps in a row.
    `velocity` and `acceleration` are how fast a served policy's actions may change, by dimension, in the units of the
    actions per second and second squared; `safe` is the action that a server falls back to (empty: brake and hold), and
    `measured` the observations that tell, one after the other, where the actions are now. `command_size` values in
    `sim.command` say what is asked; `command` draws them at a reset and may change them during an episode. `sensors`
    act on the observation after it is made (noise, delay). With `contact_forces`, fields `cacc`, `cfrc_int` and
    `cfrc_ext` are computed by each step (MuJoCo leaves them out), and are zero at a reset.
    """

    name: str
    model: Callable[[], mujoco.MjSpec]
    observations: Mapping[str, Term]
    rewards: Mapping[str, Reward]
    reset: Reset
    terminations: Mapping[str, Term] = field(default_factory=dict)
    frame_skip: int = 5
    horizon: int = 1000
    act: Callable[[Sim, Array], None] | None = None
    action_low: Array | None = None
    action_high: Array | None = None
    before: Callable[[Sim], None] | None = None
    randomise: tuple[Reset, ...] = ()
    disturb: tuple[Disturb, ...] = ()
    command_size: int = 0
    command: Callable[[Sim, Array], None] | None = None
    success: Term | None = None
    hold: int = 1
    sensors: tuple[Sensor, ...] = ()
    channels: tuple[Channel, ...] = ()
    actions: tuple[Channel, ...] = ()
    velocity: tuple[float, ...] = ()
    acceleration: tuple[float, ...] = ()
    safe: tuple[float, ...] = ()
    measured: tuple[str, ...] = ()
    camera: str | int = -1
    contact_forces: bool = False
    observation_dtype: Any = np.float32
    about: str = ""

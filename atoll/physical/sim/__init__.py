"""Environments by name. A task is a small file in `envs/` that has a function without arguments, returning a Task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from atoll.core.errors import NotFound, SetupError

if TYPE_CHECKING:
    from atoll.physical.sim.task import Task

TASKS = {
    "half-cheetah": "atoll.physical.sim.envs.half_cheetah:task",
    "hopper": "atoll.physical.sim.envs.hopper:task",
    "walker2d": "atoll.physical.sim.envs.walker2d:task",
    "ant": "atoll.physical.sim.envs.ant:task",
    "humanoid": "atoll.physical.sim.envs.humanoid:task",
    "humanoid-standup": "atoll.physical.sim.envs.humanoid_standup:task",
    "swimmer": "atoll.physical.sim.envs.swimmer:task",
    "reacher": "atoll.physical.sim.envs.reacher:task",
    "pusher": "atoll.physical.sim.envs.pusher:task",
    "inverted-pendulum": "atoll.physical.sim.envs.inverted_pendulum:task",
    "inverted-double-pendulum": "atoll.physical.sim.envs.inverted_double_pendulum:task",
    "go1-velocity": "atoll.physical.sim.envs.go1_velocity:task",
    "drone-hover": "atoll.physical.sim.envs.drone_hover:task",
    "humanoid-walk": "atoll.physical.sim.envs.humanoid_walk:task",
    "lane-driving": "atoll.physical.sim.envs.lane_driving:task",
    "reach": "atoll.physical.sim.envs.reach:task",
    "push": "atoll.physical.sim.envs.push:task",
    "pick-place": "atoll.physical.sim.envs.pick_place:task",
}


def load_task(name: str) -> Task:
    """The task of that name. Raises NotFound, or SetupError where the extra `physical` is missing."""
    if name not in TASKS:
        raise NotFound(f"there is no task '{name}'; there are: {', '.join(TASKS)}", param="task")
    module, _, function = TASKS[name].partition(":")
    try:
        return getattr(import_module(module), function)()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atoll"):
            raise
        raise SetupError(f"'{error.name}' is not installed; run: make physical") from None

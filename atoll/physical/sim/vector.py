"""Gymnasium's API over `Sim`: one environment, and a vector of them. Ids are `atoll/<task>-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from atoll.core.errors import InvalidRequest
from atoll.physical.sim import TASKS, load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Task
from atoll.physical.synth.render import Renderer, camera_id, open_renderer


def spaces(sim: Sim) -> tuple[Box, Box]:
    """Observation and action space of one simulation."""
    seen = Box(-np.inf, np.inf, (sim.observation_size,), sim.task.observation_dtype)
    return seen, Box(sim.action_low, sim.action_high, dtype=np.float32)


class Env(gymnasium.Env[np.ndarray, np.ndarray]):
    """One simulation. `step` does not begin a new episode by itself. `render` gives what the task's camera sees,
    (height, width, 3) uint8, with `render_mode` "rgb_array"."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, task: Task, render_mode: str | None = None, height: int = 240, width: int = 320):
        if render_mode not in (None, "rgb_array"):
            raise InvalidRequest(f"'render_mode' must be rgb_array or None, not {render_mode}", param="render_mode")
        self.sim = Sim(task, 1, threads=1)
        self.observation_space, self.action_space = spaces(self.sim)
        self.metadata = self.metadata | {"render_fps": round(1 / self.sim.dt)}
        self.render_mode, self._size = render_mode, (height, width)
        self._renderer: Renderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.sim.reset(None if seed is None else [seed])[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        done = self.sim.step(np.asarray(action)[None], begin=False)
        info = {"success": bool(done.success[0]), **{f"reward_{name}": float(v[0]) for name, v in done.terms.items()}}
        return done.observation[0], float(done.reward[0]), bool(done.terminated[0]), bool(done.truncated[0]), info

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = open_renderer(self.sim.model, *self._size)
        data = self.sim.physics.batch.get_data(0)
        mujoco.mj_forward(self.sim.model, data)
        return self._renderer.picture(data, camera_id(self.sim.model, self.sim.task.camera), geoms=False).rgb

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class Vector(VectorEnv):
    """n simulations that begin anew in the step that ends them (`AutoresetMode.SAME_STEP`)."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, task: Task, n: int, threads: int = 0):
        self.sim, self.num_envs = Sim(task, n, threads=threads), n
        self.single_observation_space, self.single_action_space = spaces(self.sim)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        return self.sim.reset(seeds), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        done = self.sim.step(actions)
        info: dict[str, Any] = {"success": done.success}
        if done.final:
            last, mask = np.zeros_like(done.observation), np.zeros(self.num_envs, bool)
            for i, seen in done.final.items():
                last[i], mask[i] = seen, True
            info |= {"final_obs": last, "_final_obs": mask}
        return done.observation, done.reward, done.terminated, done.truncated, info


def register() -> None:
    """Make every task known to `gymnasium.make` and `make_vec`."""
    for name in TASKS:
        gymnasium.register(
            id=f"atoll/{name}-v0",
            entry_point=lambda name=name, **options: Env(load_task(name), **options),
            vector_entry_point=lambda name=name, num_envs=1, **options: Vector(load_task(name), num_envs, **options),
        )

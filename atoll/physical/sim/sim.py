"""Many simulations of one task, stepped together: `step` reads as the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.sim.model import add_contact_forces, compile_model
from atoll.physical.sim.physics import Cores, Physics
from atoll.physical.sim.task import Array, Task, Term


class Step(NamedTuple):
    """What a step returned, for n simulations. Those that ended (`terminated` or `truncated`) have begun anew:
    `observation` is the first of the next episode, `final` maps their ids to the last of the one that ended.
    `terms` are the weighted rewards by name. `success` is of the state before the new beginning."""

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    final: dict[int, Array]
    terms: dict[str, Array]


class Sim:
    """n simulations. Fields of MjData and MjModel are had by `field`; `qpos`, `qvel` and `ctrl` are attributes.

    `action` is the last action, `elapsed` the steps of the running episodes, `command` what is asked of each,
    `memory` what terms keep between steps (one row a simulation). Each simulation has a generator of its own, seeded
    with `seed` + its id, so that its episodes do not depend on how many others there are.
    """

    def __init__(
        self,
        task: Task,
        n: int = 1,
        *,
        seed: int = 0,
        threads: int = 0,
        physics: Callable[[Task, int], Physics] | None = None,
    ):
        if n < 1:
            raise InvalidRequest(f"there must be at least one simulation, not {n}", param="n")
        self.task, self.n = task, n
        self.physics = physics(task, n) if physics else on_cores(task, n, threads)
        self.model = self.physics.model
        self.qpos, self.qvel, self.ctrl = (self.field(name) for name in ("qpos", "qvel", "ctrl"))
        self.dt = self.model.opt.timestep * task.frame_skip
        bounds = self.model.actuator_ctrlrange.astype(np.float32)
        self.action_low = bounds[:, 0] if task.action_low is None else np.asarray(task.action_low, np.float32)
        self.action_high = bounds[:, 1] if task.action_high is None else np.asarray(task.action_high, np.float32)
        self.action = np.zeros((n, len(self.action_low)), np.float32)
        self.elapsed = np.zeros(n, np.int64)
        self.command = np.zeros((n, task.command_size))
        self.memory: dict[str, Array] = {}
        self.all = np.arange(n)
        self.broken = 0
        self.rng = _generators(range(n))
        self._begin(self.all)
        self._try_terms()
        self.rng = _generators(range(seed, seed + n))

    def field(self, name: str) -> Array:
        """Values of every simulation, (n, ...): data (`xpos`) or model (`body_mass`; writing it is per simulation)."""
        return self.physics.field(name)

    def reset(self, seeds: Sequence[int] | None = None) -> Array:
        """Begin an episode in every simulation; returns the observations, (n, size)."""
        if seeds is not None:
            self.rng = _generators(seeds)
        self._begin(self.all)
        return self.observe()

    def step(self, action: Array, *, begin: bool = True) -> Step:
        """One environment step of every simulation by `action`, (n, size). Simulations whose episode ends begin anew,
        unless `begin` is false. Raises InvalidRequest for an action of another shape, and by the name of the term for
        one that fails."""
        if np.shape(action) != self.action.shape:
            raise InvalidRequest(f"'action' must be {self.action.shape}, not {np.shape(action)}", param="action")
        task = self.task
        self.action[:] = action
        if task.before:
            task.before(self)
        if task.act:
            task.act(self, self.action)
        else:
            self.ctrl[:] = self.action
        self.physics.step(task.frame_skip)
        self.elapsed += 1
        broken = self.physics.failed()
        terms = {name: task.rewards[name].weight * value for name, value in self._rewards()}
        reward = sum(terms.values(), start=np.zeros(self.n))
        terminated = np.zeros(self.n, bool)
        for _, ends in self._values("termination", task.terminations):
            terminated |= ends
        success = task.success(self) if task.success else np.zeros(self.n, bool)
        if len(broken):
            self.broken += len(broken)
            reward[broken], terminated[broken], success[broken] = 0.0, True, False
        truncated = (self.elapsed >= task.horizon) & ~terminated
        if task.command:
            task.command(self, np.empty(0, np.int64))
        observation = self.observe()
        ended = np.flatnonzero(terminated | truncated)
        final = {int(i): observation[i].copy() for i in ended}
        if len(ended) and begin:
            self._begin(ended)
            observation = self.observe()
        return Step(observation, reward, terminated, truncated, success, final, terms)

    def observe(self) -> Array:
        """(n, size), in the order of the task's observations, after its sensors."""
        parts = [np.reshape(value, (self.n, -1)) for _, value in self._values("observation", self.task.observations)]
        seen = np.concatenate(parts, axis=1, dtype=self.task.observation_dtype, casting="same_kind")
        for sensor in self.task.sensors:
            seen = sensor(self, seen)
        return seen

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, as arrays and plain values. After `restore` of it, the same actions
        give the same steps to the last bit."""
        return {
            "physics": self.physics.state(),
            "memory": {name: value.copy() for name, value in self.memory.items()},
            "action": self.action.copy(),
            "elapsed": self.elapsed.copy(),
            "command": self.command.copy(),
            "rng": [rng.bit_generator.state for rng in self.rng],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.physics.restore(state["physics"])
        self.memory = {name: value.copy() for name, value in state["memory"].items()}
        for name in ("action", "elapsed", "command"):
            getattr(self, name)[:] = state[name]
        for rng, saved in zip(self.rng, state["rng"], strict=True):
            rng.bit_generator.state = saved

    def _begin(self, ids: Array) -> None:
        self.physics.reset(ids)
        self.elapsed[ids] = 0
        self.action[ids] = 0
        for i in ids:
            for randomise in self.task.randomise:
                randomise(self, int(i), self.rng[i])
            self.task.reset(self, int(i), self.rng[i])
        if self.task.command:
            self.task.command(self, ids)
        self.physics.forward(ids)

    def _try_terms(self) -> None:
        """Call every term once: what they read is live from the first step on, and what is wrong with them is said."""
        self.observe()
        if self.task.before:
            self.task.before(self)
        for terms in (self._rewards(), self._values("termination", self.task.terminations)):
            for _ in terms:
                pass

    def _rewards(self) -> Iterator[tuple[str, Array]]:
        return self._values("reward", {name: reward.term for name, reward in self.task.rewards.items()})

    def _values(self, kind: str, terms: dict[str, Term]) -> Iterator[tuple[str, Array]]:
        for name, term in terms.items():
            yield name, term(self)


def on_cores(task: Task, n: int, threads: int = 0) -> Cores:
    """The task's model on the cores of this machine."""
    spec = task.model()
    if task.contact_forces:
        add_contact_forces(spec)
    return Cores(compile_model(spec, task.name), n, threads)


def _generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

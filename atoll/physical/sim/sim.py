"""Many simulations of one task, stepped together: `step` reads as the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from atoll.core.errors import InvalidRequest, SimulationFailed
from atoll.physical.sim.model import add_contact_forces, compile_model
from atoll.physical.sim.physics import Cores, Physics
from atoll.physical.sim.task import Array, Task
from atoll.physical.sim.terms import call, fault, rows, values

WINDOW = 100


class Step(NamedTuple):
    """What a step returned, for n simulations. Those that ended (`terminated` or `truncated`) have begun anew:
    `observation` is the first of the next episode, `final` maps their ids to the last of the one that ended.
    `terms` are the weighted rewards by name. `success` is of the state before the new beginning. `broken` are those
    whose physics broke, and which therefore terminated."""

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    final: dict[int, Array]
    terms: dict[str, Array]
    broken: Array


class Sim:
    """n simulations. Fields of MjData and MjModel are had by `field`; `qpos`, `qvel` and `ctrl` are attributes.

    `action` is the last action, `elapsed` the steps of the running episodes, `command` what is asked of each,
    `memory` what terms keep between steps (one row a simulation). Each simulation has a generator of its own, seeded
    with `seed` + its id, so that its episodes do not depend on how many others there are.

    A simulation whose physics breaks ends its episode with zero reward, and is counted in `broken`. Where more than a
    tenth of them (and more than one) break within 100 steps, `step` raises SimulationFailed, unless it is `tolerant`.
    """

    def __init__(
        self,
        task: Task,
        n: int = 1,
        *,
        seed: int = 0,
        threads: int = 0,
        physics: Callable[[Task, int], Physics] | None = None,
        tolerant: bool = False,
    ):
        if n < 1:
            raise InvalidRequest(f"there must be at least one simulation, not {n}", param="n")
        self.task, self.n, self.tolerant = task, n, tolerant
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
        self._own: dict[str, Array] = {}
        self.all = np.arange(n)
        self.steps = self.broken = 0
        self.plan: list[list[int]] = [[] for _ in range(n)]
        self._breaks: list[tuple[int, int]] = []
        self.rng = _generators(range(n))
        self._begin(self.all)
        self._try_terms()
        self.rng = _generators(range(seed, seed + n))

    def field(self, name: str) -> Array:
        """Values of every simulation, (n, ...): data (`xpos`) or model (`body_mass`; writing it is per simulation).
        What MuJoCo computes is zero until the next step where no term has asked for it before."""
        return self.physics.field(name)

    def varied(self, name: str) -> Array:
        """A field of MjModel for `Task.randomise` to change: each episode begins with the model's own values in it."""
        if name not in self._own:
            source = self.model.opt if name.startswith("opt.") else self.model
            self._own[name] = getattr(source, name.removeprefix("opt.")).copy()
        return self.field(name)

    def reset(self, seeds: Sequence[int | Sequence[int]] | None = None) -> Array:
        """Begin an episode in every simulation; returns the observations, (n, size). `seeds` has one seed for each
        simulation, or the seeds of its coming episodes; after those its generator goes on."""
        if seeds is not None:
            if len(seeds) != self.n:
                raise InvalidRequest(f"there are {len(seeds)} seeds for {self.n} simulations", param="seeds")
            self.plan = [list(seed) if isinstance(seed, Sequence) else [int(seed)] for seed in seeds]
        self._begin(self.all)
        return self._sense(self.all)

    def step(self, action: Array, *, begin: bool = True) -> Step:
        """One environment step of every simulation by `action`, (n, size). Simulations whose episode ends begin anew,
        unless `begin` is false. Raises InvalidRequest for an action of another shape, and by the name of the term for
        one that fails."""
        if np.shape(action) != self.action.shape:
            raise InvalidRequest(f"'action' must be {self.action.shape}, not {np.shape(action)}", param="action")
        task = self.task
        self.action[:] = action
        if task.before:
            call(self, "before", task.name, task.before)
        self._act()
        for disturb in task.disturb:
            call(self, "disturb", task.name, disturb)
        self.physics.step(task.frame_skip)
        self.elapsed += 1
        self.steps += 1
        broken = self._broken()
        rewards, terminated, success = self._rewards(), self._terminated(), self._success()
        terminated |= broken
        success &= ~broken
        reward = self._sum(rewards, broken)
        truncated = (self.elapsed >= task.horizon) & ~terminated
        if task.command:
            call(self, "command", task.name, task.command, np.empty(0, np.int64))
        observation = self._sense()
        ended = np.flatnonzero(terminated | truncated)
        final = {int(i): observation[i].copy() for i in ended}
        if len(ended) and begin:
            self._begin(ended)
            observation[ended] = self._sense(ended)
        return Step(observation, reward, terminated, truncated, success, final, rewards, broken)

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, as arrays and plain values. After `restore` of it, the same actions
        give the same steps to the last bit."""
        return {
            "physics": self.physics.state(),
            "memory": {name: value.copy() for name, value in self.memory.items()},
            "action": self.action.copy(),
            "elapsed": self.elapsed.copy(),
            "command": self.command.copy(),
            "sensors": [{name: value.copy() for name, value in own.items()} for own in self._sensors],
            "rng": [rng.bit_generator.state for rng in self.rng],
            "plan": [list(seeds) for seeds in self.plan],
            "steps": self.steps,
            "broken": self.broken,
            "breaks": list(self._breaks),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.physics.restore(state["physics"])
        self.memory = {name: value.copy() for name, value in state["memory"].items()}
        for name in ("action", "elapsed", "command"):
            getattr(self, name)[:] = state[name]
        self._sensors = [{name: value.copy() for name, value in own.items()} for own in state["sensors"]]
        self.plan = [list(seeds) for seeds in state["plan"]]
        self.steps, self.broken, self._breaks = state["steps"], state["broken"], list(state["breaks"])
        for rng, saved in zip(self.rng, state["rng"], strict=True):
            rng.bit_generator.state = saved

    def _begin(self, ids: Array) -> None:
        self.physics.reset(ids)
        self.elapsed[ids] = 0
        self.action[ids] = 0
        for field, own in self._own.items():
            self.field(field)[ids] = own
        name = self.task.name
        for i in ids.tolist():
            if self.plan[i]:
                self.rng[i] = _generators([self.plan[i].pop(0)])[0]
            for randomise in self.task.randomise:
                call(self, "randomise", name, randomise, i, self.rng[i])
            call(self, "reset", name, self.task.reset, i, self.rng[i])
        if self.task.command:
            call(self, "command", name, self.task.command, ids)
        self.physics.forward(ids)

    def _act(self) -> None:
        if self.task.act:
            call(self, "act", self.task.name, self.task.act, self.action)
        else:
            self.ctrl[:] = self.action

    def _rewards(self) -> dict[str, Array]:
        terms = self.task.rewards.items()
        return {name: reward.weight * values(self, "reward", name, reward.term) for name, reward in terms}

    def _terminated(self) -> Array:
        ends = np.zeros(self.n, bool)
        for name, term in self.task.terminations.items():
            ends |= values(self, "termination", name, term, "b")
        return ends

    def _success(self) -> Array:
        if not self.task.success:
            return np.zeros(self.n, bool)
        return values(self, "success", self.task.name, self.task.success, "b").copy()

    def _sum(self, rewards: dict[str, Array], broken: Array) -> Array:
        total = np.zeros(self.n)
        for value in rewards.values():
            value[broken] = 0.0
            total += value
        if not np.isfinite(total).all():
            for name, value in rewards.items():
                for i in np.flatnonzero(~np.isfinite(value)).tolist():
                    raise fault(self, "reward", name, f"is {value[i]} in simulation {i}")
        return total

    def _sense(self, begun: Array | None = None) -> Array:
        """What the sensors give, (n, size); of those that have begun an episode, `begun`, their rows only."""
        seen = self._look()
        seen = seen if begun is None else seen[begun]
        for sensor, own in zip(self.task.sensors, self._sensors, strict=True):
            seen = call(self, "sensor", self.task.name, sensor, seen, begun, own)
        return seen

    def _look(self) -> Array:
        """(n, size), in the order of the task's observations."""
        parts = [rows(self, name, term) for name, term in self.task.observations.items()]
        return np.concatenate(parts, axis=1, dtype=self.task.observation_dtype, casting="same_kind")

    def _broken(self) -> Array:
        """Which broke in this step, (n,)."""
        why, broken = self.physics.failed(), np.zeros(self.n, bool)
        if not why:
            return broken
        self.broken += len(why)
        self._breaks = [(at, many) for at, many in self._breaks if at > self.steps - WINDOW] + [(self.steps, len(why))]
        if (many := sum(many for _, many in self._breaks)) > max(1, self.n / 10) and not self.tolerant:
            raise SimulationFailed(
                f"the physics of task '{self.task.name}' broke {many} times within {WINDOW} steps of {self.n} "
                f"simulations; simulation {next(iter(why))}: {next(iter(why.values()))}",
                param="task",
            )
        broken[list(why)] = True
        return broken

    def _try_terms(self) -> None:
        """Call every term once: what they read is live from the first step on, and what is wrong with them is said.

        `observed` tells where each observation lies in a row."""
        sizes = [rows(self, name, term).shape[1] for name, term in self.task.observations.items()]
        ends = np.cumsum(sizes).tolist()
        self.observed = {
            name: slice(end - size, end) for name, size, end in zip(self.task.observations, sizes, ends, strict=True)
        }
        self.observation_size = ends[-1]
        if self.task.before:
            call(self, "before", self.task.name, self.task.before)
        self._rewards(), self._terminated(), self._success()
        self._sensors: list[dict[str, Array]] = [{} for _ in self.task.sensors]
        self._sense(self.all)


def on_cores(task: Task, n: int, threads: int = 0) -> Cores:
    """The task's model on the cores of this machine."""
    spec = task.model()
    if task.contact_forces:
        add_contact_forces(spec)
    return Cores(compile_model(spec, task.name), n, threads)


def _generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

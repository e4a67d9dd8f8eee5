"""Episodes of many simulations at once, those that succeed kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoll.physical.sim.sim import Sim
from atoll.physical.synth.episode import Episode

Array = np.ndarray
SETTLE = 15
"""So many steps in a row an episode has to be a success; then it ends."""


class Actor(Protocol):
    """Acts in all simulations at once: an expert, or a player of demonstrations."""

    def begin(self, seeds: Sequence[int]) -> None:
        """Episodes begin. What is done in one depends on its seed alone."""
        ...

    def act(self, observation: Array) -> tuple[Array, Array]:
        """Actions (n, a) to execute where `observation` (n, o) is seen, and those that are meant, to be kept."""
        ...

    def facts(self, i: int) -> dict[str, int]:
        """About the episode of simulation `i`."""
        ...


@dataclass(frozen=True, slots=True)
class Take:
    """An episode, and the states (t, s) it was seen in: rows of `mujoco.batch`, to take pictures of."""

    episode: Episode
    states: Array


def record(
    sim: Sim, actor: Actor, seeds: Sequence[int], *, settle: int = SETTLE, each: Callable[[], None] | None = None
) -> list[Take]:
    """One episode of each of `seeds`, as many as there are simulations; those that succeed, in the order of seeds.

    An episode fails where it ends, breaks or lasts to the horizon before it has been a success for `settle` steps.
    `each` is called after every step."""
    seen = sim.reset(seeds)
    actor.begin(seeds)
    running, streak, length = np.ones(sim.n, bool), np.zeros(sim.n, int), np.zeros(sim.n, int)
    log: list[tuple[Array, ...]] = []
    while running.any() and len(log) < sim.task.horizon:
        states = sim.physics.batch.state.copy()
        done, meant = actor.act(seen)
        step = sim.step(done, begin=False)
        log.append((seen.astype(np.float32), meant, step.reward.astype(np.float32), step.success, states))
        streak = np.where(step.success, streak + 1, 0)
        won = running & (streak >= settle)
        length[won] = len(log)
        running &= ~won & ~step.terminated
        seen = step.observation
        if each:
            each()
    columns = [np.stack(column, axis=1) for column in zip(*log, strict=True)]
    return [_take(columns, i, int(length[i]), seeds[i], actor) for i in np.flatnonzero(length).tolist()]


def _take(columns: Sequence[Array], i: int, length: int, seed: int, actor: Actor) -> Take:
    seen, meant, reward, success, states = (column[i, :length] for column in columns)
    return Take(Episode(seen, meant, reward, success, facts={"seed": seed} | actor.facts(i)), states)

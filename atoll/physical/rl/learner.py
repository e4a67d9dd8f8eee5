"""What both algorithms share: the protocol that the stage drives, the tally of episodes, the policy that results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from atoll.core.errors import AtollError, InvalidRequest
from atoll.physical.policy import MlpPolicy, manifest_of
from atoll.physical.rl.networks import Mlp
from atoll.physical.rl.normalise import Moments
from atoll.physical.sim.sim import Sim, Step

Array = np.ndarray


class Learner(Protocol):
    """`sim` is what it learns in, `steps` counts environment steps; `overdue` asks for a checkpoint before the next
    iteration. `state` holds all that the next iterations depend on: restored, they give the same to the last bit."""

    sim: Sim
    steps: int

    @property
    def overdue(self) -> bool: ...

    def iterate(self, pool: ThreadPoolExecutor, beat: Callable[[int], None]) -> dict[str, float]:
        """Steps and the learning from them; `beat(steps)` is called several times a second. Returns figures."""
        ...

    def policy(self) -> MlpPolicy: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Episodes:
    """Returns and successes of the episodes that ended since `figures` was last called.

    Episodes begin at different ages, so that any few steps hold all of them; the first ones, cut short, do not count.
    """

    def __init__(self, sim: Sim, rng: np.random.Generator):
        sim.elapsed[:] = rng.integers(0, sim.task.horizon, sim.n)
        self.score, self.partial = np.zeros(sim.n), np.ones(sim.n, bool)
        self.ended: list[tuple[float, bool]] = []

    def add(self, step: Step) -> None:
        self.score += step.reward
        over = step.terminated | step.truncated
        whole = np.flatnonzero(over & ~self.partial)
        self.ended += zip(self.score[whole].tolist(), step.success[whole].tolist(), strict=True)
        self.score[over], self.partial[over] = 0.0, False

    def figures(self) -> dict[str, float]:
        """Means of `return` and `success`; nothing where no episode ended."""
        ended, self.ended = self.ended, []
        return dict(zip(("return", "success"), np.mean(ended, axis=0).tolist(), strict=True)) if ended else {}

    def state(self) -> dict[str, Any]:
        return {"score": self.score, "partial": self.partial}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.score[:], self.partial[:] = state["score"], state["partial"]


def action_range(sim: Sim) -> tuple[Array, Array]:
    """Middle and half width of the actions, (a,). Raises InvalidRequest where they have no bounds."""
    low, high = sim.action_low, sim.action_high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidRequest(f"'{sim.task.name}' does not bound its actions", param="task")
    return (high + low) / 2, (high - low) / 2


def check_finite(figures: Mapping[str, float], steps: int) -> None:
    """Raises AtollError where learning has left the numbers."""
    for name, value in figures.items():
        if not np.isfinite(value):
            raise AtollError(f"training diverged after {steps} steps: '{name}' is {value}", code="diverged", param=name)


def mlp_policy(sim: Sim, actor: Mlp, normal: Moments, squash: str) -> MlpPolicy:
    """An actor as it is served: its mean action, in the task's units."""
    middle, half = action_range(sim)
    manifest = manifest_of(sim, "mlp", network={"activation": actor.activation, "squash": squash})
    weights = {"observation.mean": normal.shift, "observation.scale": normal.scale}
    weights |= {"action.shift": middle, "action.scale": half}
    for i, (weight, bias) in enumerate(actor.layers):
        weights |= {f"{i}.weight": weight.copy(), f"{i}.bias": bias.copy()}
    return MlpPolicy(manifest, weights)

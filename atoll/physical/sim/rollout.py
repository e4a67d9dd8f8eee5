"""Whole episodes of a policy, counted so that short ones weigh no more than long ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.policy import Policy
from atoll.physical.sim.sim import Sim, Step
from atoll.physical.sim.task import Array

Act = Callable[[Array, Array], Array]
"""(observations (n, o), which simulations have begun an episode (n,) bool) -> actions (n, a)."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """Of each episode: sum of rewards; steps; whether what was asked was ever done, was at the end, and was for as long
    in a row as the task asks; whether its physics broke. Arrays (episodes,), in the order of their seeds."""

    returns: Array
    lengths: Array
    successes: Array
    held: Array
    lasted: Array
    broken: Array


def rollout(
    sim: Sim, act: Act, episodes: int, *, seed: int = 0, each: Callable[[Step], None] | None = None
) -> Episodes:
    """Run `episodes` episodes, with seeds from `seed` on; `each` is called after every step.

    Simulation i runs the seeds i, i + n, i + 2n, ... from `seed` on, and then idles. So the episodes are the same
    however many simulations there are, and are not those that happened to end first.
    """
    if episodes < 1:
        raise InvalidRequest(f"there must be at least one episode, not {episodes}", param="episodes")
    plan = [range(seed + i, seed + episodes, sim.n) for i in range(sim.n)]
    done = Episodes(np.zeros(episodes), np.zeros(episodes, np.int64), *(np.zeros(episodes, bool) for _ in range(4)))
    number = np.arange(sim.n)  # of the episode that each simulation is in
    total, streak = np.zeros(sim.n), np.zeros(sim.n, np.int64)
    ever, lasted = np.zeros(sim.n, bool), np.zeros(sim.n, bool)
    seen, begun = sim.reset(plan), np.ones(sim.n, bool)
    while (number < episodes).any():
        lengths = sim.elapsed + 1
        step = sim.step(act(seen, begun))
        total += step.reward
        ever |= step.success
        streak = np.where(step.success, streak + 1, 0)
        lasted |= streak >= sim.task.hold
        seen, begun = step.observation, step.terminated | step.truncated
        if each:
            each(step)
        ended = np.flatnonzero(begun & (number < episodes))
        which = number[ended]
        done.returns[which], done.lengths[which] = total[ended], lengths[ended]
        done.successes[which], done.held[which] = ever[ended], step.success[ended]
        done.lasted[which], done.broken[which] = lasted[ended], step.broken[ended]
        total[begun], streak[begun], ever[begun], lasted[begun] = 0, 0, False, False
        number[ended] += sim.n
    return done


Look = Callable[[Array], Mapping[str, Array]]
"""(ids of simulations) -> what their cameras see, by name."""


def acting(policy: Policy, sim: Sim, execute: int | None = None, look: Look | None = None) -> Act:
    """`policy` as `rollout` asks it: of each chunk, `execute` actions (None: all) are done before it is asked anew.
    One that sees is given what `look` tells."""
    chunk = policy.manifest.chunk
    execute = chunk if execute is None else execute
    if not 1 <= execute <= chunk:
        raise InvalidRequest(f"a chunk of {chunk} can execute 1..{chunk} actions, not {execute}", param="execute")
    actions, at = np.zeros((sim.n, chunk, len(sim.action_low)), np.float32), np.full(sim.n, execute)

    def act(observation: Array, begun: Array) -> Array:
        anew = begun | (at >= execute)
        if anew.any():
            images = look(np.flatnonzero(anew)) if look else None
            actions[anew], at[anew] = policy.act(observation[anew].astype(np.float32), images), 0
        at[:] += 1
        return actions[sim.all, at - 1]

    return act


def at_random(sim: Sim, seed: int = 0) -> Act:
    """Actions uniform in their range. Simulation i draws from `seed` + i, however many there are."""
    chance = [np.random.Generator(np.random.PCG64([seed + i, 1])) for i in range(sim.n)]

    def act(observation: Array, begun: Array) -> Array:
        drawn = np.stack([rng.random(len(sim.action_low), np.float32) for rng in chance])
        return sim.action_low + drawn * (sim.action_high - sim.action_low)

    return act

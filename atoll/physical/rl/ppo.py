"""Proximal policy optimisation (Schulman et al., 2017) for two cores.

Many simulations and few steps a rollout keep physics busy; values are computed once a rollout, in one batch; actor and
critic share nothing, so that they learn side by side on two threads, with the same result as one after the other.
The learning rate of the actor follows a wanted Kullback-Leibler divergence, as in rsl_rl (Rudin et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.policy import MlpPolicy
from atoll.physical.rl.learner import Episodes, action_range, check_finite, mlp_policy
from atoll.physical.rl.networks import Adam, Mlp
from atoll.physical.rl.normalise import Moments, Returns
from atoll.physical.sim.sim import Sim

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class PpoConfig:
    """`sims` x `rollout` steps are learned from for `epochs` passes in minibatches of `minibatch`. `kl` is the
    divergence that the actor's rate is steered to, from `rate` on within `rate_low`..`rate_high`; the critic's is
    `critic_rate`. `log_std` is where exploration begins, in units of half the action range."""

    sims: int = 64
    rollout: int = 32
    minibatch: int = 512
    epochs: int = 8
    kl: float = 0.02
    rate: float = 3e-4
    rate_low: float = 1e-5
    rate_high: float = 1e-2
    critic_rate: float = 1e-3
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    gradient: float = 1.0
    log_std: float = -1.0
    hidden: tuple[int, ...] = (64, 64)
    critic_hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    def __post_init__(self) -> None:
        for name in ("sims", "rollout", "minibatch", "epochs"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"'{name}' must be at least 1, not {getattr(self, name)}", param=name)
        for name in ("kl", "rate", "rate_low", "rate_high", "critic_rate", "clip", "gradient"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"'{name}' must be above 0, not {getattr(self, name)}", param=name)
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(f"'{name}' must be within 0..1, not {getattr(self, name)}", param=name)
        if self.activation not in ("tanh", "relu"):
            raise InvalidRequest(f"'activation' must be tanh or relu, not '{self.activation}'", param="activation")
        if self.sims * self.rollout % self.minibatch:
            raise InvalidRequest(
                f"'minibatch' {self.minibatch} must divide sims x rollout, {self.sims * self.rollout}",
                param="minibatch",
            )


class Rollout:
    """What `sims` simulations did in `rollout` steps: arrays (t, n, ...). `last` are observations after the end."""

    def __init__(self, t: int, n: int, seen: int, given: int):
        self.seen = np.empty((t, n, seen), np.float32)
        self.noise = np.empty((t, n, given), np.float32)
        self.mean = np.empty((t, n, given), np.float32)
        self.reward = np.empty((t, n))
        self.ended = np.empty((t, n), bool)
        self.cut: list[tuple[int, int, Array]] = []
        self.last = np.empty((n, seen), np.float32)


class Ppo:
    """`iterate` reads as the algorithm. `state` and `restore` hold everything that the next iterations depend on."""

    def __init__(self, sim: Sim, config: PpoConfig, seed: int, work: Path | None = None):
        self.sim, self.config = sim, config
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.observation = sim.reset()
        seen, given = self.observation.shape[1], len(sim.action_low)
        self.middle, self.half = action_range(sim)
        self.actor = Mlp((seen, *config.hidden, given), self.rng, activation=config.activation, gain=0.01, extra=given)
        self.actor.tail[:] = config.log_std
        self.critic = Mlp((seen, *config.critic_hidden, 1), self.rng, activation=config.activation)
        self.actor_adam = Adam(self.actor.theta.size, config.gradient)
        self.critic_adam = Adam(self.critic.theta.size, config.gradient)
        self.normal, self.returns = Moments(seen), Returns(sim.n, config.discount)
        self.rate, self.steps = config.rate, 0
        self.episodes = Episodes(sim, self.rng)

    @property
    def overdue(self) -> bool:
        return False

    def iterate(self, pool: ThreadPoolExecutor, beat: Callable[[int], None]) -> dict[str, float]:
        """One rollout and the learning from it; `beat(steps)` is called after each step. Returns figures."""
        config = self.config
        rollout, figures = self.collect(beat)
        seen = self.normal(rollout.seen.reshape(-1, rollout.seen.shape[-1]))
        self.returns.update(rollout.reward, rollout.ended)
        advantage, target = self.judge(rollout, seen)
        orders = [self.rng.permutation(len(seen)) for _ in range(config.epochs)]
        critic = pool.submit(self.learn_values, seen, target, orders)
        figures |= self.learn_actions(rollout, seen, advantage, orders)
        figures["value_loss"] = critic.result()
        self.normal.update(rollout.seen.reshape(-1, rollout.seen.shape[-1]))
        self.steps += len(seen)
        check_finite(figures, self.steps)
        return figures

    def collect(self, beat: Callable[[int], None]) -> tuple[Rollout, dict[str, float]]:
        sim, config = self.sim, self.config
        rollout = Rollout(config.rollout, sim.n, self.observation.shape[1], len(self.half))
        self.rng.standard_normal(out=rollout.noise, dtype=np.float32)
        deviation = np.exp(self.actor.tail)
        for t in range(config.rollout):
            rollout.seen[t] = self.observation
            mean = rollout.mean[t] = self.actor(self.normal(rollout.seen[t]))
            action = np.clip(mean + deviation * rollout.noise[t], -1, 1)
            step = sim.step(self.middle + self.half * action)
            self.observation, rollout.reward[t] = step.observation, step.reward
            rollout.ended[t] = step.terminated | step.truncated
            rollout.cut += [(t, i, last) for i, last in step.final.items() if step.truncated[i]]
            self.episodes.add(step)
            beat(self.steps + (t + 1) * sim.n)
        rollout.last[:] = self.observation
        return rollout, self.episodes.figures()

    def judge(self, rollout: Rollout, seen: Array) -> tuple[Array, Array]:
        """Advantages, normalised, and value targets, each (t * n,): Schulman et al. (2016), equation 16. A truncated
        episode goes on in expectation: the value of its last observation is part of its last reward."""
        config = self.config
        values = self.critic(seen).reshape(rollout.reward.shape)
        reward = self.returns(rollout.reward)
        if rollout.cut:
            t, i, last = zip(*rollout.cut, strict=True)
            reward[t, i] += config.discount * self.critic(self.normal(np.stack(last)))[:, 0]
        advantage, following = np.empty_like(reward), self.critic(self.normal(rollout.last))[:, 0]
        trace = np.zeros_like(following)
        for t in range(len(reward) - 1, -1, -1):
            alive = config.discount * ~rollout.ended[t]
            trace = reward[t] + alive * following - values[t] + alive * config.trace * trace
            advantage[t], following = trace, values[t]
        target = (advantage + values).reshape(-1)
        advantage -= advantage.mean()
        advantage /= advantage.std() + 1e-8
        return advantage.reshape(-1), target

    def learn_values(self, seen: Array, target: Array, orders: list[Array]) -> float:
        """Squared error to the targets; returns its mean over the last epoch."""
        size, loss = self.config.minibatch, 0.0
        for order in orders:
            x, y, loss = seen[order], target[order], 0.0
            for at in range(0, len(x), size):
                passed = self.critic.forward(x[at : at + size])
                error = passed[-1][:, 0] - y[at : at + size]
                self.critic.backward(passed, (error / size)[:, None])
                self.critic_adam.step(self.critic.theta, self.critic.grad, self.config.critic_rate)
                loss += float(error @ error) / len(x)
        return loss

    def learn_actions(self, rollout: Rollout, seen: Array, advantage: Array, orders: list[Array]) -> dict[str, float]:
        """The clipped surrogate (Schulman et al., 2017, equation 7), its gradient by hand."""
        size = self.config.minibatch
        before, given = self.actor.tail.copy(), rollout.mean.shape[-1]
        mean, noise = rollout.mean.reshape(-1, given), rollout.noise.reshape(-1, given)
        action = mean + np.exp(before) * noise
        likely = -0.5 * np.square(noise).sum(axis=1) - before.sum()
        divergence = 0.0
        for order in orders:
            x, a, old, gain, divergence = seen[order], action[order], likely[order], advantage[order], 0.0
            for at in range(0, len(x), size):
                part = slice(at, at + size)
                divergence += self._improve(x[part], a[part], old[part], gain[part]) * size / len(x)
        return {
            "kl": divergence,
            "entropy": float(self.actor.tail.sum() + 0.5 * given * np.log(2 * np.pi * np.e)),
            "rate": self.rate,
        }

    def _improve(self, seen: Array, action: Array, likely: Array, advantage: Array) -> float:
        """One step on a minibatch; returns the divergence from the policy that acted, and steers the rate by it."""
        config, actor = self.config, self.actor
        passed = actor.forward(seen)
        inverse = np.exp(-actor.tail)
        z = (action - passed[-1]) * inverse
        squares = z * z
        log_ratio = -0.5 * squares.sum(axis=1) - actor.tail.sum() - likely
        ratio = np.exp(log_ratio)
        # Schulman, "Approximating KL divergence" (2020): the estimator with the least variance that is unbiased.
        divergence = float((ratio - 1 - log_ratio).mean())
        if divergence > 2 * config.kl:
            self.rate = max(self.rate / 1.5, config.rate_low)
        elif divergence < config.kl / 2:
            self.rate = min(self.rate * 1.5, config.rate_high)
        held = np.where(advantage > 0, ratio > 1 + config.clip, ratio < 1 - config.clip)
        slope = np.where(held, 0, -advantage * ratio / len(seen)).astype(np.float32)[:, None]
        actor.tail_grad[:] = (slope * (squares - 1)).sum(axis=0) - config.entropy
        z *= inverse
        z *= slope
        actor.backward(passed, z)
        self.actor_adam.step(actor.theta, actor.grad, self.rate)
        return divergence

    def policy(self) -> MlpPolicy:
        """What has been learned so far, as it is served: the mean action."""
        return mlp_policy(self.sim, self.actor, self.normal, "clip")

    def state(self) -> dict[str, Any]:
        return {
            "sim": self.sim.state(), "rng": self.rng.bit_generator.state, "observation": self.observation,
            "actor": self.actor.theta, "critic": self.critic.theta,
            "actor_adam": self.actor_adam.state(), "critic_adam": self.critic_adam.state(),
            "normal": self.normal.state(), "returns": self.returns.state(), "rate": self.rate, "steps": self.steps,
            "episodes": self.episodes.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.sim.restore(state["sim"])
        self.rng.bit_generator.state = state["rng"]
        self.observation, self.rate, self.steps = state["observation"], state["rate"], state["steps"]
        self.actor.theta[:], self.critic.theta[:] = state["actor"], state["critic"]
        for name in ("actor_adam", "critic_adam", "normal", "returns", "episodes"):
            getattr(self, name).restore(state[name])

"""Throughput-first off-policy learning: twin delayed deterministic policy gradients over many simulations.

Fujimoto et al. (2018) with the changes of FastTD3 (Seo et al., 2025): many simulations that explore with noise of
different sizes, wide batches, few updates a step, normalised observations. The two critics learn side by side.
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
from atoll.physical.rl.networks import RELU, Adam, Mlp
from atoll.physical.rl.normalise import Moments, Returns
from atoll.physical.rl.replay import Replay
from atoll.physical.sim.sim import Sim

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class OffpolicyConfig:
    """Each iteration takes `rollout` steps in `sims` simulations, then makes `updates` updates of `batch` transitions;
    the actor has every `delay`-th. `noise_low`..`noise_high` is the exploration of the first..last simulation, in units
    of half the action range; the first `warm` steps are random. `smooth` and `smooth_clip` blur the target's action."""

    sims: int = 32
    rollout: int = 8
    updates: int = 16
    batch: int = 512
    replay: int = 400_000
    warm: int = 5_000
    rate: float = 1e-3
    critic_rate: float = 1e-3
    discount: float = 0.97
    blend: float = 0.1
    delay: int = 2
    noise_low: float = 0.02
    noise_high: float = 0.4
    smooth: float = 0.2
    smooth_clip: float = 0.5
    gradient: float = 10.0
    hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        for name in ("sims", "rollout", "updates", "batch", "replay", "delay"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"'{name}' must be at least 1, not {getattr(self, name)}", param=name)
        for name in ("rate", "critic_rate", "gradient"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"'{name}' must be above 0, not {getattr(self, name)}", param=name)
        for name in ("discount", "blend"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(f"'{name}' must be within 0..1, not {getattr(self, name)}", param=name)
        if self.replay < 16 * self.sims * self.rollout:
            raise InvalidRequest("'replay' must hold at least 16 iterations", param="replay")


class Offpolicy:
    """`iterate` reads as the algorithm. The replay is a file in `work`; all else that matters is in `state`."""

    def __init__(self, sim: Sim, config: OffpolicyConfig, seed: int, work: Path):
        self.sim, self.config = sim, config
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.middle, self.half = action_range(sim)
        self.observation = np.asarray(sim.reset(), np.float32)
        self.seen, self.given = self.observation.shape[1], len(self.half)
        self.actor = Mlp((self.seen, *config.hidden, self.given), self.rng, activation=RELU, gain=0.01)
        inputs = self.seen + self.given
        self.critics = [Mlp((inputs, *config.hidden, 1), self.rng, activation=RELU) for _ in range(2)]
        self.nets = [self.actor, *self.critics]
        self.slow = [_copy(net) for net in self.nets]
        self.adams = [Adam(net.theta.size, config.gradient) for net in self.nets]
        self.normal, self.returns = Moments(self.seen), Returns(sim.n, config.discount)
        self.episodes = Episodes(sim, self.rng)
        self.noise = np.linspace(config.noise_low, config.noise_high, sim.n, dtype=np.float32)[:, None]
        self.replay = Replay(work / "replay.f32", config.replay, 2 * self.seen + self.given + 2)
        self.steps = self.updates = 0

    @property
    def overdue(self) -> bool:
        """A checkpoint must be made before the next iteration."""
        return self.replay.overdue(self.config.rollout * self.sim.n)

    def iterate(self, pool: ThreadPoolExecutor, beat: Callable[[int], None]) -> dict[str, float]:
        """Steps, and the updates that go with them; `beat(steps)` is called after each step. Returns figures."""
        figures = self.collect(beat)
        if self.steps < self.config.warm:
            return figures
        losses = []
        for _ in range(self.config.updates):
            batch = self.replay.sample(self.config.batch, self.rng)
            seen, action, reward, alive, following = np.split(batch, self._cuts, axis=1)
            seen, following = self.normal(seen), self.normal(following)
            target = self.judge(self.returns(reward), alive, following)
            losses.append(self.learn_values(pool, np.hstack([seen, action]), target))
            self.updates += 1
            if self.updates % self.config.delay == 0:
                self.learn_actions(seen)
                for slow, net in zip(self.slow, self.nets, strict=True):
                    slow.theta += self.config.blend * (net.theta - slow.theta)
            beat(self.steps)
        figures["value_loss"] = float(np.mean(losses))
        check_finite(figures, self.steps)
        return figures

    @property
    def _cuts(self) -> list[int]:
        return np.cumsum([self.seen, self.given, 1, 1]).tolist()

    def collect(self, beat: Callable[[int], None]) -> dict[str, float]:
        sim, rewards, ends = self.sim, [], []
        for _ in range(self.config.rollout):
            if self.steps < self.config.warm:
                action = self.rng.uniform(-1, 1, self.noise.shape[:1] + self.half.shape).astype(np.float32)
            else:
                chance = self.rng.standard_normal((sim.n, self.given), dtype=np.float32)
                action = np.clip(np.tanh(self.actor(self.normal(self.observation))) + self.noise * chance, -1, 1)
            step = sim.step(self.middle + self.half * action)
            after = np.asarray(step.observation, np.float32)
            reached = after.copy()
            for i, last in step.final.items():
                reached[i] = last
            alive = ~step.terminated
            self.replay.add(np.hstack([self.observation, action, step.reward[:, None], alive[:, None], reached]))
            self.normal.update(self.observation)
            self.observation = after
            self.episodes.add(step)
            rewards.append(step.reward)
            ends.append(step.terminated | step.truncated)
            self.steps += sim.n
            beat(self.steps)
        self.returns.update(np.stack(rewards), np.stack(ends))
        return self.episodes.figures()

    def judge(self, reward: Array, alive: Array, following: Array) -> Array:
        """What the critics should say, (n, 1): Fujimoto et al. (2018), algorithm 1."""
        config = self.config
        blur = config.smooth * self.rng.standard_normal((len(reward), self.given), dtype=np.float32)
        blur = np.clip(blur, -config.smooth_clip, config.smooth_clip)
        action = np.clip(np.tanh(self.slow[0](following)) + blur, -1, 1)
        pairs = np.hstack([following, action])
        value = np.minimum(self.slow[1](pairs), self.slow[2](pairs))
        return reward + config.discount * alive * value

    def learn_values(self, pool: ThreadPoolExecutor, pairs: Array, target: Array) -> float:
        other = pool.submit(self._fit, 2, pairs, target)
        loss = self._fit(1, pairs, target)
        return (loss + other.result()) / 2

    def _fit(self, i: int, pairs: Array, target: Array) -> float:
        net = self.nets[i]
        passed = net.forward(pairs)
        error = passed[-1] - target
        net.backward(passed, error / np.float32(len(error)))
        self.adams[i].step(net.theta, net.grad, self.config.critic_rate)
        return float(np.square(error).mean())

    def learn_actions(self, seen: Array) -> None:
        """A step up the first critic."""
        passed = self.actor.forward(seen)
        action = np.tanh(passed[-1])
        critic = self.critics[0]
        judged = critic.forward(np.hstack([seen, action]))
        slope = critic.pull(judged, np.full((len(seen), 1), -1 / len(seen), np.float32))[:, self.seen :]
        self.actor.backward(passed, slope * (1 - action * action))
        self.adams[0].step(self.actor.theta, self.actor.grad, self.config.rate)

    def policy(self) -> MlpPolicy:
        """What has been learned so far, as it is served: without noise."""
        return mlp_policy(self.sim, self.actor, self.normal, "tanh")

    def state(self) -> dict[str, Any]:
        return {
            "sim": self.sim.state(), "rng": self.rng.bit_generator.state, "observation": self.observation,
            "nets": {str(i): net.theta for i, net in enumerate(self.nets)},
            "slow": {str(i): net.theta for i, net in enumerate(self.slow)},
            "adams": {str(i): adam.state() for i, adam in enumerate(self.adams)},
            "normal": self.normal.state(), "returns": self.returns.state(), "episodes": self.episodes.state(),
            "replay": self.replay.keep(), "steps": self.steps, "updates": self.updates,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.sim.restore(state["sim"])
        self.rng.bit_generator.state = state["rng"]
        self.observation, self.steps, self.updates = state["observation"], state["steps"], state["updates"]
        for i in range(len(self.nets)):
            self.nets[i].theta[:], self.slow[i].theta[:] = state["nets"][str(i)], state["slow"][str(i)]
            self.adams[i].restore(state["adams"][str(i)])
        for name in ("normal", "returns", "episodes", "replay"):
            getattr(self, name).restore(state[name])


def _copy(net: Mlp) -> Mlp:
    twin = Mlp(net.sizes, np.random.Generator(np.random.PCG64(0)), activation=net.activation)
    twin.theta[:] = net.theta
    return twin

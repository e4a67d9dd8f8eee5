"""Running statistics that bring observations and rewards to unit size."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
LIMIT = 10.0


class Moments:
    """Mean and variance of all rows seen. Chan, Golub and LeVeque (1979), pairwise update; float64."""

    def __init__(self, size: int):
        self.count, self.mean, self.square = 0.0, np.zeros(size), np.zeros(size)
        self._freeze()

    def update(self, rows: Array) -> None:
        """`rows` is (n, size)."""
        mean = rows.mean(axis=0, dtype=np.float64)
        square = np.square(rows - mean).sum(axis=0, dtype=np.float64)
        total = self.count + len(rows)
        delta = mean - self.mean
        self.mean = self.mean + delta * (len(rows) / total)
        self.square = self.square + square + delta**2 * (self.count * len(rows) / total)
        self.count = total
        self._freeze()

    def __call__(self, rows: Array) -> Array:
        """(rows - mean) / deviation, within +-10; float32, as a served policy computes it."""
        x = np.asarray(rows, np.float32) - self.shift
        x *= self.scale
        np.maximum(x, -LIMIT, out=x)
        return np.minimum(x, LIMIT, out=x)

    def _freeze(self) -> None:
        variance = self.square / self.count if self.count else np.ones_like(self.square)
        self.shift = self.mean.astype(np.float32)
        self.scale = (1 / np.sqrt(variance + 1e-8)).astype(np.float32)

    def state(self) -> dict[str, Array | float]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def restore(self, state: dict) -> None:
        self.count, self.mean, self.square = float(state["count"]), state["mean"], state["square"]
        self._freeze()


class Returns:
    """Divides rewards by the deviation of the running discounted return (Engstrom et al., 2020, section 3)."""

    def __init__(self, n: int, discount: float):
        self.discount, self.running, self.moments = discount, np.zeros(n), Moments(1)

    def update(self, reward: Array, ended: Array) -> None:
        """Rewards and ends of a rollout, (t, n)."""
        seen = np.empty(reward.shape)
        for t in range(len(reward)):
            self.running = self.running * self.discount + reward[t]
            seen[t] = self.running
            self.running[ended[t]] = 0.0
        self.moments.update(seen.reshape(-1, 1))

    def __call__(self, reward: Array) -> Array:
        return np.clip(reward * float(self.moments.scale[0]), -LIMIT, LIMIT).astype(np.float32)

    def state(self) -> dict:
        return {"running": self.running, "moments": self.moments.state()}

    def restore(self, state: dict) -> None:
        self.running = state["running"]
        self.moments.restore(state["moments"])

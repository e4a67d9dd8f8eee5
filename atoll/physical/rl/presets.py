"""Settings measured per task on two cores: what differs from the defaults of `PpoConfig`, and the steps to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEGS = {
    "sims": 128, "rollout": 24, "minibatch": 768, "epochs": 6, "kl": 0.05, "rate_high": 1e-3, "entropy": 0.002,
    "hidden": (128, 64), "critic_hidden": (128, 64),
}  # fmt: skip
PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "ppo": {
        "half-cheetah": {"steps": 1_000_000},
        "hopper": {"steps": 1_500_000, "log_std": 0.0, "entropy": 0.002},
        "walker2d": {"steps": 2_000_000, "log_std": -0.5, "entropy": 0.002},
        "ant": {"steps": 3_000_000},
        "go1-velocity": {"steps": 4_000_000, **LEGS},
        "drone-hover": {"steps": 600_000},
        "lane-driving": {"steps": 500_000},
        "humanoid-walk": {
            "steps": 5_000_000, **LEGS, "sims": 256, "rollout": 32, "minibatch": 2048, "epochs": 5, "kl": 0.03,
            "entropy": 0.0005,
        },
    },
    "offpolicy": {"half-cheetah": {"steps": 200_000}},
}

STEPS = 1_000_000

"""Settings measured per task on two cores: what differs from the defaults of `PpoConfig`, and the steps to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "ppo": {
        "half-cheetah": {"steps": 1_000_000},
        "hopper": {"steps": 1_500_000, "log_std": 0.0, "entropy": 0.002},
        "walker2d": {"steps": 2_500_000, "log_std": 0.0},
        "ant": {"steps": 3_000_000},
    },
    "offpolicy": {"half-cheetah": {"steps": 200_000}},
}

STEPS = 1_000_000

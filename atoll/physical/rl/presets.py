"""Settings measured per task on two cores: what differs from the defaults of `PpoConfig`, and the steps to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "ppo": {
        "half-cheetah": {"steps": 1_500_000},
    },
    "offpolicy": {},
}

STEPS = 2_000_000

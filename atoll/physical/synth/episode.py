"""An episode as it is kept: what was seen, done and earned, one row a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Episode:
    """`observation` (t, o) float32 was seen before `action` (t, a) float32 was done; `reward` (t,) and `success` (t,)
    bool followed from it. `images` maps cameras to (t, h, w, 3) uint8, taken with the observation. `facts` are
    numbers about the episode: its seed, what it was made from."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

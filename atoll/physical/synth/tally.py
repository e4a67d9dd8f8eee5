"""Statistics of annotated pictures, for their card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from atoll.physical.synth.writers import Frame


class Spread:
    """Smallest, mean and largest of numbers that come one after the other."""

    def __init__(self) -> None:
        self.low, self.high, self.sum, self.count = np.inf, -np.inf, 0.0, 0

    def add(self, values: np.ndarray) -> None:
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.sum, self.count = self.sum + float(values.sum(dtype=np.float64)), self.count + values.size

    def told(self) -> dict[str, float] | None:
        """None where there were no numbers."""
        if not self.count:
            return None
        told = {"min": self.low, "mean": self.sum / self.count, "max": self.high}
        return {name: round(value, 4) for name, value in told.items()}


class Tally:
    """Of colours (0 to 255), of depth (m, where something is seen), and of each object: in how many pictures it is, how
    many pixels of it are seen, and how far it is (m)."""

    def __init__(self, objects: Iterable[str]):
        self._colours, self._depth = [Spread() for _ in range(3)], Spread()
        self._objects = {name: (Spread(), Spread()) for name in objects}

    def add(self, frame: Frame) -> None:
        depth = frame.picture.depth
        self._depth.add(depth[np.isfinite(depth)])
        for i, colour in enumerate(self._colours):
            colour.add(frame.picture.rgb[..., i])
        for a in frame.annotations:
            area, distance = self._objects[a.object.name]
            area.add(np.array([a.area]))
            distance.add(np.linalg.norm(a.position)[None])

    def told(self) -> dict[str, Any]:
        return {
            "colours": dict(zip("rgb", (colour.told() for colour in self._colours), strict=True)),
            "depth": self._depth.told(),
            "objects": {
                name: {"pictures": area.count, "area": area.told(), "distance": distance.told()}
                for name, (area, distance) in self._objects.items()
            },
        }

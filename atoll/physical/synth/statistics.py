"""Statistics of a data set, as LeRobotDataset v3 keeps them: of each episode, and of all out of those.

Source: huggingface/lerobot 0.4.4, datasets/compute_stats.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
STRIDE = 4
"""Statistics of pictures are of every fourth row and column."""


def of_episode(rows: pa.Table, pictures: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """By feature: min, max, mean, std, quantiles, and how many rows there were. `pictures` are (t, h, w, 3) uint8 by
    feature; theirs are of each colour, (3, 1, 1), 0 to 1."""
    told = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        told[name] = _spread(flat.to_numpy(zero_copy_only=False).reshape(len(column), -1), len(column))
    for name, frames in pictures.items():
        spread = _spread(frames[:, ::STRIDE, ::STRIDE].reshape(-1, 3) / 255, len(frames))
        told[name] = {
            kind: [[[value]] for value in numbers] if kind != "count" else numbers for kind, numbers in spread.items()
        }
    return told


def of_all(episodes: pa.Table) -> dict[str, dict[str, Any]]:
    """Out of the columns `stats/<feature>/<kind>` of the table of episodes. Quantiles are the episodes', averaged by
    length, as in LeRobot."""
    kinds: dict[str, dict[str, np.ndarray]] = {}
    for name in episodes.column_names:
        if name.startswith("stats/"):
            _, feature, kind = name.split("/")
            kinds.setdefault(feature, {})[kind] = np.array(episodes[name].to_pylist())
    told = {}
    for feature, of in kinds.items():
        weight = of["count"].reshape(-1, *[1] * (of["mean"].ndim - 1)) / of["count"].sum()
        mean = (of["mean"] * weight).sum(axis=0)
        variance = ((of["std"] ** 2 + (of["mean"] - mean) ** 2) * weight).sum(axis=0)
        total = {"min": of["min"].min(axis=0), "max": of["max"].max(axis=0), "mean": mean, "std": np.sqrt(variance)}
        total |= {name: (of[name] * weight).sum(axis=0) for name in QUANTILES}
        told[feature] = {**{kind: value.tolist() for kind, value in total.items()}, "count": [int(of["count"].sum())]}
    return told


def _spread(rows: np.ndarray, count: int) -> dict[str, list[float]]:
    rows = rows.astype(np.float64)
    told = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0)}
    told |= dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))
    return {**{name: value.tolist() for name, value in told.items()}, "count": [count]}

"""The card of a data set: what it holds, how it was made, and out of what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from atoll import __version__
from atoll.physical.synth.dataset import Dataset

CARD = "card.json"
LICENCE = "Apache-2.0; meshes of robots under the licences in atoll/physical/sim/robots"
LIBRARIES = ("mujoco", "numpy", "scipy", "pyarrow", "av")


def card(folder: Path, task: str, made: Mapping[str, Any]) -> bytes:
    """The card of the whole data set in `folder`. `made` tells how: generation, config, renderer, parents."""
    with Dataset(folder) as data:
        lengths = data.lengths
        earned = np.add.reduceat(data.columns["next.reward"].astype(np.float64), data.starts)
        seeds = data.episodes.get("atoll/seed", np.empty(0, np.int64))
        told = {
            "task": task,
            "scene": task,
            "about": _about(folder),
            "episodes": len(lengths),
            "frames": len(data),
            "rate_hz": data.rate_hz,
            "robot": data.info["robot_type"],
            "cameras": data.cameras,
            "length": _spread(lengths),
            "return": _spread(earned),
            "seeds": {"first": int(seeds.min()), "last": int(seeds.max())} if len(seeds) else None,
            **made,
            "statistics": "meta/stats.json",
            "licence": LICENCE,
            "versions": versions(),
        }
    return json.dumps(told, indent=1).encode() + b"\n"


def versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Of Atoll and of the libraries that a data set is made with."""
    return {"atoll": __version__, **{name: version(name) for name in (*LIBRARIES, *others)}}


def parent(folder: Path) -> str | None:
    """The digest of the artifact in `folder`, where it is one."""
    try:
        return str(json.loads((folder / "artifact.json").read_text())["digest"])
    except FileNotFoundError:
        return None


def lineage(folder: Path) -> dict[str, str]:
    """The digests of the data set in `folder` and of what it was made of, by role, where those are artifacts."""
    try:
        told = json.loads((folder / CARD).read_bytes())
        parents = dict(told.get("parents", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        parents = {}
    return {role: str(digest) for role, digest in {"dataset": parent(folder), **parents}.items() if digest}


def _about(folder: Path) -> str:
    import pyarrow.parquet as pq

    return str(pq.read_table(folder / "meta/tasks.parquet")["task"][0])


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "mean": round(float(values.mean()), 4), "max": float(values.max())}

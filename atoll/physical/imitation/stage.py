"""The stage `imitate`: demonstrations in, a policy out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.core.errors import InvalidRequest
from atoll.core.runs import Reporter, Stage


@dataclass(frozen=True, slots=True)
class Config:
    """`kind`: mlp (behaviour cloning), act (action-chunking transformer) or diffusion (flow matching).

    `steps` and `width` of 0 are the kind's own. `cameras` of the data set are seen beside the state. The weights kept
    are a running mean (`average` of 0..1) of those that were learned."""

    kind: Literal["mlp", "act", "diffusion"] = "mlp"
    chunk: int = 16
    steps: int = 0
    batch: int = 256
    width: int = 0
    learning_rate: float = 1e-3
    average: float = 0.998
    cameras: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"chunk": (1, 256), "steps": (0, 10_000_000), "batch": (1, 65536), "width": (0, 4096)}
        rest = {"seed": (0, 2**62), "learning_rate": (1e-7, 1.0), "average": (0.0, 0.99999)}
        for name, (low, high) in {**counts, **rest}.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"'{name}' must be between {low} and {high}", param=name)


def run(config: Config, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Learn from the data set `inputs["dataset"]`. Killed and called again, it goes on from the last checkpoint.

    Raises AtollError."""
    from atoll.physical.imitation.clone import clone

    clone(config, inputs["dataset"], out, report)


STAGE = Stage(
    name="imitate",
    about="learning from demonstrations: a data set in, a policy out",
    config=Config,
    run=run,
    makes="policy",
    takes=("dataset",),
)

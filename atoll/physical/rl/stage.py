"""The stage `rl`: a task in, a policy out.

The folder it leaves holds the policy, `curve.json` and `videos/<steps>-steps.mp4`, what it did by then. `.work` beside
them, which is not part of the artifact, has the checkpoint and `policies/<steps>`, what had been learned by then.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from threadpoolctl import threadpool_limits

from atoll.core.errors import Conflict, InvalidRequest
from atoll.core.runs import Reporter, Stage
from atoll.physical.policy import SPEC, save_policy, write
from atoll.physical.rl import checkpoint
from atoll.physical.rl.film import film
from atoll.physical.rl.learner import Learner
from atoll.physical.rl.presets import PRESETS, STEPS
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.live import View

CHECKPOINT_EVERY_S = 5.0
BEAT_EVERY_S = 0.5
Scalar = int | float | bool | str
CURVES = ("return", "success", "kl", "entropy", "value_loss", "loss")


@dataclass(frozen=True, slots=True)
class RlConfig:
    """`steps` of 0 are those of the task's preset. `overrides` replace fields of the preset, which is a PpoConfig or an
    OffpolicyConfig. While it learns, `snapshots` policies are kept and `videos` of it are taken, at equal parts of the
    way. `threads` of 0 are all cores; they change no result."""

    task: str = "half-cheetah"
    algorithm: str = "ppo"
    steps: int = 0
    seed: int = 0
    overrides: Mapping[str, Scalar | list[int]] = field(default_factory=dict)
    snapshots: int = 8
    videos: int = 4
    threads: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InvalidRequest(f"'algorithm' must be one of {', '.join(ALGORITHMS)}", param="algorithm")
        for name in ("steps", "seed", "snapshots", "videos", "threads"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"'{name}' must not be negative", param=name)


ALGORITHMS = {
    "ppo": ("atoll.physical.rl.ppo", "Ppo", "PpoConfig"),
    "offpolicy": ("atoll.physical.rl.offpolicy", "Offpolicy", "OffpolicyConfig"),
}


def run(config: RlConfig, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Learn until the steps are done. Killed at any moment and called again, it goes on from the last checkpoint."""
    work = out / ".work"
    if not (out / SPEC).exists():
        with threadpool_limits(1), ThreadPoolExecutor(1) as pool:
            learner, total = begin(config, work)
            curve = _learn(learner, total, config, out, report, pool)
        write(out / "curve.json", json.dumps(curve).encode())
        save_policy(learner.policy(), out)
    for name in ("checkpoint.npz", "replay.f32"):
        (work / name).unlink(missing_ok=True)


def begin(config: RlConfig, work: Path) -> tuple[Learner, int]:
    """The learner at its start, and the steps to take."""
    task = load_task(config.task)
    preset = dict(PRESETS[config.algorithm].get(config.task, {}))
    total = config.steps or preset.get("steps", STEPS)
    preset.pop("steps", None)
    module, learner, settings = ALGORITHMS[config.algorithm]
    found = import_module(module)
    chosen = settings_from(getattr(found, settings), preset | dict(config.overrides))
    sim = Sim(task, chosen.sims, seed=config.seed * 1_000_003, threads=config.threads)
    return getattr(found, learner)(sim, chosen, config.seed, work), total


def settings_from(kind: type, values: Mapping[str, Any]) -> Any:
    """`kind`, a dataclass, with these values. Raises InvalidRequest naming the field that is unknown or off."""
    known = {f.name for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise InvalidRequest(f"there is no setting '{name}'; there are: {', '.join(sorted(known))}", param=name)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise InvalidRequest(f"'{name}': {first['msg']}", param=name) from None


def _learn(
    learner: Learner, total: int, config: RlConfig, out: Path, report: Reporter, pool: ThreadPoolExecutor
) -> dict[str, list[float]]:
    """Returns the curve: figures by name, over `steps`."""
    told = json.loads(json.dumps(dataclasses.asdict(config) | {"threads": 0}))
    work = out / ".work"
    path, curve = work / "checkpoint.npz", {name: [] for name in ("steps", *CURVES)}
    if (saved := checkpoint.load(path)) is not None:
        if saved["config"] != told:
            raise Conflict("this folder holds a run of another configuration", param="config")
        learner.restore(saved["learner"])
        curve = saved["curve"]
    clock = _Clock(learner.steps, total, report)
    with View(work) as view:
        while learner.steps < total:
            before = learner.steps
            figures = learner.iterate(pool, clock.beat)
            curve["steps"].append(learner.steps)
            for name in CURVES:
                curve[name].append(figures.get(name))
            _keep(learner, before, total, config, out, clock.beat)
            clock.tell(learner.steps, figures)
            view.show(learner.sim)
            if learner.overdue or clock.due(CHECKPOINT_EVERY_S):
                checkpoint.save(path, {"config": told, "learner": learner.state(), "curve": curve})
    return {name: values for name, values in curve.items() if any(v is not None for v in values)}


def _keep(
    learner: Learner, before: int, total: int, config: RlConfig, out: Path, beat: Callable[[int], None]
) -> None:
    """A snapshot, and a video, where the iteration passed one of the equal parts of the way."""

    def passed(parts: int) -> bool:
        return before * parts // total != min(learner.steps, total) * parts // total

    name, work = f"{learner.steps:010d}", out / ".work"
    if passed(config.snapshots):
        save_policy(learner.policy(), work / "policies" / name)
    if passed(config.videos):
        video = out / "videos" / f"{name}-steps.mp4"
        film(learner.sim.task, learner.policy(), video, work, lambda: beat(learner.steps))


class _Clock:
    """Tells the reporter how far it is, and when the next checkpoint is due."""

    def __init__(self, steps: int, total: int, report: Reporter):
        self.total, self.report = total, report
        self.began = self.told = self.kept = time.monotonic()
        self.first = steps

    def beat(self, steps: int) -> None:
        if time.monotonic() - self.told > BEAT_EVERY_S:
            self.tell(steps, {})

    def tell(self, steps: int, figures: Mapping[str, float]) -> None:
        self.told = time.monotonic()
        rate = (steps - self.first) / max(self.told - self.began, 1e-9)
        self.report.progress(min(steps, self.total), self.total, steps_per_second=rate, **figures)

    def due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now - self.kept < every_s:
            return False
        self.kept = now
        return True


STAGE = Stage(
    name="rl",
    about="reinforcement learning: a task in, a policy out",
    config=RlConfig,
    run=run,
    makes="policy",
)

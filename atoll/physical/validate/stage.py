"""The stage `validate`: a policy in, the gate's report out. The report decides whether it may be served."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest, Unsupported
from atoll.core.gate import Evidence, Rule, Trials, Verdict, decide, plain
from atoll.core.manifest import Image
from atoll.core.runs import Reporter, Stage
from atoll.physical.policy import Policy, check_fit, check_rate, load_policy, write
from atoll.physical.serve.record import fingerprint
from atoll.physical.sim.rollout import rollout
from atoll.physical.sim.sim import Sim, Step
from atoll.physical.sim.task import Task
from atoll.physical.synth.cameras import Cameras
from atoll.physical.synth.live import View, camera_of_task, drawn_by
from atoll.physical.synth.video import write_video
from atoll.physical.validate.measure import (
    WARP,
    Beat,
    Engine,
    Trial,
    driven,
    ranked,
    run_random,
    run_trial,
    stressed,
    task_of,
    trials,
    variants,
    warp,
)
from atoll.physical.validate.report import page

VIDEO = Image("", 240, 320)
LONGEST = 300
"""Frames of a video."""


@dataclass(frozen=True, slots=True)
class Config:
    """`episodes` of the task as it is; `part` of each level of `stress` and each variant; `cheap` of the cheap
    evaluation, whose rank correlation is measured on the policy made worse by each of `noises` (empty: not).
    `mark`: the return that counts as success where the task does not tell (None: the task's own). `rule`: what must
    hold. `videos` of that many episodes. Seeds start at `seed`, apart from those that were learned from. `warp`: try
    MuJoCo-Warp too, which is not the same to the last bit from run to run (None: where there is an NVIDIA GPU)."""

    episodes: int = 200
    part: int = 64
    stress: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    cheap: int = 20
    noises: tuple[float, ...] = (0.0, 0.01, 0.02, 0.04, 0.08)
    mark: float | None = None
    execute: int = 0
    videos: int = 2
    warp: bool | None = None
    seed: int = 500_000_000
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        counts = {"episodes": (10, 100_000), "part": (5, 100_000), "cheap": (5, 10_000), "videos": (0, 20)}
        for name, (low, high) in counts.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"'{name}' must be between {low} and {high}", param=name)
        for name, most in (("stress", 10.0), ("noises", 1.0)):
            if any(not 0 <= value <= most for value in getattr(self, name)):
                raise InvalidRequest(f"'{name}' must be between 0 and {most}", param=name)
        if self.mark is not None and not math.isfinite(self.mark):
            raise InvalidRequest("'mark' must be a finite number", param="mark")


def run(config: Config, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Judge `inputs["policy"]`, against `inputs["incumbent"]` where there is one. What was measured before a kill is
    measured again: the same seeds give the same. Raises AtollError."""
    work = out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    policy = load_policy(inputs["policy"])
    task = task_of(policy)
    sim = Sim(task, 1)
    check_fit(policy.manifest, sim)
    check_rate(policy.manifest, sim)
    if not task.success and config.mark is None:
        raise InvalidRequest(f"'{task.name}' does not tell what success is: set 'mark', a return", param="mark")
    incumbent = load_policy(inputs["incumbent"], sim) if "incumbent" in inputs else None
    with View(work) as view:
        beat = _Beat(config, task, incumbent, report, view)
        evidence, broken = measure(config, task, policy, incumbent, beat)
        verdict = decide(evidence, config.rule)
        videos = film(config, task, policy, work, beat)
    report.progress(beat.total, beat.total, success=evidence.nominal.rate, passed=float(verdict.passed))
    _write(config, inputs, out, evidence, broken, verdict, videos)
    for name in videos:
        (work / name).replace(out / name)


def measure(
    config: Config, task: Task, policy: Policy, incumbent: Policy | None, beat: Beat
) -> tuple[Evidence, dict[str, int]]:
    """What is decided on, and in how many episodes of each kind the physics broke; those count as failed."""
    engine = warp(config.warp)
    whole = Trial(config.episodes, config.seed, config.mark, config.execute)
    part = Trial(config.part, config.seed, config.mark, config.execute)
    broken: dict[str, int] = {}

    def judge(name: str, task: Task, policy: Policy, trial: Trial, engine: Engine | None = None) -> Trials:
        episodes = run_trial(task, policy, trial, beat, engine=engine)
        broken[name] = int(episodes.broken.sum())
        return trials(episodes, task, config.mark)

    nominal = judge("as it is", task, policy, whole)
    stress = {level: judge(f"stress {level:g}", stressed(task, level), policy, part) for level in config.stress}
    other = {name: judge(name, changed, policy, part) for name, changed in variants(task).items()}
    if engine:
        with suppress(*(() if config.warp else (Unsupported,))):
            other[WARP] = judge(WARP, task, policy, part, engine)
    before = judge("the policy it would replace", task, incumbent, whole) if incumbent else None
    random = run_random(task, part, beat)
    broken["random actions"] = int(random.broken.sum())
    ranks = ranked(task, policy, part, config.cheap, config.noises, beat)
    tried = trials(random, task, config.mark)
    return Evidence(nominal, stress, other, before, ranks, broken["as it is"], tried), broken


def film(config: Config, task: Task, policy: Policy, folder: Path, beat: Beat) -> list[str]:
    """Videos of the first episodes, told by how they ended; their names."""
    names = []
    for k in range(config.videos):
        sim = Sim(task, 1, tolerant=True)
        frames: list[np.ndarray] = []
        with (
            Cameras(sim, [Image(camera_of_task(sim), VIDEO.height, VIDEO.width)]) as view,
            Cameras(sim, policy.manifest.images) as look,
        ):

            def shot(_: Step, sim: Sim = sim, view: Cameras = view, frames: list[np.ndarray] = frames) -> None:
                frames.extend(_frame(view, frames))
                beat(sim)

            act = driven(policy, sim, look, config.execute)
            done = rollout(sim, act, 1, seed=config.seed + k, each=shot)
            drawn_by(folder, view.engine)
        won = trials(done, task, config.mark).successes
        name = f"episode-{k}-{'success' if won else 'failure'}.mp4"
        write_video(folder / name, frames, 1 / sim.dt)
        names.append(name)
    return names


def _frame(view: Cameras, frames: list[np.ndarray]) -> Iterator[np.ndarray]:
    if len(frames) >= LONGEST:
        return
    for pictures in view(np.array([0])).values():
        yield pictures[0]


def _write(
    config: Config,
    inputs: Mapping[str, Path],
    out: Path,
    evidence: Evidence,
    broken: Mapping[str, int],
    verdict: Verdict,
    videos: list[str],
) -> None:
    policy = load_policy(inputs["policy"])
    told = {
        "decision": "pass" if verdict.passed else "fail",
        "policy": fingerprint(inputs["policy"]),
        "incumbent": fingerprint(inputs["incumbent"]) if "incumbent" in inputs else None,
        "task": policy.manifest.task,
        "checks": [check._asdict() for check in verdict.checks],
        "evidence": plain(evidence),
        "broken": dict(broken),
        "rule": asdict(config.rule),
        "config": {**asdict(config), "rule": asdict(config.rule)},
        "mujoco": mujoco.__version__,
    }
    about = {"task": policy.manifest.task, "kind": policy.manifest.kind, "policy": told["policy"][:12]}
    write(out / "index.html", page(about, evidence, broken, verdict, videos).encode())
    write(out / "report.json", json.dumps(told, indent=1).encode() + b"\n")


class _Beat:
    """Counts steps of simulations against those that will be needed at most."""

    def __init__(self, config: Config, task: Task, incumbent: Policy | None, report: Reporter, view: View):
        parts = len(config.stress) + len(variants(task)) + 2
        episodes = [config.episodes] * (2 if incumbent else 1) + [config.part] * parts
        episodes += [config.part, config.cheap] * len(config.noises)
        self.total = (sum(-(-count // 64) for count in episodes) + config.videos) * task.horizon
        self.done, self.told, self.report, self.view = 0, time.monotonic(), report, view

    def __call__(self, sim: Sim) -> None:
        self.done += 1
        self.view.show(sim)
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.report.progress(min(self.done, self.total), self.total)


STAGE = Stage(
    name="validate",
    about="the gate: is this policy good enough to be served?",
    config=Config,
    run=run,
    makes="report",
    takes=("policy", "incumbent?"),
)
